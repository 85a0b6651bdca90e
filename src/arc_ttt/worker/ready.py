"""A solver ready for its device: preset of the device, backend with its fallback, settings that fit the memory.

    settings --device preset--> load --> memory plan --> TaskSolver --> unsloth held against our own decoder

Every deviation from the settings comes back as one note.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.checkpoints.memory_formulas import CONTEXT, Device
from arc_ttt.checkpoints.memory_plan import MemoryPlan, fitted, plan
from arc_ttt.checkpoints.shape import SMALL_PARAMETERS, LlamaShape
from arc_ttt.errors import ModelError
from arc_ttt.model.attention import fused_groups, hidden_states
from arc_ttt.model.cuda import release_memory
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.model.unsloth import adapter_refusal
from arc_ttt.protocol.messages import Note
from arc_ttt.settings import Settings
from arc_ttt.worker.solver import TaskSolver

CPU_TOKENS = 8192
"""Tokens of a micro-batch where no memory plan gives them."""
SPARE = 1.25
"""Layers are not computed twice if this many times the longest sequence fits."""
PROBE_TOKENS = 64
PROBE_EFFECT = 0.1
"""The probed adapter adds this part of the hidden states."""
TOLERANCE = 0.05
"""Largest relative difference of a hidden state; sixteen bits leave some hundredths, a wrong position far more."""


def ready_solver(settings: Settings, device: torch.device) -> tuple[TaskSolver, list[Note]]:
    """Load the model that `settings` name onto `device` and make its solver.

    Where the unsloth backend cannot be used, transformers takes its place in the same process.

    Raises:
        ModelError: the model cannot be loaded by transformers.
    """
    failed: list[Note] = []
    if device.type == "cuda":
        settings = settings.on_device(torch.cuda.get_device_capability(device))
    if settings.model.backend == "unsloth":
        try:
            return _solver(settings, device)
        except ModelError as error:
            failed.append(Note(f"backend: transformers instead of unsloth: {error}", less=True))
        release_memory(device)
        settings = replace(settings, model=replace(settings.model, backend="transformers"))
    solver, notes = _solver(settings, device)
    return solver, failed + notes


def _solver(settings: Settings, device: torch.device) -> tuple[TaskSolver, list[Note]]:
    if settings.model.backend == "unsloth" and (refusal := adapter_refusal(settings.ttt)):
        raise ModelError(refusal)
    base = load_model(settings.model, device, seed=settings.run.seed)
    if base.unsloth is not None:  # it would cut longer sequences without an error
        limit = min(settings.model.max_tokens, int(base.llama.config.max_position_embeddings))
        shorter = replace(settings.ttt, max_sequence_tokens=min(settings.ttt.max_sequence_tokens, limit))
        settings = replace(settings, ttt=shorter)
    notes: list[Note] = []
    memory = memory_plan(base, settings)
    if memory is not None:
        settings, notes = fitted(settings, memory)
    elif settings.ttt.micro_batch_tokens == 0:
        settings = replace(settings, ttt=replace(settings.ttt, micro_batch_tokens=CPU_TOKENS))
    if base.unsloth is None:
        return TaskSolver(base, settings, memory=memory), notes
    try:
        solver = TaskSolver(base, settings, memory=memory)
        if solver.adapter is not None:  # without one nothing passes through unsloth's layers
            check_backend(solver, solver.adapter)
    except ModelError:
        base.unsloth.patches.undo()
        raise
    return solver, notes


def memory_plan(base: LoadedModel, settings: Settings) -> MemoryPlan | None:
    """The plan for a loaded model on its GPU, from what is free there and what it has; None on a CPU."""
    if base.device.type != "cuda":
        return None
    shape, large = LlamaShape.of(base.llama.config.to_dict()), base.parameters >= SMALL_PARAMETERS
    free, _ = torch.cuda.mem_get_info(base.device)
    total = free + torch.cuda.memory_reserved(base.device) + CONTEXT
    device = Device(total, fused_groups(base.device), base.dtype.itemsize)
    return choose_plan(
        base.llama, shape, device, settings, four_bit=base.four_bit, large=large, own=base.unsloth is None
    )


def choose_plan(
    llama: Any, shape: LlamaShape, device: Device, settings: Settings, *, four_bit: bool, large: bool, own: bool
) -> MemoryPlan:
    """The plan without gradient checkpointing where the longest sequences fit so with room to spare, as that saves the
    second forward pass; else with it.

    Args:
        large: the model checkpoints now.
        own: it may be told not to.
    """
    if not large:
        return plan(shape, device, settings.ttt, four_bit=four_bit, checkpointing=False, host_copies=False)
    quick = plan(shape, device, settings.ttt, four_bit=four_bit, checkpointing=False)
    if own and quick.tokens >= SPARE * settings.ttt.max_sequence_tokens:
        llama.gradient_checkpointing_disable()
        return quick
    return plan(shape, device, settings.ttt, four_bit=four_bit, checkpointing=True)


def check_backend(solver: TaskSolver, adapter: Adapter) -> float:
    """Hold the backend's training pass against our own decoder, on two random sequences, one of them padded.

    The adapter is given weights that count, so that a kernel which passes it over is found too. Returns the largest
    relative difference of a hidden state, and leaves the adapter as it was.

    Raises:
        ModelError: they differ by more than `TOLERANCE`, or a gradient is missing or not finite.
    """
    base, ttt = solver.base, solver.settings.ttt
    scale = ttt.alpha / (ttt.rank**0.5 if ttt.rslora else ttt.rank)
    random = torch.Generator().manual_seed(0)
    counts = torch.tensor([PROBE_TOKENS, PROBE_TOKENS // 2])
    ids = torch.randint(0, base.llama.config.vocab_size, (2, PROBE_TOKENS), generator=random).to(base.device)
    positions = torch.arange(PROBE_TOKENS, device=base.device)[None].expand(2, -1).contiguous()
    real = (torch.arange(PROBE_TOKENS)[None] < counts[:, None]).to(base.device)
    for name, weight in adapter.trainable.items():
        if "lora_B" in name:
            noise = torch.randn(weight.shape, generator=random) * PROBE_EFFECT / (scale * ttt.rank**0.5)
            weight.data.copy_(noise)
    try:
        base.training()
        with torch.autocast(base.device.type, dtype=base.dtype, enabled=base.autocast):
            got = hidden_states(base.llama, ids, positions).float()
        signs = torch.randn(got.shape, generator=random).sign().to(base.device)
        (got * signs * real[..., None]).sum().backward()  # type: ignore[no-untyped-call]
        missing = [n for n, w in adapter.trainable.items() if w.grad is None or not bool(w.grad.isfinite().all())]
        base.inference()
        decoder = solver.answerer.decoder()
        cache = decoder.new_cache(2, PROBE_TOKENS)
        want = decoder.forward(ids, positions, counts.to(base.device), cache, PROBE_TOKENS).float()
        difference = float(((got.detach() - want).norm(dim=-1) / want.norm(dim=-1))[real].max())
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"the backend's forward pass fails: {type(error).__name__}: {error}"[:300]) from error
    finally:
        base.inference()
        adapter.reset()
    if missing:
        raise ModelError(f"the backend leaves {len(missing)} adapter weights without gradients, {missing[0]} first")
    if not difference <= TOLERANCE:
        raise ModelError(f"the backend's hidden states differ from our own by {difference:.1%}")
    return difference

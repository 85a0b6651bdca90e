"""Checks of the model's weights, tokenizer and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from arc_lab.publish.preflight.checkup import Checkup, chosen_settings, machine, model_here
from arc_lab.publish.preflight.findings import Finding, Level
from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.memory_formulas import L4, T4
from arc_ttt.checkpoints.memory_plan import plan as memory_plan
from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.errors import ModelError
from arc_ttt.presets import LINEAR_LAYERS
from arc_ttt.tasks.grids import Example, freeze

MEMORY = {"t4": T4, "l4": L4}
"""Memory of each kind of GPU."""


def check_model(checkup: Checkup) -> Iterator[Finding]:
    """The checkpoint's weights are whole, and its tokenizer can write tasks."""
    settings, folder = chosen_settings(checkup), model_here(checkup)
    checkpoint = Checkpoint.read(folder)
    shape, form = checkpoint.shape, settings.model.format
    count = shape.matrix_weights
    problems = [*weight_problems(folder, shape), *format_problems(form, folder, dict(checkpoint.config))]
    yield from (Finding(Level.FAIL, "model", f"{folder}: {text}") for text in problems)
    if not problems:
        text = f"{folder.name}: {count / 1e6:.0f}M weights, all there; format {settings.model.format} can be written"
        yield Finding(Level.OK, "model", text)


def weight_problems(folder: Path, shape: LlamaShape) -> list[str]:
    """What is wrong with a checkpoint's weight files, as their headers show it.

    Files may be damaged or cut short, and weights may be missing or of other sizes than the config says.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return ["no safetensors file; other weights are not read"]
    held: dict[str, int] = {}
    for file in files:
        try:
            with safe_open(file, "np") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                    part = opened.get_slice(name)
                    held[name] = math.prod(part.get_shape()) * (2 if part.get_dtype() == "U8" else 1)  # 4 bits each
        except (SafetensorError, OSError) as error:
            return [f"{file.name} is damaged or cut short: {error}"]
    wanted = {"model.embed_tokens.weight": shape.vocabulary * shape.hidden, "model.norm.weight": shape.hidden}
    if not shape.tied:
        wanted["lm_head.weight"] = shape.vocabulary * shape.hidden
    for layer in range(shape.layers):
        for name in LINEAR_LAYERS:
            part_of = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            wanted[f"model.layers.{layer}.{part_of}.{name}.weight"] = math.prod(shape.linear(name))
        for name in ("input_layernorm", "post_attention_layernorm"):
            wanted[f"model.layers.{layer}.{name}.weight"] = shape.hidden
    found = []
    if missing := [name for name in wanted if name not in held]:
        found.append(f"{len(missing)} weights are missing, the first is {missing[0]}")
    if other := [name for name, size in wanted.items() if held.get(name, size) != size]:
        found.append(f"{other[0]} has {held[other[0]]} numbers, config.json asks for {wanted[other[0]]}")
    return found


def format_problems(name: str, folder: Path, config: dict[str, Any]) -> list[str]:
    """Why a checkpoint's tokenizer cannot write a task in a format; empty if it can."""
    from arc_ttt.model.tokenizer import format_of

    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}  # what transformers takes for Llama
    try:
        form = format_of(name, folder, SimpleNamespace(**{**tokens, **config}))
    except ModelError as error:
        return [str(error).removeprefix(f"{folder}: ")]
    grid = freeze(np.arange(10).reshape(2, 5))
    largest = int(form.encode([Example(grid, grid)], grid, grid).ids.max())
    if largest >= config["vocab_size"]:
        return [f"the tokenizer writes token {largest}, the model has {config['vocab_size']}"]
    return []


def check_memory(checkup: Checkup) -> Iterator[Finding]:
    """The model fits the GPUs of kernel-metadata.json; the other kind is reported as well."""
    settings, shape = chosen_settings(checkup), Checkpoint.read(model_here(checkup)).shape
    model, ttt = settings.model, settings.ttt
    large, asked = not shape.is_small, machine(checkup)
    four_bit = model.quantize == "nf4" and (model.dequantize == "never" or (large and model.dequantize == "auto"))
    for kind, device in MEMORY.items():
        found = memory_plan(shape, device, ttt, four_bit=four_bit, checkpointing=large, host_copies=large)
        weights = f"{found.weights / 2**30:.2f} GiB of weights in {4 if four_bit else 16} bits"
        usable = f"{device.usable / 2**30:.1f} GiB"
        longest = min(found.tokens, ttt.max_sequence_tokens)
        if longest:
            level = Level.OK if longest == ttt.max_sequence_tokens else Level.WARN
            text = f"{weights} on {usable}, trains on sequences of up to {longest} of {ttt.max_sequence_tokens} tokens"
        else:
            level = Level.FAIL if asked is not None and kind == asked[0] else Level.WARN
            advice = "take 4 bits, a lower ttt.rank or a smaller model"
            text = f"{weights}, with adapter and optimizer, leave no room to train on {usable}: {advice}"
        yield Finding(level, "memory", f"{kind.upper()}: {text}")

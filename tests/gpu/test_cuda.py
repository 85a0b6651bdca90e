"""What only a GPU can show: recorded steps, 16-bit and 4-bit training, packed rows, compiled layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arc_lab.pretraining.attention import _one_by_one, _varlen, can_pack
from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.recording import RecordedGradients
from arc_ttt.adapt.sequences import ttt_sequences
from arc_ttt.adapt.training import accumulate
from arc_ttt.deadline import Deadline
from arc_ttt.decode.decoder import Decoder
from arc_ttt.decode.greedy import greedy
from arc_ttt.decode.prompts import PromptBatch
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings, Settings
from arc_ttt.tasks.grids import Example, Task, freeze, same_grid
from arc_ttt.tasks.views import sample_views
from arc_ttt.worker.solver import TaskSolver

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = torch.device("cuda", 0)


def mirror_task(seed: int) -> Task:
    rng = np.random.default_rng(seed)
    grids = [freeze(rng.integers(0, 10, (rng.integers(2, 6), rng.integers(2, 6)))) for _ in range(4)]
    return Task("mirror", tuple(Example(g, freeze(g[:, ::-1])) for g in grids[:3]), (grids[3],))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_steps_give_the_answers_of_plain_ones(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_model(ModelSettings(dtype=dtype), GPU)
    task = mirror_task(0)
    prompts = [
        base.form.encode(v.demonstrations(task), v.apply(task.tests[0]))
        for v in sample_views(8, 3, np.random.default_rng(0))
    ]
    decoder = Decoder(base)
    assert decoder.can_record
    recorded = greedy(PromptBatch(decoder, prompts), Deadline.never())
    monkeypatch.setattr(decoder, "can_record", False)
    plain = greedy(PromptBatch(decoder, prompts), Deadline.never())
    agreeing = 0
    for one, two in zip(recorded, plain, strict=True):
        if one.grid is not None and two.grid is not None and same_grid(one.grid, two.grid):
            agreeing += 1
            assert math.isclose(one.nll, two.nll, rel_tol=0.05, abs_tol=0.1 if dtype == "bfloat16" else 1e-3)
    assert agreeing >= (8 if dtype == "float32" else 5)  # rounding may turn a close choice


@pytest.mark.parametrize(
    "changes",
    [
        {"model.dtype": "bfloat16"},
        {"model.dtype": "float16"},
        {"model.dtype": "float16", "model.dequantize": "never"},
        {"model.dtype": "bfloat16", "model.dequantize": "never"},
        {"model.dtype": "bfloat16", "ttt.adapter": "full", "ttt.learning_rate": 5e-4},
    ],
    ids=["bf16", "fp16", "fp16 in 4 bits", "bf16 in 4 bits", "full weights"],
)
def test_a_task_is_learned_and_answered(changes: dict[str, Any]) -> None:
    settings = Settings.of("embedded").override([*changes.items(), ("ttt.max_sequences", 160)])
    solver = TaskSolver(load_model(settings.model, GPU), settings)
    answers = solver.adapt(mirror_task(1), Deadline.never())
    assert answers.training is not None
    assert answers.training.losses[-1] < 0.7 * answers.training.losses[0]
    assert answers.candidates
    assert all(math.isfinite(c.nll) for c in answers.candidates)


def test_recorded_gradients_are_those_of_the_plain_pass() -> None:
    settings = Settings.of("embedded").override([("model.dtype", "float32")])
    base = load_model(settings.model, GPU)
    adapter = Adapter(base, settings.ttt, seed=0)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    batches = [ttt_sequences(mirror_task(seed), base.form, settings.ttt, rng)[:6] for seed in (2, 3, 2)]
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    wanted = []
    for batch in batches:
        loss = accumulate(base, batch, 400, scaler)
        wanted.append((loss, [weight.grad.clone() for weight in adapter.parameters() if weight.grad is not None]))
        for weight in adapter.parameters():
            weight.grad = None
    recorded = RecordedGradients(base, adapter.parameters())
    for batch, (loss, gradients) in zip(batches, wanted, strict=True):
        recorded.clear()
        assert accumulate(base, batch, 400, scaler, recorded) == pytest.approx(loss, rel=1e-4)
        for weight, gradient in zip(adapter.parameters(), gradients, strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-5)


def test_packed_attention_is_that_of_each_sequence() -> None:
    if not can_pack(GPU, torch.bfloat16):
        pytest.skip("no variable-length attention on this GPU")
    torch.manual_seed(0)
    q, k, v = (torch.randn(512, 4, 64, device=GPU, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    starts = torch.tensor([0, 100, 101, 400, 512, 512, 512], dtype=torch.int32, device=GPU)
    results = []
    for attend in (_varlen, _one_by_one):
        output = attend(q, k, v, starts, 300)
        results.append((output, *torch.autograd.grad(output.float().square().sum(), (q, k, v))))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0.05, atol=0.05)


def test_a_compiled_training_on_packed_rows_lowers_the_loss(tmp_path: Path) -> None:
    from arc_lab.data.packs import write_pack
    from arc_lab.pretraining.pretrain import pretrain
    from arc_lab.pretraining.settings import PRESETS
    from support.pretraining import DATA, TINY, options_of, rule_pairs, settings_of

    group = {"name": "rearc/copy", "family": "copy", "split": "train", "held_pairs": 40}
    write_pack(tmp_path / "p.pack", {"settings": {}}, [(group, rule_pairs("copy", 120, 0))])
    PRESETS["tiny"] = TINY
    try:
        data = DATA.__class__(max_tokens=128, batch_tokens=2048, window_sequences=96, windows_ahead=1, packed=True)
        card = pretrain(
            [tmp_path / "p.pack"],
            settings_of(data=data, steps=60),
            options_of(tmp_path, compile=True, log_every=10),
            say=lambda text: None,
        )
    finally:
        del PRESETS["tiny"]
    losses = [line["loss"] for line in card["curve"] if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_ways_of_decoding_give_one_distribution(dtype: str) -> None:
    """Fused weights, layers as they are, and layers in 4 bits; the adapter's change in 16 bits in the last two."""
    task = mirror_task(1)
    found = []
    for dequantize, fuse in (("auto", True), ("auto", False), ("never", True)):
        base = load_model(ModelSettings(dtype=dtype, dequantize=dequantize), GPU)
        adapter = Adapter(base, Settings.of("embedded").ttt, seed=0)
        random = torch.Generator().manual_seed(0)
        for name, weight in sorted(adapter.trainable.items()):
            if "lora_B" in name:
                weight.data.copy_(0.02 * torch.randn(weight.shape, generator=random))
        decoder = Decoder(base, fuse=fuse)
        assert decoder.can_record == (fuse and dequantize == "auto")
        prompt = base.form.encode(task.train, task.tests[0])
        ids, positions = (torch.from_numpy(a)[None].to(GPU) for a in (prompt.ids, prompt.positions))
        count = torch.tensor([len(prompt)], device=GPU)
        hidden = decoder.forward(ids, positions, count, decoder.new_cache(1, len(prompt)), len(prompt))
        found.append(decoder.log_probabilities(hidden[0]).exp().cpu())
    for other in found[1:]:
        assert float((other - found[0]).abs().max()) < 0.05


def test_recorded_trainings_and_recorded_answers_take_turns() -> None:
    """Graphs of training outlive those of decoding; the answers are those of a process that has done nothing before."""
    settings = Settings.of("embedded-gpu").override([("ttt.max_sequences", 64), ("decode.views", 8)])
    never = Deadline.never()
    used = TaskSolver(load_model(settings.model, GPU), settings)
    for seed in (1, 2, 3):
        used.adapt(mirror_task(seed), never)
    again = used.adapt(mirror_task(4), never)
    fresh = TaskSolver(load_model(settings.model, GPU), settings).adapt(mirror_task(4), never)
    one, two = ([c.grid for c in sorted(a.candidates, key=lambda c: c.view or 0)] for a in (again, fresh))
    same = sum(same_grid(x, y) for x, y in zip(one, two, strict=False))
    assert same >= 6  # kernels add in no fixed order
    assert again.training is not None
    assert fresh.training is not None
    assert again.training.losses[0] == pytest.approx(fresh.training.losses[0], rel=0.01)

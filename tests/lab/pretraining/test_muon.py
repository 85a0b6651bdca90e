"""The optimizers: Muon, accumulated batches, and the schedule of learning rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arc_lab.pretraining.muon import Muon, orthogonalized
from support.pretraining import DATA, options_of, run, settings_of


def test_muon_is_that_of_torch() -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 8), (8, 8), (24, 8), (8, 24))]
    steps = [[torch.randn_like(weight) for weight in start] for _ in range(3)]
    results = []
    for make in (
        lambda ws: Muon(ws, lr=0.02, weight_decay=0.1),
        lambda ws: torch.optim.Muon(ws, lr=0.02, weight_decay=0.1),
    ):
        own = [torch.nn.Parameter(weight.clone()) for weight in start]
        optimizer = make(own)
        for gradients in steps:
            for weight, gradient in zip(own, gradients, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        results.append(own)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0.02, atol=2e-3)  # torch's own rounds to bfloat16
    values = torch.linalg.svdvals(orthogonalized(torch.randn(2, 16, 32)))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.5


def test_accumulating_two_batches_differs_from_one(pack_file: Path, tmp_path: Path) -> None:
    one = run(pack_file, settings_of(steps=2), options_of(tmp_path / "one"))
    two = run(pack_file, settings_of(steps=2, accumulate=2), options_of(tmp_path / "two"))
    assert two["tokens"] > one["tokens"]


def test_learning_rates_warm_up_stay_and_decay() -> None:
    settings = settings_of(warmup_steps=10, decay_share=0.25)
    assert settings.rate(0, 0.0) == pytest.approx(0.1)
    assert settings.rate(50, 0.5) == 1.0
    assert settings.rate(50, 0.875) == pytest.approx(0.5)
    assert settings.rate(50, 1.0) == 0.0
    assert [settings.limit_tokens(p) for p in (0.0, 0.3, 0.6)] == [128, 128, 128]
    longer = settings_of(data=replace(DATA, max_tokens=1000))
    assert [longer.limit_tokens(p) for p in (0.0, 0.3, 0.6)] == [400, 650, 1000]

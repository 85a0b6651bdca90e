"""The benchmark's count of useful work, against a count of every product that torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arc_lab.evaluate.speed import flops_per_token
from arc_lab.pretraining.model import new_llama, save_model
from arc_lab.pretraining.settings import Preset
from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.batches import target_logits
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import ModelSettings, TttSettings

TINY = Preset(64, 2, 2, 128, 256, 512, 0.02, 4e-3, 24, 1)
LENGTH, TARGETS = 24, 6
CPU = torch.device("cpu")


def products(base: LoadedModel) -> int:
    """FLOP of the matrix products of a step on one sequence, as torch counts them while it runs."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 10, (1, LENGTH)))
    places = torch.arange(LENGTH - TARGETS, LENGTH)
    with FlopCounterMode(display=False) as counter:
        logits, wanted = target_logits(base.llama, ids, torch.arange(LENGTH)[None], places)
        torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if "mm" in str(op) and "bmm" not in str(op))


def attention(base: LoadedModel) -> int:
    """FLOP of causal attention, position by position: a score and a share of the value, each with two gradients."""
    config = base.llama.config
    each = config.hidden_size // config.num_attention_heads
    pairs = sum(1 for query in range(LENGTH) for key in range(LENGTH) if key <= query)
    return config.num_hidden_layers * config.num_attention_heads * pairs * (2 * each + 2 * each) * 3


@pytest.mark.parametrize(("adapter", "quantize"), [("full", "none"), ("lora", "none"), ("lora", "nf4")])
def test_useful_work_is_what_torch_does(tmp_path: Path, adapter: str, quantize: str) -> None:
    save_model(new_llama(TINY, "longrope", seed=4), tmp_path / "model", torch.float32)
    settings = ModelSettings(path=str(tmp_path / "model"), quantize=quantize, dequantize="never", dtype="float32")
    base = load_model(settings, CPU)
    assert base.four_bit == (quantize == "nf4")
    Adapter(base, TttSettings(adapter=adapter, rank=4), seed=0)
    spared = 0
    if adapter == "lora":  # nothing before the first layer trains: its projections pass no gradient on
        first = base.llama.model.layers[0].self_attn
        for layer in (first.q_proj, first.k_proj, first.v_proj):
            spared += 2 * layer.in_features * (layer.out_features + 4)
    counted = flops_per_token(base, LENGTH, TARGETS / LENGTH) * LENGTH
    packed = [m for m in base.llama.modules() if isinstance(m, torch.nn.Linear) and type(m) is not torch.nn.Linear]
    hidden = sum(
        2 * layer.in_features * layer.out_features for layer in packed
    )  # forward, by the library's own product
    assert counted == products(base) + (spared + hidden) * LENGTH + attention(base)

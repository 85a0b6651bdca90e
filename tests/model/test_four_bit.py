"""Our reader of 4-bit weights against bitsandbytes' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.folders import EMBEDDED
from arc_ttt.errors import ModelError
from arc_ttt.model.four_bit import expand, read_expanded


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 70).map(lambda n: 2 * n),
    st.integers(1, 70).map(lambda n: 2 * n),
    st.sampled_from(["nf4", "fp4"]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_expanded_weights_are_those_of_bitsandbytes_bit_for_bit(
    rows: int, columns: int, kind: str, nested: bool, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    packed, state = quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    parts = {f".{name}": part for name, part in state.as_dict(packed=True).items()}
    assert torch.equal(expand(packed, parts), dequantize_4bit(packed, state))


def test_every_weight_of_the_embedded_model_is_read() -> None:
    weights = read_expanded(EMBEDDED, torch.float32)
    matrices = sum(weight.numel() for weight in weights.values() if weight.dim() == 2)
    assert matrices == Checkpoint.read(EMBEDDED).shape.matrix_weights
    assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize("fault", ["no file", "no weights", "part missing"])
def test_weights_that_cannot_be_read_are_named(tmp_path: Path, fault: str) -> None:
    if fault == "no weights":
        (tmp_path / "model.safetensors").write_bytes(b"not weights")
    elif fault == "part missing":
        state = torch.tensor(list(json.dumps({"shape": [2, 2], "blocksize": 64}).encode()), dtype=torch.uint8)
        named = {"a.weight": torch.zeros(2, 1, dtype=torch.uint8), "a.weight.quant_state.bitsandbytes__nf4": state}
        save_file(named, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=str(tmp_path)):
        read_expanded(tmp_path, torch.float32)

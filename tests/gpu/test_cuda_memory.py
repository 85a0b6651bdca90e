"""What only a GPU can tell: the memory plan against its allocator, and unsloth's kernels against our own decoder.

PYTHONPATH=src python -m pytest -m "slow or not slow" tests/test_cuda_memory.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.batches import cross_entropy_sum
from arc_ttt.checkpoints.memory_formulas import Device, activation_bytes, adapter_weights, weight_bytes
from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.model.attention import fused_groups
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings, Settings
from arc_ttt.worker.ready import check_backend, ready_solver
from support.llamas import config_of
from support.small_tokenizers import BOS, EOS, tokenizer_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),
]
SHAPE = LlamaShape(2048, 4, 32, 8, 64, 8192, 32_000, False)  # 374M parameters: layers are checkpointed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_for("architects", "llama").inner
    special = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    where = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**config_of(SHAPE), **special, max_position_embeddings=8192)).half().save_pretrained(
        where
    )
    tokenizer.save(str(where / "tokenizer.json"))
    return where


@pytest.mark.parametrize("length", [1024, 4096])
def test_a_step_takes_no_more_than_the_plan_says(folder: Path, length: int) -> None:
    cuda = torch.device("cuda", 0)
    before = torch.cuda.memory_allocated()
    base = load_model(ModelSettings(path=str(folder), format="architects"), cuda)
    weights = torch.cuda.memory_allocated() - before
    assert weights == pytest.approx(weight_bytes(SHAPE, four_bit=True), rel=0.05)
    ttt = Settings.of("llama-1b").ttt
    adapter = Adapter(base, ttt, seed=0)
    held = torch.cuda.memory_allocated() - before - weights
    assert held == pytest.approx(4 * adapter_weights(SHAPE, ttt), rel=0.05)
    ids = torch.randint(0, SHAPE.vocabulary, (1, length), device=cuda)
    batch = ids, torch.arange(length, device=cuda)[None], torch.rand(1, length, device=cuda) < 0.5
    base.training()
    peak = 0
    for _ in range(2):  # the second step holds the gradients of the first
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", dtype=base.dtype):
            loss = cross_entropy_sum(base.llama, batch) / length
        loss.backward()  # type: ignore[no-untyped-call]
        peak = torch.cuda.max_memory_allocated() - start
    assert all(weight.grad is not None for weight in adapter.parameters())
    device = Device(0, fused_groups(cuda))
    formula = activation_bytes(SHAPE, ttt, device, length, checkpointing=True, four_bit=True, targets=length // 2)
    print(f"{length} tokens: {peak / 2**20:.0f} MiB, formula {formula / 2**20:.0f} MiB")
    assert 0.5 * formula < peak <= 1.15 * formula


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed")
def test_unsloth_computes_what_our_decoder_computes(folder: Path) -> None:
    """Run it alone (-k unsloth): unsloth wants to be imported before transformers."""
    changes = {"model.path": str(folder), "model.backend": "unsloth"}
    solver, notes = ready_solver(Settings.of("llama-1b").override(changes.items()), torch.device("cuda", 0))
    assert notes == []
    assert solver.base.unsloth is not None
    print(f"largest relative difference of a hidden state: {check_backend(solver, solver.adapter):.4f}")

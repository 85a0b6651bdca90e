"""The memory plan: its formulas against counted allocations, and what it makes of known models and devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.batches import cross_entropy_sum
from arc_ttt.checkpoints.memory_formulas import (
    L4,
    T4,
    Device,
    activation_bytes,
    adapter_weights,
    cache_bytes,
    weight_bytes,
)
from arc_ttt.checkpoints.memory_plan import SHORTEST, MemoryPlan, fitted, plan
from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.decode.kv_cache import KVCache
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.presets import LINEAR_LAYERS
from arc_ttt.settings import ModelSettings, Settings, TttSettings
from support.llamas import LLAMA, config_of, preset
from support.peak_memory import PeakMemory
from support.small_tokenizers import BOS, EOS, tokenizer_for

CPU = torch.device("cpu")
torch.set_num_threads(1)
PAPER = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
GIB = 1024**3

# Formulas against what is allocated


@pytest.mark.parametrize(
    ("shape", "rank", "targets", "rows", "length", "shared", "checkpointing"),
    [
        (LlamaShape(64, 3, 4, 2, 16, 160, 50, True), 8, LINEAR_LAYERS, 2, 128, False, False),
        (LlamaShape(64, 3, 4, 2, 16, 160, 50, True), 8, LINEAR_LAYERS, 2, 128, True, True),
        (LlamaShape(64, 6, 4, 4, 16, 256, 64, True), 4, PAPER, 1, 256, True, False),
        (LlamaShape(96, 5, 4, 1, 24, 256, 100, True), 16, PAPER, 1, 400, False, True),
        (LlamaShape(64, 3, 4, 2, 16, 128, 4000, True), 8, PAPER, 1, 200, False, True),
    ],
    ids=["all layers", "checkpointed", "full heads", "one key head", "large vocabulary"],
)
def test_activations_are_what_a_step_allocates(
    monkeypatch: pytest.MonkeyPatch,
    shape: LlamaShape,
    rank: int,
    targets: tuple[str, ...],
    rows: int,
    length: int,
    shared: bool,
    checkpointing: bool,
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    if shared:  # what torch answers on CUDA, where 4-bit layers then share their adapters' inputs
        from peft.tuners.lora.layer import Linear

        monkeypatch.setattr(Linear, "_cast_input_dtype", lambda self, x, dtype: x)
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**config_of(shape))).to(torch.bfloat16).requires_grad_(False)
    if checkpointing:
        llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ttt = TttSettings(rank=rank, targets=targets)
    base = LoadedModel(llama, CompactFormat(), CPU, torch.bfloat16, False, shape.parameters)
    adapter = Adapter(base, ttt, seed=1)
    ids = torch.randint(0, shape.vocabulary, (rows, length))
    positions = torch.arange(length)[None].expand(rows, -1)
    marked = torch.rand(rows, length) < 0.3
    base.training()

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy_sum(llama, (ids, positions, marked))
        loss.backward()  # type: ignore[no-untyped-call]

    step()
    gradients = [w.grad for w in adapter.parameters() if w.grad is not None]
    assert sum(g.numel() for g in gradients) == adapter_weights(shape, ttt)
    with PeakMemory([*llama.parameters(), *gradients]) as memory:
        step()
    formula = activation_bytes(
        shape,
        ttt,
        Device(0),
        rows * length,
        checkpointing=checkpointing,
        four_bit=shared,
        targets=int(marked[:, 1:].sum()),
    )
    assert memory.peak == pytest.approx(formula, rel=0.12)


def test_weights_are_what_a_loaded_model_holds(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_for("marc", "llama").inner
    shape = LlamaShape(128, 3, 4, 2, 32, 512, tokenizer.get_vocab_size() + 6, False)
    special = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    with torch.random.fork_rng():
        LlamaForCausalLM(LlamaConfig(**config_of(shape), **special)).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = ModelSettings(path=str(tmp_path), format="marc", dequantize="never", dtype="bfloat16")
    base = load_model(settings, CPU)
    held = 0
    for weight in base.llama.parameters():
        if type(weight).__name__ != "Params4bit":  # on a CPU it is widened to float32
            held += weight.numel() * 2
            continue
        state = weight.quant_state
        held += weight.numel() + state.absmax.numel() + state.state2.absmax.numel() * 4
    assert held == pytest.approx(weight_bytes(shape, four_bit=True), rel=0.001)
    assert shape.parameters == base.parameters
    plain = sum(w.numel() for w in load_model(replace(settings, quantize="none"), CPU).llama.parameters())
    assert 2 * plain == weight_bytes(shape, four_bit=False)


def test_an_adapter_costs_its_weights_and_the_optimizer_its_moments() -> None:
    weight = torch.nn.Parameter(torch.zeros(40, 30))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = [s for s in optimizer.state[weight].values() if s.numel() > 1]
    found = plan(LlamaShape.of(LLAMA["1B"]), L4, preset("1B").ttt, four_bit=True, checkpointing=True)
    held = weight.grad.nbytes + sum(moment.nbytes for moment in moments)
    assert found.optimizer / found.adapter == held / weight.nbytes


def test_a_cache_is_as_large_as_its_tensors() -> None:
    from transformers import LlamaConfig

    shape = LlamaShape(64, 3, 4, 2, 16, 160, 50, True)
    cache = KVCache(LlamaConfig(**config_of(shape)), 5, 77, CPU, torch.bfloat16)
    assert cache_bytes(shape, 5, 77, 2) == cache.keys.nbytes + cache.values.nbytes


# Known models


@pytest.mark.parametrize(
    ("name", "weights", "adapter"),
    [("1B", 1_235_814_400, 76.5e6), ("3B", 3_212_749_824, 157.8e6), ("8B", 8_030_261_248, 297.96e6)],
)
def test_published_sizes(name: str, weights: int, adapter: float) -> None:
    """Parameters of the checkpoints, and of the paper's adapters at rank 128."""
    shape = LlamaShape.of(LLAMA[name])
    assert shape.parameters == weights
    assert adapter_weights(shape, preset(name).ttt) == pytest.approx(adapter, rel=0.001)


@pytest.mark.parametrize("name", ["1B", "3B", "8B"])
def test_the_presets_fit_both_kaggle_devices(name: str) -> None:
    settings = preset(name)
    for device, least in ((T4, 4096 if name == "8B" else 8192), (L4, 8192)):
        found = plan(LlamaShape.of(LLAMA[name]), device, settings.ttt, four_bit=True, checkpointing=True)
        assert found.tokens >= least
        fit, notes = fitted(settings, found)
        assert fit.ttt.max_sequence_tokens == min(8192, found.tokens)
        assert bool(notes) == (found.tokens < 8192)
        assert found.views(8192, 930, 8, 8)[0] >= 1
        assert found.views(2000, 200, 8, 8)[1] == 8
    unpacked = plan(LlamaShape.of(LLAMA["8B"]), T4, preset("8B").ttt, four_bit=False, checkpointing=True)
    assert unpacked.tokens == 0


def test_repeated_keys_cost_memory_on_a_t4() -> None:
    shape = LlamaShape.of(LLAMA["8B"])
    ttt = preset("8B").ttt
    fused, repeated = (
        activation_bytes(shape, ttt, Device(0, fused_groups=fused), 8192, checkpointing=False, four_bit=True)
        for fused in (True, False)
    )
    assert repeated - fused == 8192 * shape.layers * 2 * (shape.heads - shape.heads_kv) * shape.head * 2


# Plans

shapes = st.builds(
    lambda head, kv, groups, layers, wide, vocabulary, tied: LlamaShape(
        head * kv * groups, layers, kv * groups, kv, head, wide, vocabulary, tied
    ),
    st.sampled_from([32, 64, 128]),
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 40),
    st.integers(64, 16_000),
    st.integers(20, 130_000),
    st.booleans(),
)
devices = st.builds(Device, st.integers(1, 40).map(lambda gib: gib * GIB), st.booleans())


@given(shapes, devices, st.integers(1, 256), st.booleans(), st.booleans())
@hypothesis_settings(deadline=None, max_examples=60)
def test_a_plan_fills_the_device_and_no_more(
    shape: LlamaShape, device: Device, rank: int, four_bit: bool, checkpointing: bool
) -> None:
    ttt = TttSettings(rank=rank)
    found = plan(shape, device, ttt, four_bit=four_bit, checkpointing=checkpointing)

    def bytes_with(tokens: int) -> int:
        activations = activation_bytes(shape, ttt, device, tokens, checkpointing=checkpointing, four_bit=four_bit)
        return found.weights + found.adapter + found.optimizer + activations

    if found.tokens:
        assert bytes_with(found.tokens) <= device.usable
    assert found.tokens == 2**20 - 1 or bytes_with(max(found.tokens + 1, SHORTEST)) > device.usable


@given(shapes, devices, st.integers(1, 9000), st.integers(1, 1900), st.integers(1, 32), st.integers(1, 32))
@hypothesis_settings(deadline=None, max_examples=60)
def test_views_fit_and_are_at_most_those_wanted(
    shape: LlamaShape, device: Device, prompt: int, answer: int, batch_views: int, kept_views: int
) -> None:
    found = plan(shape, device, TttSettings(), four_bit=True, checkpointing=True)
    batch, kept = found.views(prompt, answer, batch_views, kept_views)
    assert 1 <= batch <= batch_views
    assert 1 <= kept <= kept_views
    if batch > 1 or kept > 1:
        batches = -(-kept // batch)
        caches = cache_bytes(shape, (batches + 3) * batch, prompt + answer, device.itemsize)
        assert found.weights + found.adapter + caches <= device.usable


@given(shapes, devices)
@hypothesis_settings(deadline=None, max_examples=60)
def test_the_decoder_copies_plain_layers_only_where_there_is_room(shape: LlamaShape, device: Device) -> None:
    found = plan(shape, device, TttSettings(), four_bit=False, checkpointing=True)
    assert found.fused in (0, shape.linear_weights * device.itemsize)
    assert found.fused <= max(0, device.usable / 4)
    assert plan(shape, device, TttSettings(), four_bit=True, checkpointing=True).fused == 0


def a_plan(tokens: int) -> MemoryPlan:
    return MemoryPlan(LlamaShape.of(LLAMA["8B"]), T4, 5 * GIB, GIB, 3 * GIB, 0, tokens)


def test_settings_that_fit_stay_and_others_are_cut_with_a_word() -> None:
    settings = Settings().override([("ttt.max_sequence_tokens", 4000), ("ttt.micro_batch_tokens", 6000)])
    assert fitted(settings, a_plan(6000)) == (settings, [])
    fewer, notes = fitted(settings, a_plan(5000))
    assert (fewer.ttt.max_sequence_tokens, fewer.ttt.micro_batch_tokens, notes) == (4000, 5000, [])
    shorter, notes = fitted(settings, a_plan(3000))
    assert (shorter.ttt.max_sequence_tokens, shorter.ttt.micro_batch_tokens) == (3000, 3000)
    assert len(notes) == 1
    assert "3000" in notes[0].text
    assert "4000" in notes[0].text


def test_no_tokens_given_means_what_fits() -> None:
    settings = preset("8B")
    assert settings.ttt.micro_batch_tokens == 0
    assert fitted(settings, a_plan(20_000))[0].ttt.micro_batch_tokens == 20_000


def test_what_cannot_be_trained_is_answered_without() -> None:
    without, notes = fitted(preset("8B"), a_plan(0))
    assert without.ttt.scope == "none"
    assert "9.0 GiB" in notes[0].text
    assert notes[0].less
    assert fitted(without, a_plan(0)) == (without, [])

"""Loading a Llama: what is stored and computed, the traps of the libraries, and folders that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.batches import collate, cross_entropy_sum
from arc_ttt.checkpoints.folders import EMBEDDED, EMBEDDED_M, model_folder
from arc_ttt.deadline import Deadline
from arc_ttt.decode.decoder import Decoder
from arc_ttt.decode.greedy import greedy
from arc_ttt.decode.prompts import PromptBatch
from arc_ttt.errors import ModelError
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.model.attention import fused_groups, hidden_states, repeat_groups
from arc_ttt.model.cuda import compute_dtype
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import ModelSettings, TttSettings
from arc_ttt.tasks.grids import Example, Task, freeze
from support.small_tokenizers import BOS, EOS, tokenizer_for

CPU = torch.device("cpu")
torch.set_num_threads(1)  # more would wait for each other where cores are shared


def load(folder: Path | str = "", **changes: Any) -> LoadedModel:
    return load_model(ModelSettings(path=str(folder), dtype="float32", **changes), CPU, seed=3)


@pytest.fixture(scope="module")
def expanded() -> LoadedModel:
    return load()


@pytest.fixture(scope="module")
def four_bit() -> LoadedModel:
    return load(dequantize="never")


def grid(*rows: str) -> Any:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


TASK = Task("t", (Example(grid("012", "340"), grid("21", "04")), Example(grid("55"), grid("5"))), (grid("70", "07"),))


@torch.no_grad()
def logits(base: LoadedModel) -> torch.Tensor:
    """Logits of a prompt, everywhere, through the library."""
    prompt = base.form.encode(TASK.train, TASK.tests[0])
    ids, positions = torch.from_numpy(prompt.ids)[None], torch.from_numpy(prompt.positions)[None]
    return base.llama.lm_head(hidden_states(base.llama, ids, positions)).float()


def four_bit_layers(llama: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in llama.named_modules() if type(module).__name__ == "Linear4bit"]


# The embedded models


def test_the_embedded_model_suits_the_device() -> None:
    assert model_folder("") == model_folder("embedded-XS") == EMBEDDED
    assert model_folder("", gpu=True) == model_folder("embedded-M") == EMBEDDED_M
    assert model_folder("some/where") == Path("some/where")
    larger = load("embedded-M")
    assert larger.parameters > 25e6
    assert isinstance(larger.form, CompactFormat)


def test_the_stored_weights_are_packed_in_four_bits_with_double_quantization() -> None:
    config = json.loads((EMBEDDED / "config.json").read_text())
    quantization = config["quantization_config"]
    assert quantization["load_in_4bit"]
    assert quantization["bnb_4bit_quant_type"] == "nf4"
    assert quantization["bnb_4bit_use_double_quant"]
    with safe_open(EMBEDDED / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    linear = [name for name in tensors if name.endswith("_proj.weight")]
    assert len(linear) == 7 * config["num_hidden_layers"]
    assert all(tensors[name].dtype == torch.uint8 for name in linear)
    width = config["num_attention_heads"] * config["head_dim"]
    packed = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert packed.numel() * 2 == width * config["hidden_size"]
    assert all(f"{name}.nested_absmax" in tensors for name in linear)


def test_the_embedded_model_loads_and_is_expanded(expanded: LoadedModel, four_bit: LoadedModel) -> None:
    assert isinstance(expanded.form, CompactFormat)
    assert not expanded.four_bit
    assert four_bit.four_bit
    assert expanded.parameters == four_bit.parameters == sum(p.numel() for p in expanded.llama.parameters())
    assert not expanded.llama.training
    assert not any(weight.requires_grad for weight in expanded.llama.parameters())
    assert {weight.dtype for weight in expanded.llama.parameters()} == {torch.float32}


def test_expanded_weights_are_what_the_four_bits_stand_for(expanded: LoadedModel, four_bit: LoadedModel) -> None:
    from bitsandbytes.functional import dequantize_4bit

    plain = dict(expanded.llama.named_modules())
    layers = four_bit_layers(four_bit.llama)
    assert len(layers) == 42
    for name, layer in layers:
        want = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        assert type(plain[name]) is torch.nn.Linear
        assert torch.equal(plain[name].weight, want), name
        assert want.unique().numel() > 16  # blocks have scales of their own


def test_four_bit_and_expanded_compute_the_same(expanded: LoadedModel, four_bit: LoadedModel) -> None:
    torch.testing.assert_close(logits(four_bit), logits(expanded), rtol=1e-4, atol=1e-4)


def test_four_bit_layers_compute_in_the_type_of_the_device_not_of_the_file() -> None:
    """Trap: a checkpoint stores a compute type. A T4 would emulate the bfloat16 that most of them name."""
    base = load_model(ModelSettings(dequantize="never", dtype="float16"), CPU)
    assert base.dtype == torch.float16
    assert {layer.compute_dtype for _, layer in four_bit_layers(base.llama)} == {torch.float16}


# Traps


def test_the_first_token_reaches_the_last_logits_across_jumps_of_the_positions(expanded: LoadedModel) -> None:
    """Trap: without an attention mask the library takes each jump of the 2-D positions for a new sequence."""
    prompt = expanded.form.encode(TASK.train, TASK.tests[0])
    assert (np.diff(prompt.positions) != 1).any()
    ids, positions = torch.from_numpy(prompt.ids)[None], torch.from_numpy(prompt.positions)[None]
    other = ids.clone()
    other[0, 1] = (other[0, 1] + 1) % 10
    with torch.no_grad():
        first, second = (hidden_states(expanded.llama, x, positions)[0, -1] for x in (ids, other))
        cut = [
            expanded.llama.model(input_ids=x, position_ids=positions, use_cache=False)[0][0, -1] for x in (ids, other)
        ]
    assert (first - second).abs().max() > 1e-3
    assert torch.equal(cut[0], cut[1])  # the trap is still there; once it is gone, the mask may go


def test_padding_to_the_right_changes_nothing(expanded: LoadedModel) -> None:
    prompt = expanded.form.encode(TASK.train, TASK.tests[0])
    ids, positions = torch.from_numpy(prompt.ids)[None], torch.from_numpy(prompt.positions)[None]
    padded = torch.nn.functional.pad(ids, (0, 5), value=expanded.form.pad)
    wider = torch.nn.functional.pad(positions, (0, 5))
    with torch.no_grad():
        alone = hidden_states(expanded.llama, ids, positions)
        beside = hidden_states(expanded.llama, padded, wider)[:, : len(prompt)]
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-5)


def test_loading_keeps_float32_products_exact() -> None:
    """Trap: reduced precision rounds the angles of positions above 2048."""
    torch.set_float32_matmul_precision("high")
    try:
        load()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_no_layer_is_armed_to_repack_its_weights(four_bit: LoadedModel) -> None:
    """Trap: on CPUs with bfloat16 instructions the first forward without gradients repacks the weights."""
    layers = [layer for _, layer in four_bit_layers(four_bit.llama)]
    assert layers
    assert all(hasattr(layer, "support_avx512bf16_for_cpu") for layer in layers)  # else the switch has moved
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_gradients_after_a_decode_are_those_without_one() -> None:
    """Trap: see above; gradients after the repacking are wrong without any error."""

    def gradients(decode_first: bool) -> dict[str, torch.Tensor]:
        base = load(dequantize="never")
        adapter = Adapter(base, TttSettings(rank=4), seed=1)
        if decode_first:
            prompt = base.form.encode(TASK.train, TASK.tests[0])
            greedy(PromptBatch(Decoder(base), [prompt], [(2, 2)]), Deadline.never())
            logits(base)
        sequence = base.form.encode(TASK.train, TASK.train[0].input, TASK.train[0].output)
        cross_entropy_sum(base.llama, collate([sequence], base.form.pad, CPU)).backward()
        return {name: w.grad for name, w in adapter.trainable.items() if "lora_B" in name and w.grad is not None}

    without, after = gradients(False), gradients(True)
    assert len(without) == 42
    assert all(gradient.abs().max() > 0 for gradient in without.values())
    for name, gradient in without.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6)


def test_compute_types_follow_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap: torch says that a T4 supports bfloat16, and then emulates it."""
    gpu = torch.device("cuda", 0)
    for capability, want in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert compute_dtype("auto", gpu) == want
    assert compute_dtype("float16", gpu) == torch.float16
    for has, want in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr("arc_ttt.model.cuda.cpu_has_bfloat16", lambda has=has: has)
        assert compute_dtype("auto", CPU) == want


# Random start


def test_a_random_start_is_the_same_for_a_seed_and_no_checkpoint(expanded: LoadedModel) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        llama = load_model(ModelSettings(random_start=True, dtype="float32"), CPU, seed=seed).llama
        return dict(llama.named_parameters())

    state = torch.random.get_rng_state()
    one, again, other = start(1), start(1), start(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    stored = dict(expanded.llama.named_parameters())
    assert one.keys() == stored.keys()
    for name, weight in one.items():
        assert torch.equal(weight, again[name])
        assert weight.shape == stored[name].shape
        if not name.endswith("norm.weight"):
            assert not torch.equal(weight, other[name])
            assert not torch.equal(weight, stored[name])


# Folders that cannot be used


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "some checkpoint"
    shutil.copytree(EMBEDDED, copy)
    return copy


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(path, **changes)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path / "nowhere")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refusal(folder)


@pytest.mark.parametrize("config", ['{"model_type": "qwen2"}', "{}", "[]", "null", '"llama"'])
def test_a_config_that_is_no_llama(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    assert "llama" in refusal(folder)


@pytest.mark.parametrize("config", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
def test_a_config_that_is_no_json(folder: Path, config: bytes) -> None:
    (folder / "config.json").write_bytes(config)
    assert "JSON" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 7, 5000, 1_000_000])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refusal(folder)


def test_weights_with_a_tensor_missing(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in refusal(folder)


def test_a_format_that_does_not_fit_the_vocabulary(folder: Path) -> None:
    assert "tokenizer.json" in refusal(folder, format="marc")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 32}))
    refusal(folder, random_start=True)


# A mounted 16-bit checkpoint with its own tokenizer


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By format, the folder of a tiny random Llama in bfloat16 with a tokenizer trained on the format's texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folders = {}
    for name in ("architects", "marc"):
        tokenizer = tokenizer_for(name, "llama").inner
        config = LlamaConfig(
            vocab_size=tokenizer.get_vocab_size() + 6,  # as real checkpoints, more rows than tokens
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=tokenizer.token_to_id(BOS),
            eos_token_id=[tokenizer.token_to_id(EOS), tokenizer.token_to_id("<|eot_id|>")],
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            llama = LlamaForCausalLM(config).to(torch.bfloat16)
        folders[name] = tmp_path_factory.mktemp(name)
        llama.save_pretrained(folders[name])
        tokenizer.save(str(folders[name] / "tokenizer.json"))
    return folders


@pytest.mark.parametrize("quantize", ["nf4", "none"])
@pytest.mark.parametrize("name", ["architects", "marc"])
def test_a_mounted_checkpoint_is_quantized_as_asked_and_writes_grids(
    mounted: dict[str, Path], name: str, quantize: str
) -> None:
    base = load(mounted[name], format=name, quantize=quantize, dequantize="never")
    assert base.form.name == name
    assert base.four_bit == (quantize == "nf4")
    assert len(four_bit_layers(base.llama)) == (14 if quantize == "nf4" else 0)
    prompt = base.form.encode(TASK.train, TASK.tests[0])
    answers = greedy(PromptBatch(Decoder(base), [prompt, prompt], [(2, 2), (1, 3)]), Deadline.never())
    shapes = [answer.grid.shape for answer in answers if answer.grid is not None]
    assert len(shapes) == 2
    assert max(shapes[0]) <= 2
    assert shapes[1][0] == 1
    assert base.parameters == load(mounted[name], format=name, quantize="none").parameters


def test_tied_and_grouped_layers_survive_expansion(mounted: dict[str, Path]) -> None:
    packed = load(mounted["marc"], format="marc", dequantize="never")
    plain = load(mounted["marc"], format="marc", dequantize="always")
    assert packed.four_bit
    assert not plain.four_bit
    torch.testing.assert_close(logits(plain), logits(packed), rtol=1e-4, atol=1e-4)
    assert plain.llama.lm_head.weight.data_ptr() == plain.llama.model.embed_tokens.weight.data_ptr()


def test_a_damaged_tokenizer(mounted: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mounted["marc"], copy)
    (copy / "tokenizer.json").write_text('{"version": ')
    assert "tokenizer.json" in refusal(copy, format="marc")


@pytest.mark.parametrize("changes", [{"eos_token_id": None}, {"eos_token_id": 10**6}, {"bos_token_id": 10**6}])
def test_special_tokens_that_the_tokenizer_does_not_have(
    mounted: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mounted["architects"], copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    refusal(copy, format="architects")


# Grouped key heads where no kernel takes them


def test_a_gpu_below_capability_8_has_no_kernel_for_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for capability, want in (((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert fused_groups(gpu) == want
    assert fused_groups(CPU)


def test_repeated_keys_attend_as_grouped_ones(mounted: dict[str, Path]) -> None:
    base = load(mounted["marc"], format="marc", quantize="none")
    assert base.llama.config.num_key_value_heads < base.llama.config.num_attention_heads
    want = logits(base)
    repeat_groups(base.llama)
    torch.testing.assert_close(logits(base), want, rtol=1e-5, atol=1e-5)


def test_the_decoder_repeats_keys_to_the_same_answers(mounted: dict[str, Path]) -> None:
    base = load(mounted["marc"], format="marc", quantize="none")
    prompts = [base.form.encode(TASK.train, TASK.tests[0]), base.form.encode(TASK.train[:1], TASK.tests[0])]
    answers = []
    for repeats in (False, True):
        decoder = Decoder(base)
        decoder.repeats = repeats
        answers.append(greedy(PromptBatch(decoder, prompts, [(3, 3), (3, 3)]), Deadline.never()))
    for one, other in zip(*answers, strict=True):
        assert one.grid is not None
        assert other.grid is not None
        assert np.array_equal(one.grid, other.grid)
        assert one.nll == pytest.approx(other.nll, rel=1e-5)

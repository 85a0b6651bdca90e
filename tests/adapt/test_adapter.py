"""Adapters: nothing at the start, nothing else moves, and back again bit for bit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arc_ttt.adapt.adapter import Adapter, effective_weight, narrow
from arc_ttt.adapt.batches import shuffled_steps
from arc_ttt.adapt.sequences import ttt_sequences
from arc_ttt.adapt.training import train
from arc_ttt.deadline import Deadline
from arc_ttt.errors import ModelError
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.attention import hidden_states
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import ModelSettings, TttSettings
from arc_ttt.tasks.grids import Example, Task, freeze

CPU = torch.device("cpu")
torch.set_num_threads(1)  # more would wait for each other where cores are shared
KINDS = ("lora", "lora on 4 bits", "full")
SETTINGS = TttSettings(rank=4, max_sequences=4, batch_sequences=2, learning_rate=5e-3)


def grid(*rows: str) -> Any:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


TASK_A = Task("a", (Example(grid("12", "30"), grid("21", "03")), Example(grid("45"), grid("54"))), (grid("67"),))
TASK_B = Task("b", (Example(grid("111"), grid("2")), Example(grid("33", "33"), grid("4"))), (grid("55"),))


def load(kind: str) -> LoadedModel:
    return load_model(ModelSettings(dtype="float32", dequantize="never" if "4 bits" in kind else "auto"), CPU)


def attach(kind: str, **changes: Any) -> tuple[LoadedModel, Adapter]:
    base = load(kind)
    return base, Adapter(base, settings(kind, **changes), seed=5)


def settings(kind: str, **changes: Any) -> TttSettings:
    return dataclasses.replace(SETTINGS, adapter="full" if kind == "full" else "lora", **changes)


def sequences(base: LoadedModel, task: Task) -> list[TokenSequence]:
    return ttt_sequences(task, base.form, SETTINGS, np.random.default_rng(1))


def teach(base: LoadedModel, adapter: Adapter, task: Task, kind: str) -> list[float]:
    steps = shuffled_steps(sequences(base, task), epochs=1, batch_sequences=2, rng=np.random.default_rng(2))
    return train(base, adapter.parameters(), steps, settings(kind), Deadline.never()).losses


@torch.no_grad()
def logits(base: LoadedModel) -> torch.Tensor:
    prompt = base.form.encode(TASK_A.train, TASK_A.tests[0])
    ids, positions = torch.from_numpy(prompt.ids)[None], torch.from_numpy(prompt.positions)[None]
    return base.llama.lm_head(hidden_states(base.llama, ids, positions)).float()


def snapshot(llama: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in llama.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_the_adapted_model_computes_what_the_base_computes(kind: str) -> None:
    plain = logits(load(kind))
    base, adapter = attach(kind)
    assert torch.equal(logits(base), plain)
    teach(base, adapter, TASK_A, kind)
    assert (logits(base) - plain).abs().max() > 1e-2  # the adapter does reach the logits
    adapter.reset()
    assert torch.equal(logits(base), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapter_weights_move(kind: str) -> None:
    base, adapter = attach(kind)
    before = snapshot(base.llama)
    teach(base, adapter, TASK_A, kind)
    after = snapshot(base.llama)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= set(adapter.trainable)
    assert all(weight.dtype == torch.float32 for weight in adapter.trainable.values())
    if kind == "full":
        assert moved == set(before)
    else:
        assert moved == {name for name in before if "lora_" in name}
        assert len(moved) == 2 * 7 * base.llama.config.num_hidden_layers


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_leaves_nothing_behind_for_the_next(kind: str) -> None:
    base, adapter = attach(kind)
    fresh = snapshot(base.llama)
    first = teach(base, adapter, TASK_B, kind)
    taught, answers = snapshot(base.llama), logits(base)
    adapter.reset()
    assert same(snapshot(base.llama), fresh)
    assert all(weight.grad is None for weight in adapter.parameters())
    teach(base, adapter, TASK_A, kind)
    adapter.reset()
    assert same(snapshot(base.llama), fresh)
    assert teach(base, adapter, TASK_B, kind) == first
    assert same(snapshot(base.llama), taught)
    assert torch.equal(logits(base), answers)


def test_a_fresh_adapter_follows_its_seed_and_leaves_other_random_numbers_alone() -> None:
    bases = [load("lora") for _ in range(3)]
    state = torch.random.get_rng_state()
    one, again, other = (Adapter(base, SETTINGS, seed=seed) for base, seed in zip(bases, (5, 5, 6), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(dict(one.trainable), dict(again.trainable))
    assert not same(dict(one.trainable), dict(other.trainable))


def test_full_weights_need_plain_weights() -> None:
    with pytest.raises(ModelError, match="dequantize=always"):
        Adapter(load("lora on 4 bits"), settings("full"), seed=0)


def test_the_head_may_have_an_adapter_and_targets_are_all_there_is() -> None:
    _, adapter = attach("lora", targets=("q_proj", "lm_head"))
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapter.trainable}
    assert layers == {"q_proj", "lm_head"}


@pytest.mark.parametrize("rslora", [True, False])
def test_the_scale_of_an_adapter(rslora: bool) -> None:
    base, _ = attach("lora", rslora=rslora, rank=4, alpha=6.0)
    layer = base.llama.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(3.0 if rslora else 1.5)


# On the disk


def test_saved_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    base, adapter = attach("lora")
    teach(base, adapter, TASK_A, "lora")
    taught = snapshot(base.llama)
    path = tmp_path / "new folder" / "adapter.safetensors"
    adapter.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    adapter.reset()
    adapter.load(path)
    assert same(snapshot(base.llama), taught)


def test_files_that_are_no_adapter_of_this_model_are_refused_and_change_nothing(tmp_path: Path) -> None:
    base, adapter = attach("lora")
    teach(base, adapter, TASK_A, "lora")
    before = snapshot(base.llama)
    good = tmp_path / "good.safetensors"
    adapter.save(good)
    whole = good.read_bytes()
    tensors = load_file(good)
    last = list(adapter.trainable)[-1]
    cases: dict[str, bytes | dict[str, torch.Tensor] | None] = {
        "missing": None,
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "garbage": b"\x80\x04pickle" * 100,
        "fewer": {name: tensor for name, tensor in tensors.items() if name != last},
        "other names": {f"x{name}": tensor for name, tensor in tensors.items()},
        "other rank": {**{name: torch.zeros_like(t) for name, t in tensors.items()}, last: torch.zeros(3, 3)},
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.safetensors"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            save_file(content, path)
        with pytest.raises(ModelError, match=r"adapter|wanted"):
            adapter.load(path)
        assert same(snapshot(base.llama), before), name


def test_after_a_joint_stage_resets_return_to_it_and_the_base_is_still_there() -> None:
    plain = logits(load("lora"))
    base, adapter = attach("lora")
    fresh = snapshot(base.llama)
    teach(base, adapter, TASK_A, "lora")
    joint = snapshot(base.llama)
    adapter.rebase()
    teach(base, adapter, TASK_B, "lora")
    adapter.reset()
    assert same(snapshot(base.llama), joint)
    adapter.reset(to_base=True)
    assert same(snapshot(base.llama), fresh)
    assert torch.equal(logits(base), plain)
    adapter.reset()
    assert same(snapshot(base.llama), joint)


def test_frozen_weights_in_the_compute_type_train_to_the_same_numbers() -> None:
    """What a GPU does with a small model, here under a CPU's autocast: rounded once or in every call is the same."""
    wide, wide_adapter = attach("lora")
    thin, thin_adapter = attach("lora")
    narrow(thin.llama, torch.bfloat16)
    by_type: dict[torch.dtype, set[str]] = {}
    for name, weight in thin.llama.named_parameters():
        by_type.setdefault(weight.dtype, set()).add(name)
    linear = {f"{name}.weight" for name, _ in thin.llama.named_modules() if name.endswith("base_layer")}
    assert by_type[torch.bfloat16] == linear
    assert len(linear) == 42
    assert by_type.keys() == {torch.bfloat16, torch.float32}  # adapters, norms and embeddings stay wide
    losses = []
    for base, adapter in ((wide, wide_adapter), (thin, thin_adapter)):
        base.dtype = torch.bfloat16
        losses.append(teach(base, adapter, TASK_A, "lora"))
    assert losses[0] == losses[1]
    assert same(
        {name: weight.detach() for name, weight in wide_adapter.trainable.items()},
        {name: weight.detach() for name, weight in thin_adapter.trainable.items()},
    )


def test_a_small_change_is_not_lost_in_a_narrow_weight() -> None:
    """The change is added in float32: added in bfloat16, a tenth of its last place would vanish."""
    base, adapter = attach("lora")
    narrow(base.llama, torch.bfloat16)
    for name, weight in adapter.trainable.items():
        if "lora_B" in name:
            weight.data.fill_(1e-4)
    layer = base.llama.model.layers[0].self_attn.q_proj
    found = effective_weight(layer)
    assert found is not None
    delta = layer.get_delta_weight("default").detach()
    assert delta.abs().max() > 0
    torch.testing.assert_close(found - layer.base_layer.weight.detach().float(), delta, rtol=1e-2, atol=1e-7)


ATTACH = """
import sys, torch
sys.path.insert(0, sys.argv[1])
{before}
from arc_ttt.adapt.adapter import Adapter
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings, TttSettings
base = load_model(ModelSettings(dtype="float32", quantize="none"), torch.device("cpu"))
adapter = Adapter(base, TttSettings(rank=4), seed=1)
assert all("lora_" in name for name in adapter.trainable)
print(len(adapter.trainable))
"""
REFUSES = """
from peft.tuners.lora import torchao
try: torchao.is_torchao_available()
except ImportError: pass
else: sys.exit("this peft takes any torchao")
"""


@pytest.mark.parametrize(
    ("package", "code", "before"),
    [("torchao", "", REFUSES), ("bitsandbytes", "raise OSError('no such library')", "")],
    ids=["an older torchao than peft wants, as on Kaggle's image", "a bitsandbytes that does not import"],
)
def test_a_package_that_would_break_peft_costs_no_adapter(tmp_path: Path, package: str, code: str, before: str) -> None:
    """In a process of its own, which has imported neither of them."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(code)
    about = tmp_path / f"{package}-0.10.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.10.0\n")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    command = [sys.executable, "-c", ATTACH.format(before=before), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0

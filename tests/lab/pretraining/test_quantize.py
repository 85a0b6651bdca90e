"""Quantizing a checkpoint: what is stored, that it reloads to the same bits, what it costs, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from arc_lab.data.datasets import held_out_tasks
from arc_lab.data.packs import Pack, pair_bytes, read_pack, write_pack
from arc_lab.folders import part_of, replace_folder
from arc_lab.pretraining.model import new_llama, save_model
from arc_lab.pretraining.quantization_cost import Cost, KeptAnswers, Measurement, Questions, cost_lines, measure
from arc_lab.pretraining.quantize import SMALL, different_tensors, main, quantize
from arc_lab.pretraining.settings import PRESETS, Preset
from arc_ttt.checkpoints.folders import EMBEDDED
from arc_ttt.errors import ModelError
from arc_ttt.model.load import load_model
from arc_ttt.settings import ModelSettings, Settings
from arc_ttt.tasks.grids import Grid, Task, freeze

CPU = torch.device("cpu")
TINY = Preset(64, 2, 2, 128, 256, 512, 0.02, 4e-3, 24, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "model"
    save_model(new_llama(TINY, "longrope", seed=4), folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def nf4(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "nf4"
    quantize(model, folder)
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    rng = np.random.default_rng(0)
    grids = [freeze(rng.integers(0, 10, (2, 2))) for _ in range(12)]
    groups = [
        (
            {"name": f"rearc/{split}", "family": split, "split": split, "held_pairs": held},
            [pair_bytes((grid, grid)) for grid in grids],
        )
        for split, held in (("train", 6), ("held-out", 0))
    ]
    path = tmp_path_factory.mktemp("pack") / "p.pack"
    write_pack(path, {"settings": {}}, groups)
    return read_pack(path)


def load(folder: Path, dequantize: str = "never"):  # type: ignore[no-untyped-def]
    return load_model(ModelSettings(path=str(folder), dequantize=dequantize, dtype="float32"), CPU)


def test_linear_layers_are_nf4_with_double_quantization_and_reload_bit_for_bit(model: Path, nf4: Path) -> None:
    config = json.loads((nf4 / "config.json").read_text())["quantization_config"]
    assert config["bnb_4bit_quant_type"] == "nf4"
    assert config["bnb_4bit_use_double_quant"]
    fresh = load_model(ModelSettings(path=str(model), quantize="nf4", dequantize="never", dtype="float32"), CPU)
    stored = load(nf4)
    assert stored.four_bit
    assert different_tensors(fresh, stored) == []
    assert sum(type(m).__name__ == "Linear4bit" for m in stored.llama.modules()) == 14
    assert sum(f.stat().st_size for f in nf4.glob("*.safetensors")) < 0.4 * (model / "model.safetensors").stat().st_size


def test_a_changed_bit_is_seen(nf4: Path) -> None:
    first, second = load(nf4), load(nf4)
    with torch.no_grad():
        second.llama.model.layers[0].mlp.up_proj.weight.data[5] ^= 1
    assert different_tensors(first, second) == ["model.layers.0.mlp.up_proj.weight"]


def test_the_cost_is_paired() -> None:
    cost = Cost((True, True, False, False), (True, False, False, False))
    assert cost.difference == -0.25
    assert cost.standard_error == pytest.approx(np.std([0, -1, 0, 0]) / 2)
    assert Cost((), ()).document()["n"] == 0


def test_tasks_of_held_out_groups_hold_no_answer(pack: Pack) -> None:
    tasks = held_out_tasks(pack, 3, 256)
    assert len(tasks) == 3
    assert all(len(task.train) == 3 and len(task.tests) == 1 for task, _ in tasks)
    assert all(task.task_id.startswith("rearc-held-out") for task, _ in tasks)


def test_costs_before_and_after_test_time_training_go_on_after_an_interruption(
    model: Path, nf4: Path, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings().override([*SMALL.items(), ("ttt.max_sequences", 4), ("ttt.rank", 4)])
    kept, said, real = tmp_path / "kept.json", list[str](), Measurement._solved

    def told(line: str) -> None:
        said.append(line)
        if "1 of 2 tasks" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, nf4, Questions(pack, sequences=6, tasks=2), settings, kept=kept, say=told)
    assert [line.split("  ")[1].split(":")[0] for line in said] == [
        "6 pairs, train, plain weights",
        "6 pairs, train, four bits",
        "6 pairs, held-out, plain weights",
        "6 pairs, held-out, four bits",
        "1 of 2 tasks",
    ]
    computed = []

    def solved(self: Measurement, kind: str, task: Task, answer: Grid) -> tuple[bool, bool]:
        computed.append((kind, task.task_id))
        return real(self, kind, task, answer)

    monkeypatch.setattr(Measurement, "_exact", lambda *_: pytest.fail("measured a second time"))
    monkeypatch.setattr(Measurement, "_solved", solved)
    costs = measure(model, nf4, Questions(pack, sequences=6, tasks=2), settings, kept=kept, say=said.append)
    second = held_out_tasks(pack, 2, 512)[1][0].task_id
    assert computed == [("plain weights", second), ("four bits", second)]
    assert {name: cost["n"] for name, cost in costs.items()} == {
        "pairs of seen generators, before": 6,
        "pairs of held-out generators, before": 6,
        "tasks of held-out generators, before": 2,
        "tasks of held-out generators, after": 2,
    }
    again = measure(model, nf4, Questions(pack, sequences=6, tasks=2), settings, kept=kept, say=said.append)
    assert again == costs
    assert len(computed) == 2


def test_what_was_kept_counts_for_the_same_question_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    assert KeptAnswers(path, "one").part("a", lambda: [True, False]) == (True, False)
    assert KeptAnswers(path, "one").part("a", lambda: pytest.fail("known")) == (True, False)
    assert KeptAnswers(path, "two").part("a", lambda: [False]) == (False,)
    path.write_text("[1, 2")
    assert KeptAnswers(path, "two").part("a", lambda: [True]) == (True,)


def test_a_cost_of_more_than_two_points_is_followed_by_advice() -> None:
    much = Cost((True,) * 100, (True,) * 90 + (False,) * 10)
    assert [line.strip()[:18] for line in cost_lines({"x": much.document()})] == [
        "x test-time traini",
        "more than 2 points",
    ]
    noisy = Cost((True,) * 20, (True,) * 19 + (False,))
    assert "within two standard errors" in cost_lines({"x": noisy.document()})[-1]
    assert len(cost_lines({"x": Cost((True,) * 100, (True,) * 99 + (False,)).document()})) == 1


def test_refusals(model: Path, nf4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="quantized weights already"):
        quantize(EMBEDDED, tmp_path / "x")
    with pytest.raises(ModelError, match=r"config\.json"):
        quantize(tmp_path / "nowhere", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ModelError, match="is no checkpoint"):
        quantize(model, tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "mine"
    shutil.copytree(model, tmp_path / "plain")
    with pytest.raises(ModelError, match="is no checkpoint in 4 bits"):  # weights of another training
        quantize(model, tmp_path / "plain")
    shutil.copytree(nf4, tmp_path / "four")
    for name, text in (("card.md", "mine"), ("card.json", '{"loss": 1}')):
        (tmp_path / "four" / name).write_text(text)
        with pytest.raises(ModelError, match=name):
            quantize(model, tmp_path / "four")
        assert (tmp_path / "four" / name).read_text() == text
        (tmp_path / "four" / name).unlink()
    quantize(model, tmp_path / "four")
    assert main(["--model", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert main(["--model", str(model), "--out", str(tmp_path / "x"), "--pack", str(tmp_path / "no.pack")]) == 2
    assert not (tmp_path / "x").exists()
    assert main(["--model", str(model), "--out", str(tmp_path / "full" / "file" / "x")]) in (1, 2)
    assert all(line.startswith("arc-lab quantize: ") for line in capsys.readouterr().err.splitlines())


def test_the_folder_of_the_model_is_never_replaced(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for out in (tmp_path / "model", tmp_path / "model" / ".." / "model", tmp_path / "link"):
        with pytest.raises(ModelError, match="name another one"):
            quantize(tmp_path / "model", out)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == {
        path.name: path.read_bytes() for path in model.iterdir()
    }


def test_weights_that_are_not_those_of_the_card_are_refused(model: Path, nf4: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    card = json.loads((model / "card.json").read_text())
    weights = tmp_path / "model" / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"damaged: model\.safetensors"):
        quantize(tmp_path / "model", tmp_path / "out")
    weights.write_bytes(raw)
    (tmp_path / "model" / "card.json").write_text(json.dumps({**card, "loss": 0.5}))
    quantize(tmp_path / "model", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "card.json").read_text())
    assert written["loss"] == 0.5
    assert written["weights"] == json.loads((nf4 / "card.json").read_text())["weights"] != card["weights"]
    (tmp_path / "model" / "card.json").write_text("{")
    with pytest.raises(ModelError, match="is no card"):
        quantize(tmp_path / "model", tmp_path / "out")


def test_an_interruption_is_told_in_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("arc_lab.pretraining.quantize.quantize", interrupted)
    assert main(["--model", str(model), "--out", str(tmp_path / "nf4")]) == 130
    assert capsys.readouterr().err == "arc-lab quantize: interrupted; the same command goes on\n"


def test_the_command_prints_size_and_bits(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(model), "--out", str(tmp_path / "nf4")]) == 0
    assert "reloads bit for bit" in capsys.readouterr().out
    assert main(["--model", str(model), "--out", str(tmp_path / "nf4")]) == 0
    assert "XS" in PRESETS


class Stopped(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", range(5))
def test_a_folder_is_replaced_whole_wherever_that_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """At every change of the disk: then one of the two is whole, and the same call ends well."""
    folder = tmp_path / "nf4"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    (folder / "weights").write_text("old")
    calls = iter(range(100))

    def interrupted(change):  # type: ignore[no-untyped-def]
        def do(*arguments, **options):  # type: ignore[no-untyped-def]
            if next(calls) == call:
                raise Stopped
            return change(*arguments, **options)

        return do

    def replaced() -> None:
        beside = part_of(folder)
        beside.mkdir()
        for name in ("config.json", "weights"):
            (beside / name).write_text("new")
        replace_folder(beside, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted(Path.replace))
        patch.setattr(shutil, "rmtree", interrupted(shutil.rmtree))
        with pytest.raises(Stopped):
            replaced()
    found = {(path / name).read_text() for path in tmp_path.iterdir() for name in ("config.json", "weights")}
    assert found <= {"old", "new"}
    if folder.exists():
        assert len({(folder / name).read_text() for name in ("config.json", "weights")}) == 1
    replaced()
    assert [path.name for path in tmp_path.iterdir()] == ["nf4"]
    assert {path.read_text() for path in folder.iterdir()} == {"new"}


def test_an_interrupted_replacement_does_not_refuse_its_own_second_try(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(model, tmp_path / "nf4")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            quantize(model, tmp_path / "nf4")
    assert quantize(model, tmp_path / "nf4")["four_bit_layers"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["nf4"]


def test_numbers_that_cannot_be_are_told_before_anything_is_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--sequences", "-1"], ["--tasks", "-1"], ["--threads", "0"]):
        assert main(["--model", str(model), "--out", str(tmp_path / "nf4"), *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""A training that is interrupted continues exactly; a checkpoint that does not belong to it is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from arc_lab.data.packs import read_pack, write_pack
from arc_lab.pretraining.checkpoints import CheckpointError, _own_hash
from arc_lab.pretraining.command import main
from arc_lab.pretraining.feed import Feed
from arc_lab.pretraining.loop import Trainer
from arc_lab.pretraining.pretrain import pretrain
from arc_lab.pretraining.processes import ProcessGroup
from arc_ttt.errors import ArcError, InputError
from support.pretraining import DATA, options_of, rule_pairs, run, settings_of
from support.trainings import assert_same_weights, weights

CPU = torch.device("cpu")


def without_times(card: dict[str, Any]) -> dict[str, Any]:
    curve = [{name: line[name] for name in line if name not in ("seconds", "tokens_s")} for line in card["curve"]]
    return {**card, "curve": curve, "seconds": 0, "tokens_s": 0}


def test_an_interrupted_training_ends_with_the_same_weights_and_card(pack_file: Path, tmp_path: Path) -> None:
    settings = settings_of()
    whole = run(pack_file, settings, options_of(tmp_path / "whole", log_every=4))
    for stop in (3, 6):
        part = run(pack_file, settings, options_of(tmp_path / "parts", log_every=4, stop_after_steps=stop))
        assert not part["finished"]
        assert part["steps"] == stop
    last = run(pack_file, settings, options_of(tmp_path / "parts", log_every=4, processes=1))
    assert last["finished"]
    assert last["steps"] == whole["steps"] == 8
    assert [line["step"] for line in whole["curve"]] == [4, 8, 8]
    assert without_times(last) == without_times(whole)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert len(list((tmp_path / "parts" / "checkpoint").iterdir())) == 2


def test_a_checkpoint_of_other_settings_or_packs_is_refused(pack_file: Path, tmp_path: Path) -> None:
    run(pack_file, settings_of(steps=2), options_of(tmp_path))
    with pytest.raises(CheckpointError, match=r"muon_lr=0.02, now it is 0.01"):
        run(pack_file, settings_of(steps=2, muon_lr=0.01), options_of(tmp_path))
    other = tmp_path / "other.pack"
    group = {"name": "rearc/copy", "family": "copy", "split": "train", "held_pairs": 0}
    write_pack(other, {"settings": {}}, [(group, rule_pairs("copy", 20, 3))])
    with pytest.raises(CheckpointError, match="other packs"):
        run(other, settings_of(steps=2), options_of(tmp_path))


def test_a_model_whose_checkpoint_is_gone_is_never_trained_over(pack_file: Path, tmp_path: Path) -> None:
    """As after a restart that emptied the folder of --checkpoints."""
    options = options_of(tmp_path / "out", checkpoints=tmp_path / "scratch")
    run(pack_file, settings_of(steps=2), options)
    shutil.rmtree(tmp_path / "scratch")
    (tmp_path / "out" / "model").rename(tmp_path / "out" / ".model.old")  # and that within a replacement
    with pytest.raises(InputError, match="holds a model"):
        run(pack_file, settings_of(steps=2), options)
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"holds a model, but .*scratch no checkpoint .* give another --out"):
        run(pack_file, settings_of(steps=2), options)
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_training_stopped_before_its_first_step_leaves_no_model(pack_file: Path, tmp_path: Path) -> None:
    card = pretrain([pack_file], settings_of(), options_of(tmp_path), say=lambda text: None, stopped=lambda: True)
    assert (card["finished"], card["steps"]) == (False, 0)
    assert not (tmp_path / "model").exists()
    assert run(pack_file, settings_of(steps=1), options_of(tmp_path))["finished"]


def test_the_log_of_a_training_killed_before_its_first_checkpoint_starts_anew(pack_file: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 2, "seconds": 1.0, "loss": 9.0}\n')
    card = run(pack_file, settings_of(steps=4), options_of(tmp_path))
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == card["curve"]
    assert '"loss": 9.0' in (tmp_path / "log.previous.jsonl").read_text()


def test_a_loss_scaler_goes_on_where_it_was(pack_file: Path, tmp_path: Path) -> None:
    """It counts good steps before it doubles its scale, which an interruption must not forget."""
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=2000)
    scaler._init_growth_tracker = 1500
    trainer = a_trainer(pack_file, tmp_path / "one")
    trainer.scaler, trainer.state["step"] = scaler, 1
    trainer._save(finished=False)
    again = a_trainer(pack_file, tmp_path / "one", scaler=torch.amp.GradScaler("cpu"))
    assert again.scaler.state_dict() == scaler.state_dict()


def a_trainer(pack_file: Path, folder: Path, scaler: Any = None) -> Trainer:
    """One that has not begun; scaler: instead of the one of its type of numbers."""
    pack, options = read_pack(pack_file), options_of(folder)
    parts = (settings_of(), options, Feed([pack], DATA), {}, [pack.sha256], ProcessGroup(0, 1, CPU))
    with pytest.MonkeyPatch.context() as patch:
        if scaler is not None:
            patch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler)
        return Trainer(*parts, say=lambda text: None)


def test_a_damaged_checkpoint_is_refused(pack_file: Path, tmp_path: Path) -> None:
    options = options_of(tmp_path)
    run(pack_file, settings_of(steps=2), options)
    state = options.checkpoints / "checkpoint.json"
    tensors = next(options.checkpoints.glob("*.safetensors"))
    raw, text = tensors.read_bytes(), state.read_text()
    stored = json.loads(text)

    def without(*names: str) -> dict[str, Any]:
        return {name: value for name, value in stored.items() if name not in (*names, "own_sha256")}

    def whole(document: dict[str, Any]) -> dict[str, Any]:
        return document | {"own_sha256": _own_hash(document)}

    for damaged in (raw[: len(raw) // 2], raw[:-1] + bytes([raw[-1] ^ 1]), b""):
        tensors.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            run(pack_file, settings_of(steps=2), options)
    tensors.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(pack_file, settings_of(steps=2), options)
    tensors.write_bytes(raw)
    for damaged_text, words in (
        (text[:40], "no training checkpoint"),
        (text.replace('"version": 3', '"version": 7'), "7"),
        (text.replace('"step": 2', '"step": 1'), "damaged"),
        (json.dumps(stored | {"curve": []}), "damaged"),
        (json.dumps(whole(without("feed", "packs"))), "lacks feed, packs"),
    ):
        assert damaged_text != text
        state.write_text(damaged_text)
        with pytest.raises(CheckpointError, match=words):
            run(pack_file, settings_of(steps=2), options)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"size": 2}, "training processes=1, now it is 2"),
        ({"live": "/else/reasoning_gym-0.1.25.whl"}, "live generators=, now it is reasoning_gym-0.1.25.whl"),
        ({"compile": True}, "compile=False, now it is True"),
        ({"dtype": torch.float16}, "resolved dtype=float32, now it is float16"),
        ({"threads": 7}, r"threads=\d, now it is 7"),
    ],
)
def test_a_checkpoint_made_under_other_conditions_is_refused(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: dict[str, Any], words: str
) -> None:
    """Whatever would change the batches or the rounding; the checkpoint stays as it was."""
    settings = settings_of(steps=3, dtype="float32")
    part = run(pack_file, settings, options_of(tmp_path, stop_after_steps=1))
    assert not part["finished"]
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    options = options_of(tmp_path, **{name: value for name, value in now.items() if name in ("live", "compile")})
    if "dtype" in now:
        monkeypatch.setattr("arc_lab.pretraining.loop.compute_dtype", lambda name, device: now["dtype"])
    if "threads" in now:
        monkeypatch.setattr(torch, "get_num_threads", lambda: now["threads"])
    group, pack = ProcessGroup(0, now.get("size", 1), CPU), read_pack(pack_file)
    with pytest.raises(CheckpointError, match=words):
        Trainer(settings, options, Feed([pack], DATA), {}, [pack.sha256], group, say=lambda text: None)
    assert files == {path: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}


def test_a_finished_training_that_is_started_again_changes_nothing(pack_file: Path, tmp_path: Path) -> None:
    first = run(pack_file, settings_of(steps=3), options_of(tmp_path))
    kept = weights(tmp_path)
    again = run(pack_file, settings_of(steps=3), options_of(tmp_path))
    assert again["curve"] == first["curve"]
    assert again["exact_match"] is not None
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(tmp_path).items())


def test_a_signal_ends_the_command_with_a_checkpoint(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arc_lab.pretraining.loop.matmul_peak", lambda device, dtype: 1e9)
    command = ["--pack", str(pack_file), "--preset", "tiny", "--steps", "100000", "--processes", "0"]
    step = Trainer._step

    def step_then_signal(trainer: Trainer, progress: float) -> None:
        step(trainer, progress)
        if trainer.state["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_step", step_then_signal)
    assert main([*command, "--eval-sequences", "4", "--out", str(tmp_path)]) == 130
    state = json.loads((tmp_path / "checkpoint" / "checkpoint.json").read_text())
    assert state["step"] == 3
    assert not json.loads((tmp_path / "card.json").read_text())["finished"]


def test_after_a_data_process_was_killed_the_same_command_goes_on(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("arc_lab.pretraining.loop.matmul_peak", lambda device, dtype: 1e9)
    command = ["--pack", str(pack_file), "--preset", "tiny", "--steps", "40", "--eval-sequences", "4", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    step = Trainer._step

    def step_then_kill(trainer: Trainer, progress: float) -> None:
        step(trainer, progress)
        if trainer.state["step"] == 2:
            assert trainer.feed._pool is not None
            for number in list(trainer.feed._pool._processes):
                os.kill(number, signal.SIGKILL)

    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", step_then_kill)
        assert main([*command, str(tmp_path / "parts")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("arc-lab pretrain: a background process that makes data died")
    done = json.loads((tmp_path / "parts" / "checkpoint" / "checkpoint.json").read_text())["step"]
    assert 2 <= done < 40
    assert line.endswith(f"the same command goes on after step {done}")
    assert main([*command, str(tmp_path / "parts")]) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("owner", "where"), [(Trainer, "_loss"), (ProcessGroup, "sum_in_place"), (Trainer, "_log")])
def test_any_other_error_leaves_the_last_whole_step(
    pack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, where: str
) -> None:
    run(pack_file, settings_of(), options_of(tmp_path / "whole", log_every=1))
    real, calls = getattr(owner, where), []

    def broken(self: object, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("no luck\nand more")
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, where, broken)
        with pytest.raises(ArcError, match=r"^RuntimeError: no luck; the same command goes on after step [34]$"):
            run(pack_file, settings_of(), options_of(tmp_path / "parts", log_every=1))
    run(pack_file, settings_of(), options_of(tmp_path / "parts", log_every=1))
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")

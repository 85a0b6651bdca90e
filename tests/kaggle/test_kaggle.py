"""Which settings a run on Kaggle goes on with when the machine has less than they ask for. No worker is started."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arc_ttt.bootstrap import environment, packages
from arc_ttt.bootstrap.environment import scratch_folder
from arc_ttt.bootstrap.mounts import CHALLENGES, Mounts
from arc_ttt.bootstrap.packages import Packages
from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.kaggle import record, usable_settings
from arc_ttt.kaggle import run as kaggle
from arc_ttt.protocol.messages import Note
from arc_ttt.run.report import RunResult
from arc_ttt.settings import Settings
from support.llamas import LLAMA_1B

GIB = 2**30
MODEL = "/kaggle/input/models/me/llama/transformers/4bit/1"


pytestmark = pytest.mark.usefixtures("environment_as_before")


Decide = Callable[..., Settings]


@pytest.fixture
def decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decide:
    """Run up to the moment when workers would start; the settings they would have got."""
    competition, model = tmp_path / "input" / "arc", tmp_path / "input" / "llama" / "transformers" / "4bit" / "1"
    for folder in (competition, model, tmp_path / "working"):
        folder.mkdir(parents=True)
    pair = {"input": [[1]], "output": [[1]]}
    (competition / CHALLENGES).write_text(json.dumps({"a": {"train": [pair] * 2, "test": [{"input": [[1]]}]}}))
    (model / "config.json").write_text(json.dumps(LLAMA_1B))

    def run(
        found: Packages,
        *,
        gpu: float = 0.0,
        free: float = 0.0,
        **chosen: Any,
    ) -> Settings:
        started: list[Settings] = []
        monkeypatch.setattr(kaggle, "prepare_packages", lambda *_, **__: found)
        monkeypatch.setattr(usable_settings, "gpu_memory_bytes", lambda: int(gpu * GIB))
        monkeypatch.setattr(usable_settings, "count_gpus", lambda: 2 if gpu else 0)
        monkeypatch.setattr(usable_settings, "available_memory", lambda: int(free * GIB))
        run.fallbacks = []  # type: ignore[attr-defined]

        def start(loaded: Any, settings: Settings, *_: Any, fallback: Settings, **__: Any) -> None:
            started.append(settings)
            run.fallbacks.append(fallback)  # type: ignore[attr-defined]

        monkeypatch.setattr(kaggle, "start_run", start)
        assert kaggle.kaggle_run(tmp_path, {"run.limit_s": 600.0, **chosen}, 1, time.monotonic()) == 0
        assert len(started) == 1
        return started[0]

    return run


def chosen(**changes: Any) -> dict[str, Any]:
    return {"preset": "llama-1b-3b", "model.path": MODEL, **changes}


def test_what_works_is_left_as_it_was_chosen_but_for_the_path_of_the_mount(decide: Decide, tmp_path: Path) -> None:
    settings = decide(Packages(unsloth=True), gpu=15, **chosen(**{"model.backend": "unsloth"}))
    assert settings.model.path == str(tmp_path / "input" / "llama" / "transformers" / "4bit" / "1")
    assert (settings.model.backend, settings.model.quantize) == ("unsloth", "nf4")


@pytest.mark.parametrize(
    ("gpu", "free", "fits"),
    [(15, 0, True), (3.5, 0, True), (2.5, 0, False), (0, 24, True), (0, 9, False)],
    ids=["T4", "just", "small GPU", "CPU", "two workers on little"],
)
def test_without_four_bits_the_model_runs_in_sixteen_where_memory_allows(
    decide: Decide, gpu: float, free: float, fits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = decide(Packages(four_bit=False), gpu=gpu, free=free, **chosen())
    assert settings.model.quantize == "none"
    assert bool(settings.model.path) == fits
    assert ("FALLBACK: without 4-bit weights the model needs" in capsys.readouterr().out) == (not fits)


def test_without_unsloth_the_same_model_runs_with_transformers(decide: Decide) -> None:
    settings = decide(Packages(fallbacks={"unsloth": "no"}), gpu=15, **chosen(**{"model.backend": "unsloth"}))
    assert settings.model.backend == "transformers"
    assert settings.model.path
    assert settings.ttt == dataclasses.replace(Settings.of("llama-1b-3b").ttt, passes=2)  # of a commit run


def test_a_model_of_another_kind_gives_way_to_the_embedded_one(decide: Decide, tmp_path: Path) -> None:
    (tmp_path / "input/llama/transformers/4bit/1/config.json").write_text('{"model_type": "qwen3"}')
    settings = decide(Packages(), gpu=15, **chosen(**{"vote.rule": "flattened"}))
    assert settings.model == Settings.of("embedded").model
    assert settings.vote.rule == "flattened"  # what is not about the model stays as chosen


def test_the_embedded_model_that_takes_over_has_the_settings_of_its_device(decide: Decide, tmp_path: Path) -> None:
    (tmp_path / "input/llama/transformers/4bit/1/config.json").write_text('{"model_type": "qwen3"}')
    asked = chosen(**{"ttt.passes": 64, "ttt.learning_rate": 0.5})
    long, short = (Settings.of(name).ttt.max_sequence_tokens for name in ("embedded-gpu", "embedded"))
    assert decide(Packages(), gpu=15, **asked).ttt.max_sequence_tokens == long
    assert decide(Packages(), **asked).ttt.max_sequence_tokens == short
    assert decide(Packages(), gpu=15, **{"no.such": 1}).ttt.max_sequence_tokens == long  # wrong settings
    assert decide(Packages(), gpu=15, **asked).ttt.learning_rate == Settings.of("embedded").ttt.learning_rate


@pytest.mark.parametrize(("rerun", "passes"), [(True, 64), (False, kaggle.COMMIT_PASSES)])
def test_the_model_that_takes_over_in_the_workers_trains_as_often_as_was_chosen(
    decide: Decide, monkeypatch: pytest.MonkeyPatch, rerun: bool, passes: int
) -> None:
    if rerun:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    decide(Packages(), gpu=15, **chosen(**{"ttt.passes": 64}))
    (fallback,) = decide.fallbacks  # type: ignore[attr-defined]
    assert fallback.ttt.passes == passes
    decide(Packages(), gpu=15, **{"ttt.passes": 64})
    other = decide.fallbacks[-1]  # type: ignore[attr-defined]
    assert other.model.path == "embedded-XS"  # where M was asked for
    assert other.ttt.max_sequence_tokens == Settings.of("embedded").ttt.max_sequence_tokens


@pytest.mark.parametrize(("asked", "expands"), [(True, True), (False, False)])
def test_the_allocator_of_large_models_expands_its_segments(
    decide: Decide, monkeypatch: pytest.MonkeyPatch, asked: bool, expands: bool
) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    decide(Packages(), gpu=15, **(chosen() if asked else {}))
    assert ("PYTORCH_CUDA_ALLOC_CONF" in os.environ) == expands


@pytest.mark.parametrize(("broken", "four_bit"), [("bitsandbytes", False), ("unsloth", True)])
def test_a_set_that_fails_in_an_unknown_way_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, four_bit: bool
) -> None:
    def install(package: str, *_: Any) -> str:
        if package == broken:
            raise LookupError("nobody expected this")
        return ""

    monkeypatch.setattr(packages, "_install_set", install)
    monkeypatch.setattr(packages, "_try_out", lambda *_: "")
    found = packages.prepare_packages(Mounts(), tmp_path, unsloth=True, seconds=10.0)
    assert (found.four_bit, found.unsloth) == (four_bit, not four_bit)
    (line,) = found.fallbacks.values()
    assert "LookupError: nobody expected this" in line


@pytest.mark.parametrize(
    ("place", "falls_back"), [("input/zzz", False), ("input/competitions/arc-prize-1900", True), ("input/b", True)]
)
def test_more_than_one_file_of_challenges_is_told(
    decide: Decide, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, falls_back: bool
) -> None:
    """As less than was asked for, unless one of them is the competition's for sure."""
    if place != "input/b":
        (tmp_path / "input" / "competitions").mkdir()
        (tmp_path / "input" / "arc").rename(tmp_path / "input" / "competitions" / "arc")
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / CHALLENGES).write_text("{}")
    decide(Packages())
    out = capsys.readouterr().out
    assert "there is more than one" in out
    assert ("FALLBACK: there is more than one" in out) == falls_back


def test_an_odd_package_costs_nothing_but_its_name(
    decide: Decide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd() -> Iterator[Any]:
        yield SimpleNamespace(metadata={"Name": "fine"}, version="1.0")
        raise RuntimeError("a distribution without metadata")

    monkeypatch.setattr(record.importlib.metadata, "distributions", odd)
    decide(Packages())
    setup = json.loads((tmp_path / "working" / "setup.json").read_text())
    assert setup["packages"] == {"fine": "1.0"}
    assert setup["settings"]["run"]["limit_s"] == 600.0


def test_another_version_of_the_model_is_used_and_named(decide: Decide, capsys: pytest.CaptureFixture[str]) -> None:
    settings = decide(Packages(), gpu=15, **chosen(**{"model.path": f"{MODEL[:-1]}7"}))
    assert settings.model.path.endswith("/llama/transformers/4bit/1")
    assert "FALLBACK: version 1 of the model instead of 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("note", "falls_back"),
    [
        ("backend: transformers instead of unsloth: no kernels", True),
        ("memory: 9.1 GiB before any activation; the base model answers alone", True),
        ("sequences of 4096 tokens at most", False),
    ],
)
def test_what_a_worker_does_otherwise_than_asked_is_told_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], note: str, falls_back: bool
) -> None:
    """It may find out only when it has loaded the model that unsloth does not work."""
    (tmp_path / "submission.json").write_text("{}")
    setup = record.Setup()
    settings = Settings.of("embedded").override([("run.limit_s", 60.0)])
    kaggle._look_back(tmp_path, {}, RunResult(notes=[Note(note, less=falls_back)]), settings, setup)
    assert (setup.fallbacks if falls_back else setup.notes) == [note]
    assert ("FALLBACK" in capsys.readouterr().out) == falls_back


def test_the_count_of_weights_is_the_published_one() -> None:
    assert LlamaShape.of(LLAMA_1B).matrix_weights == pytest.approx(1_235_814_400, rel=1e-3)


def test_scratch_goes_elsewhere_when_its_folder_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temp").write_text("a file where the folder should be")
    monkeypatch.setattr(environment.tempfile, "gettempdir", lambda: str(tmp_path / "other"))
    assert scratch_folder(tmp_path) == tmp_path / "other" / "arc_ttt"
    (tmp_path / "other" / "arc_ttt" / ".written").unlink()
    (tmp_path / "other" / "arc_ttt").rmdir()
    (tmp_path / "other" / "arc_ttt").write_text("here too")
    assert scratch_folder(tmp_path) == tmp_path / "working" / "arc_ttt"
    (tmp_path / "working" / "arc_ttt" / ".written").unlink()
    (tmp_path / "working" / "arc_ttt" / ".written").mkdir()
    with pytest.raises(OSError, match="no folder for scratch"):
        scratch_folder(tmp_path)


def test_scratch_that_goes_elsewhere_is_told(
    decide: Decide, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(Packages())
    assert "scratch files go to" not in capsys.readouterr().out
    monkeypatch.setattr(kaggle, "scratch_folder", lambda _: tmp_path / "elsewhere")
    decide(Packages())
    assert f"temp cannot be written: scratch files go to {tmp_path / 'elsewhere'}" in capsys.readouterr().out


def test_offline_variables_are_set_before_anything_could_look_at_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRITON_CACHE_DIR"):  # a run in this process may have set them
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", "/chosen/by/the/user")
    environment.set_environment(tmp_path)
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
    assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"
    assert os.environ["HF_HOME"] == "/chosen/by/the/user"
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (RunResult(train_tokens=5), ""),
        (RunResult(), "no task was trained"),
        (RunResult(resumed=3), ""),
        (RunResult(train_tokens=5, lost_devices=[1]), "device 1 was given up"),
        (RunResult(train_tokens=5, fell_back="bad weights"), "could not be loaded: bad weights; the embedded model"),
        (RunResult(train_tokens=5, fatal="all device workers were lost"), "all device workers were lost"),
    ],
    ids=["good", "untrained", "went on", "half the machine", "fallback", "lost"],
)
def test_a_run_that_had_less_than_was_asked_for_says_so(tmp_path: Path, result: RunResult, words: str) -> None:
    (tmp_path / "submission.json").write_text(json.dumps({"a": [{"attempt_1": [[1]], "attempt_2": [[1]]}]}))
    setup = record.Setup()
    settings = Settings.of("embedded").override([("run.limit_s", 6000.0)])
    kaggle._look_back(tmp_path, {"a": 1}, result, settings, setup)
    assert len(setup.fallbacks) == bool(words)
    assert words in "".join(setup.fallbacks)


def test_a_mounted_model_under_the_preset_of_the_embedded_one_gets_its_own(
    decide: Decide, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = decide(Packages(), gpu=15, **{"model.path": MODEL, "model.format": "architects"})
    wanted = Settings.of("llama-1b-3b")
    assert settings.ttt.learning_rate == wanted.ttt.learning_rate
    assert settings.ttt.rank == wanted.ttt.rank
    said = capsys.readouterr().out
    assert "FALLBACK: SETTINGS: preset embedded trains no model of format architects; llama-1b-3b does" in said


def test_a_preset_of_a_model_that_no_setting_names_gives_the_embedded_model_and_says_so(
    decide: Decide, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = decide(Packages(), preset="llama-8b")
    assert (settings.model.path, settings.model.format, settings.ttt.rank) == (
        "embedded-XS",
        "compact",
        Settings.of("embedded").ttt.rank,
    )
    assert "FALLBACK: format marc needs a checkpoint that was trained with it" in capsys.readouterr().out


def test_a_submission_that_a_killed_run_has_left_stays(decide: Decide, tmp_path: Path) -> None:
    """What is started again must not have lost its answers if it is killed once more while it loads."""
    path = tmp_path / "working" / "submission.json"
    kept = json.dumps({"a": [{"attempt_1": [[7]], "attempt_2": [[8]]}]})
    wrong = (kept.replace("7", "70"), kept.replace('"a"', '"b"'))
    for text, starts, stays in ((kept, "2", True), (kept, "1", False), *((text, "2", False) for text in wrong)):
        path.write_text(text)
        os.environ["ARC_TTT_STARTS"] = starts
        decide(Packages())
        assert (path.read_text() == text) == stays


@pytest.mark.parametrize(("rerun", "starts", "code"), [(True, "1", 75), (True, "", 0), (False, "1", 1), (False, "", 1)])
def test_after_an_error_the_guard_is_asked_to_start_the_scoring_rerun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rerun: bool, starts: str, code: int
) -> None:
    for name, value in (("KAGGLE_IS_COMPETITION_RERUN", "1" if rerun else ""), ("ARC_TTT_STARTS", starts)):
        monkeypatch.setenv(name, value)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(kaggle, "load_mounted", fail)
    (tmp_path / "working").mkdir()
    assert kaggle.kaggle_run(tmp_path, {"run.limit_s": 600.0}, 1, time.monotonic(), strict=True) == code
    assert (tmp_path / "working" / "submission.json").exists()


def test_four_bits_that_do_not_work_cost_the_embedded_model_nothing(
    decide: Decide, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are expanded anyway, to the same values."""
    for settings, falls_back in (({}, False), (chosen(), True)):
        decide(Packages(four_bit=False, fallbacks={"bitsandbytes": "no 4-bit weights: no library"}), gpu=15, **settings)
        assert ("FALLBACK: no 4-bit weights: no library" in capsys.readouterr().out) == falls_back

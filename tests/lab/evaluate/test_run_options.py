"""Settings from the command line of `kernel.py`: presets, files and single settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arc_lab.evaluate import run_options
from arc_lab.evaluate.dry_run import main
from arc_lab.evaluate.run_options import make_run_parser, make_settings
from arc_ttt.errors import SettingsError
from arc_ttt.formats.registry import FORMATS
from arc_ttt.presets import PRESETS
from arc_ttt.settings import Settings


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_options, "count_gpus", lambda: 0)


def settings(*argv: str) -> Settings:
    return make_settings(make_run_parser().parse_args(argv))


def test_without_options_the_embedded_preset_runs_for_five_minutes() -> None:
    assert settings() == Settings.of("embedded").override([("run.limit_s", 300.0)])


def test_every_format_has_a_preset() -> None:
    for form, preset in ((form, row.preset) for form, row in FORMATS.items()):
        assert preset in PRESETS
        assert settings("--model", "DIR", "--format", form).model.format == form


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_chosen_by_its_name(name: str) -> None:
    assert settings("--preset", name) == Settings.of(name)


def test_the_embedded_preset_is_that_of_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_options, "count_gpus", lambda: 1)
    assert settings() == settings("--preset", "embedded") == Settings.of("embedded-gpu")


def test_a_preset_names_the_format_of_a_model() -> None:
    assert settings("--preset", "llama-8b", "--model", "DIR").model.format == "marc"
    with pytest.raises(SettingsError, match="go together"):
        settings("--preset", "embedded", "--model", "DIR")


def test_a_file_overrides_the_preset_and_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('vote.rule = "paper"\n[ttt]\nrank = 64\npasses = 3\n[run]\nlimit_s = 60\nseed = 4\n')
    base = Settings.of("llama-8b")
    found = settings("--preset", "llama-8b", "--config", str(file), "--set", "ttt.rank=8", "--seed", "5")
    assert (base.ttt.rank, found.ttt.rank, found.ttt.passes) == (128, 8, 3)
    assert found.ttt.learning_rate == base.ttt.learning_rate
    assert (found.vote.rule, found.run.limit_s, found.run.seed) == ("paper", 60.0, 5)
    assert settings("--config", str(file), "--limit", "2m").run.limit_s == 120.0
    assert settings("--config", str(file), "--limit", "2m", "--set", "run.limit_s=90").run.limit_s == 90.0


def test_a_file_may_name_a_preset_and_the_command_line_another(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('preset = "llama-8b"\n"model.path" = "DIR"\n')
    assert settings("--config", str(file)) == Settings.of("llama-8b").override([("model.path", "DIR")])
    assert settings("--config", str(file), "--preset", "llama-1b").ttt.learning_rate == 5e-5


def test_the_format_of_a_file_chooses_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[model]\npath = "DIR"\nformat = "marc"\n')
    assert settings("--config", str(file)).ttt.learning_rate == Settings.of("llama-8b").ttt.learning_rate


def test_a_report_gives_its_settings_back(tmp_path: Path) -> None:
    asked = settings("--preset", "llama-8b", "--limit", "20m", "--seed", "3", "--set", "synthesis.cpu_limits_s=2,7")
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"score": {}, "settings": json.loads(asked.to_json())}))
    assert settings("--config", str(report)) == asked


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[ttt]\nrnk = 3\n", "no setting 'ttt.rnk'; nearest: ttt.rank"),
        ("rank = 3\n", "no setting 'rank'; nearest: ttt.rank"),
        ("[tttt]\nrank = 3\n", "no setting 'tttt.rank'; nearest: ttt.rank"),
        ('[ttt]\nrank = "many"\n', "ttt.rank is 'many'"),
        ('preset = "lama-8b"\n', "no preset 'lama-8b'; nearest: llama-8b"),
        ("preset = 3\n", "no preset 3; nearest: "),
        ("", "holds no settings"),
        ("ttt = [", "neither TOML nor JSON"),
        ('{"settings": {', "neither TOML nor JSON"),
        ('{"settings": 3}', "holds no settings"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.toml").write_text(text)
    assert main(["--config", str(tmp_path / "my.toml"), "--out", str(tmp_path / "out")], 0.0) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("kernel.py: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset", "lama-8b"], "no preset 'lama-8b'; nearest: llama-8b"),
        (["--config", "no-such-file.toml"], "--config no-such-file.toml: No such file"),
        (["--set", "ttt.rnk=3"], "no setting 'ttt.rnk'; nearest: ttt.rank"),
        (["--unknown"], "unrecognized arguments: --unknown (see --help)"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--out", str(tmp_path / "out")], 0.0) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1

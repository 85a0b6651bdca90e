"""The list of all settings, read from the source of their classes."""

from __future__ import annotations

import dataclasses

import pytest

from arc_lab.evaluate.dry_run import main
from arc_lab.evaluate.settings_text import list_settings
from arc_ttt.settings import Settings


def test_every_setting_is_listed_with_its_default() -> None:
    listed = {one.name: one for one in list_settings()}
    sections = dataclasses.asdict(Settings())
    assert list(listed) == [f"{section}.{name}" for section, fields in sections.items() for name in fields]
    assert listed["model.format"].default == "compact"
    assert listed["ttt.targets"].default.startswith("q_proj,k_proj,")
    assert listed["ttt.learning_rate"].default == "0.0015"
    assert listed["model.record"].default == "true"


def test_listed_defaults_can_be_given_back() -> None:
    changed = Settings.of("llama-8b")
    assert changed.override((one.name, one.default) for one in list_settings()) == Settings()


def test_the_meaning_is_the_text_below_the_field() -> None:
    listed = {one.name: one.meaning for one in list_settings()}
    assert "grows with" in listed["ttt.micro_batch_tokens"]
    assert "\n" not in "".join(listed.values())
    assert all(listed[name] for name in ("model.path", "decode.views", "vote.rule", "run.limit_s", "run.resume"))


def test_the_command_prints_the_list_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-settings"], 0.0) == 0
    shown = capsys.readouterr().out
    for one in list_settings():
        assert f"| {one.name} | {one.default} | " in shown

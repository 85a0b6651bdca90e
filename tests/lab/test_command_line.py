"""What all commands share: help, errors in one line, version, tables, and output for machines."""

from __future__ import annotations

import importlib
import sys
import tomllib

import pytest

from arc_lab import __main__ as lab
from arc_lab.command_line import (
    add_json,
    json_document,
    make_parser,
    print_table,
    reports_errors,
    resumable,
)
from arc_lab.folders import ROOT, current_build
from arc_ttt.errors import ArcError, InputError, SettingsError


@pytest.mark.parametrize("name", lab.COMMANDS)
def test_every_command_has_help_and_reports_wrong_use_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        lab.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: arc-lab {name}")
    assert f"  arc-lab {name}" in shown.partition("examples:")[2]
    assert lab.main([name, "--no-such-option"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"arc-lab {name}: ")
    assert error.count("\n") == 1


def test_the_entry_point_of_the_console_script_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["arc-lab"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["arc_ttt*"]  # arc_lab knows solutions


def test_version_and_commit_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"arc-lab {current_build().version}")
    with pytest.raises(SystemExit):
        make_parser("any", "About.").parse_args(["--version"])
    assert capsys.readouterr().out == shown


def test_a_command_without_or_with_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.main(["--help"]) == 0
    assert "synthesize" in capsys.readouterr().out
    assert lab.main([]) == 2
    assert lab.main(["no-such-command"]) == 2
    assert "no command 'no-such-command'" in capsys.readouterr().err


def test_defaults_are_shown_once_and_examples_come_last(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("any", "About.", examples=("arc-lab any --size 3",))
    parser.add_argument("--size", type=int, default=2, help="how large")
    parser.add_argument("--depth", type=int, help="how deep (default: the size)")
    parser.add_argument("--flag", action="store_true", help="whether")
    parser.add_argument("--many", action="append", default=[], help="may be repeated")
    parser.print_help()
    shown = capsys.readouterr().out
    assert shown.count("(default: ") == 2
    assert "how large (default: 2)" in shown
    assert shown.endswith("examples:\n  arc-lab any --size 3\n")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (SettingsError("wrong"), 2, "arc-lab any: wrong\n"),
        (InputError("wrong"), 2, "arc-lab any: wrong\n"),
        (ArcError("broken"), 1, "arc-lab any: broken\n"),
        (OSError(28, "No space left on device"), 1, "arc-lab any: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "arc-lab any: interrupted\n"),
    ],
)
def test_a_command_ends_with_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @reports_errors("any")
    def main(_: object) -> int:
        raise error

    assert main([]) == status
    assert capsys.readouterr().err == line


def test_an_interrupted_command_that_resumes_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    @resumable("any")
    def main(_: object) -> int:
        raise KeyboardInterrupt

    assert main([]) == 130
    assert capsys.readouterr().err == "arc-lab any: interrupted; the same command goes on\n"


def test_a_table_is_markdown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Title", ("what", "n", "why"), [("a|b", 1, None), ("c", -2.5, "so")])
    lines = ["Title", "", "| what | n | why |", "|---|---:|---|", "| a\\|b | 1 |  |", "| c | -2.5 | so |", ""]
    assert capsys.readouterr().out.split("\n") == lines


def test_a_sentence_that_begins_with_a_digit_is_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        "Title",
        ("file", "right", "reason"),
        [("a", "12 (34.5% ± 1.2)", "4-bit weights; the image has none, as of today.")],
    )
    assert "|---|---:|---|" in capsys.readouterr().out


def test_a_table_is_drawn_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table("Title", ("what", "n"), [("[a]", 1)])
    shown = capsys.readouterr().out
    assert "[a]" in shown
    assert "|---" not in shown


def test_only_the_document_goes_to_stdout_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("any", "About.")
    add_json(parser)
    for argv, out, err in ((["--json"], '{"a": 1}\n', "text\n"), ([], "text\n", "")):
        options = parser.parse_args(argv)
        with json_document(options.json) as document:
            print("text")
            document["a"] = 1
        assert capsys.readouterr() == (out, err)

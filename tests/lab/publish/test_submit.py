"""A version is submitted once its own run is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arc_lab.publish import submit as submit_module
from arc_lab.publish.kaggle_cli import KaggleError, run_cli
from arc_lab.publish.submit import submit
from support.fake_kaggle import FakeKaggle


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("RUNNING", r"version 3 of me/arc-ttt-kernel is RUNNING, not COMPLETE -> wait"),
        ("QUEUED", "is QUEUED, not COMPLETE -> wait"),
        ("ERROR", r"is ERROR, not COMPLETE -> see the log .*kaggle\.com/code/me/arc-ttt-kernel"),
        (None, "status of version 3: HTTPError: Not Found -> .*check owner, slug and version"),
    ],
)
def test_a_version_is_not_submitted_because_a_newer_one_is_complete(
    kaggle: FakeKaggle, cli: str, kernel: Path, state: str | None, words: str
) -> None:
    kaggle.states = {"v3": state, "v4": "COMPLETE"} if state else {"v4": "COMPLETE"}
    with pytest.raises(KaggleError, match=words):
        submit(cli, kernel, 3, "first")
    assert kaggle.requests == [("GetKernelSessionStatus", {**STATUS, "versionLabel": "v3"})]


STATUS = {"userName": "me", "kernelSlug": "arc-ttt-kernel"}


def test_a_complete_version_is_submitted_whatever_a_newer_one_does(kaggle: FakeKaggle, cli: str, kernel: Path) -> None:
    kaggle.states = {"v2": "ERROR", "v3": "COMPLETE", "v4": "RUNNING"}
    submit(cli, kernel, 3, "first")
    assert kaggle.bodies("GetKernelSessionStatus") == [{**STATUS, "versionLabel": "v3"}]
    assert kaggle.bodies("CreateCodeSubmission") == [
        {
            "competitionName": "arc-prize-2026-arc-agi-2",
            "kernelOwner": "me",
            "kernelSlug": "arc-ttt-kernel",
            "kernelVersion": 3,
            "fileName": "submission.json",
            "submissionDescription": "first",
        }
    ]


def test_the_command_line_itself_tells_of_the_newest_version_when_asked_for_another(
    kaggle: FakeKaggle, cli: str
) -> None:
    """The reason for asking through its library; when this fails, its own command will do."""
    kaggle.states = {"v3": "ERROR", "v4": "COMPLETE"}
    assert "COMPLETE" in run_cli(cli, "kernels", "status", "me/arc-ttt-kernel/3")
    assert kaggle.bodies("GetKernelSessionStatus") == [STATUS]


def test_machines_get_the_answer_as_a_document(
    kaggle: FakeKaggle, cli: str, kernel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.states = {"v3": "COMPLETE"}
    monkeypatch.setattr(submit_module, "find_cli", lambda: cli)
    assert submit_module.main(["--version", "3", "--kernel", str(kernel), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["version"] == 3
    assert "submit" in document["answer"].lower()

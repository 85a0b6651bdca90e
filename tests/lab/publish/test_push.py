"""The real kaggle command line against an API of our own on this machine.

The server poses as the HTTP proxy of a command line that was told to talk to localhost, so nothing can leave the
machine; what it is sent is compared whole.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import arc_lab.publish.push as push
from arc_lab.publish import kaggle_cli
from arc_lab.publish.kaggle_cli import KaggleError, find_cli, run_cli
from arc_lab.publish.push import push_dataset, push_kernel
from arc_ttt.bootstrap.mounts import MANIFEST
from arc_ttt.errors import InputError
from support.fake_kaggle import CODE, METADATA, FakeKaggle, blob


def test_a_push_of_the_kernel_sends_exactly_what_the_metadata_say(kaggle: FakeKaggle, cli: str, kernel: Path) -> None:
    assert push_kernel(cli, kernel) == 3
    assert kaggle.bodies("SaveKernel") == [
        {
            "slug": "me/arc-ttt-kernel",
            "newTitle": "ARC TTT kernel",
            "text": CODE,
            "language": "python",
            "kernelType": "script",
            "isPrivate": True,
            "enableGpu": True,
            "enableTpu": False,
            "enableInternet": False,
            "machineShape": "NvidiaTeslaT4",
            "datasetDataSources": ["me/arc-ttt-wheels"],
            "competitionDataSources": ["arc-prize-2026-arc-agi-2"],
            "modelDataSources": ["me/llama-arc/transformers/4bit/1"],
            "dockerImagePinningType": "original",
        }
    ]
    assert [name for name, _ in kaggle.requests] == ["SaveKernel", "GetKernel"]


def test_a_dataset_is_created_once_and_then_gets_versions(kaggle: FakeKaggle, cli: str, bundle: Path) -> None:
    assert push_dataset(cli, bundle, "first") == "me/arc-ttt-wheels"
    assert push_dataset(cli, bundle, "second") == "me/arc-ttt-wheels"
    (created,), (changed,) = kaggle.bodies("CreateDataset"), kaggle.bodies("CreateDatasetVersion")
    for body in (created, changed["body"]):
        body["files"].sort(key=lambda file: file["token"])  # they come as the folder lists them
    files = [{"token": f"token-{name}"} for name in ("arc_ttt-0.1.0-py3-none-any.whl", MANIFEST)]
    assert created == {
        "ownerSlug": "me",
        "slug": "arc-ttt-wheels",
        "title": "arc ttt wheels",
        "licenseName": "other",
        "isPrivate": True,
        "files": files,
    }
    assert changed == {
        "ownerSlug": "me",
        "datasetSlug": "arc-ttt-wheels",
        "body": {"versionNotes": "second", "files": files},
    }
    started = kaggle.bodies("StartBlobUpload")
    assert {body["name"]: body["contentLength"] for body in started} == {
        "arc_ttt-0.1.0-py3-none-any.whl": 5,
        MANIFEST: 2,
    }
    assert sorted(kaggle.uploads) == sorted([b"wheel", b"{}"] * 2)


REFUSED = {"error": "Maximum batch GPU session count of 2 reached."}


DROPPED = {"url": "u", "versionNumber": 4, "kernelId": 11}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, REFUSED), ["Maximum batch GPU session count of 2", "wait for one to end"]),
        ((200, {"error": "Something else."}), ["Kernel push error: Something else.", "refused"]),
        ((200, {**DROPPED, "invalidDatasetSources": ["me/arc-ttt-wheels"]}), ["me/arc-ttt-wheels", "dataset_sources"]),
        ((200, {**DROPPED, "invalidCompetitionSources": ["arc"]}), ["arc", "accept its rules"]),
        ((200, {**DROPPED, "invalidKernelSources": ["me/other"]}), ["me/other", "kernel_sources"]),
        ((200, {**DROPPED, "invalidTags": ["nonsense"]}), ["nonsense", "keywords"]),
        ((400, {"code": 400, "message": "The kernel source must be less than 1 megabytes in size."}), ["too long"]),
        ((403, {"code": 403, "message": "Forbidden"}), ["Forbidden", "rules"]),
        ((401, {"code": 401, "message": "Unauthorized"}), ["log in", "API token"]),
    ],
    ids=["GPU sessions", "refused", "dataset", "competition", "kernel source", "tag", "size", "forbidden", "login"],
)
def test_a_push_that_fails_in_silence_or_aloud_is_an_error_with_advice(
    kaggle: FakeKaggle, cli: str, kernel: Path, answer: tuple[int, dict[str, Any]], words: list[str]
) -> None:
    kaggle.answers["SaveKernel"] = answer
    with pytest.raises(KaggleError) as caught:
        push_kernel(cli, kernel)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), word


def test_the_command_line_itself_ends_with_success_after_a_refusal(kaggle: FakeKaggle, cli: str, kernel: Path) -> None:
    """The reason for reading its output; when this fails, the reading may go."""
    import subprocess

    kaggle.answers["SaveKernel"] = (200, REFUSED)
    done = subprocess.run([cli, "kernels", "push", "-p", str(kernel)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, f"Kernel push error: {REFUSED['error']}")


def test_a_model_that_kaggle_drops_without_a_word_is_found(kaggle: FakeKaggle, cli: str, kernel: Path) -> None:
    saved = {"datasetDataSources": METADATA["dataset_sources"], "modelDataSources": [], "enableInternet": False}
    saved |= {"competitionDataSources": METADATA["competition_sources"], "machineShape": "NvidiaTeslaT4"}
    saved |= {"enableGpu": True, "isPrivate": True}
    kaggle.answers["GetKernel"] = (200, {"metadata": {"ref": METADATA["id"], "id": 11, **saved}, "blob": blob({})})
    with pytest.raises(KaggleError, match=r"version 3 was pushed, but .*me/llama-arc/transformers/4bit/1 was dropped"):
        push_kernel(cli, kernel)


def test_a_folder_that_the_upload_would_skip_is_an_error(kaggle: FakeKaggle, cli: str, bundle: Path) -> None:
    """By our own look first, and by the command line's output where something else calls it."""
    (bundle / "wheels").mkdir()
    (bundle / "wheels" / "x.whl").write_bytes(b"x")
    with pytest.raises(InputError, match="wheels would not be uploaded"):
        push_dataset(cli, bundle, "first")
    assert kaggle.requests == []
    with pytest.raises(KaggleError, match=r"Skipping folder: wheels.*must be flat"):
        run_cli(cli, "datasets", "create", "-p", str(bundle))


def test_a_dataset_that_one_may_not_look_at_is_made_and_waited_for(kaggle: FakeKaggle, cli: str, bundle: Path) -> None:
    """So Kaggle says that there is none, and says it on for a while once there is one."""
    kaggle.absent, kaggle.unseen = (403, {"code": 403, "message": "Permission 'datasets.get' was denied"}), 1
    assert push_dataset(cli, bundle, "first") == "me/arc-ttt-wheels"
    assert len(kaggle.bodies("CreateDataset")) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, {}), "503 Server Error.* -> .*try again in some minutes"),
        ((403, {"code": 403, "message": "Forbidden"}), "Forbidden -> .*check the owner's name"),
        ((401, {"code": 401, "message": "Unauthorized"}), "-> log in"),
    ],
    ids=["busy", "forbidden", "login"],
)
def test_a_dataset_is_not_made_anew_because_kaggle_does_not_tell_whether_it_is_there(
    kaggle: FakeKaggle, cli: str, bundle: Path, answer: tuple[int, dict[str, Any]], words: str
) -> None:
    kaggle.answers["GetDatasetStatus"] = answer
    with pytest.raises(KaggleError, match=words):
        push_dataset(cli, bundle, "first")
    assert {name for name, _ in kaggle.requests} == {"GetDatasetStatus"}


def dry_run(bundle: Path, kernel: Path, *more: str) -> int:
    return push.main(["--dry-run", "--bundle", str(bundle), "--kernel", str(kernel), *more])


def test_a_dry_run_prints_the_commands_of_what_is_pushed(
    bundle: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(push, "outdated", lambda _: "")
    assert dry_run(bundle, kernel) == 0
    words = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()]
    pushes = [["kernels", "push"], ["kernels", "pull"]]
    assert words == [["datasets", "status"], ["datasets", "create"], ["datasets", "status"], *pushes]
    assert dry_run(bundle / "none", kernel, "--only", "kernel") == 0
    assert [line.split()[1:3] for line in capsys.readouterr().out.splitlines()] == pushes


def test_a_dry_run_gives_the_same_commands_to_machines(
    bundle: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(push, "outdated", lambda _: "")
    assert dry_run(bundle, kernel, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"commands": told.err.splitlines()}


def test_a_push_of_the_kernel_alone_warns_of_code_that_is_not_in_the_bundle(
    bundle: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(push, "outdated", lambda folder: f"{folder.name} is made from commit 0123")
    assert dry_run(bundle, kernel, "--only", "kernel") == 0
    told = capsys.readouterr()
    assert "WARNING: bundle is made from commit 0123; the kernel would run the code that its dataset holds" in told.err
    assert told.out.startswith("kaggle kernels push")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no bundle", "there is no bundle in"),
        ("old bundle", "made from commit 0123"),
        ("other dataset", "me/other-wheels, which is not among dataset_sources"),
        ("owner in the bundle", "replace OWNER in kernel-metadata.json"),
        ("owner", "kernel-metadata.json: replace OWNER"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_nothing_is_pushed_that_could_be_known_to_be_wrong(
    bundle: Path,
    kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    words: str,
    dry: bool,
) -> None:
    monkeypatch.setattr(push, "find_cli", lambda: pytest.fail("kaggle was called"))
    about = json.loads((bundle / "dataset-metadata.json").read_text())
    if fault == "no bundle":
        shutil.rmtree(bundle)
    elif fault == "old bundle":
        (bundle / MANIFEST).write_text('{"commit": "0123"}')
    else:
        monkeypatch.setattr(push, "outdated", lambda _: "")
        if fault == "owner":
            (kernel / "kernel-metadata.json").write_text(json.dumps({**METADATA, "id": "OWNER/arc-ttt-kernel"}))
        else:
            name = "me/other-wheels" if fault == "other dataset" else "OWNER/arc-ttt-wheels"
            (bundle / "dataset-metadata.json").write_text(json.dumps({**about, "id": name}))
    assert push.main(["--bundle", str(bundle), "--kernel", str(kernel), *(["--dry-run"] if dry else [])]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""


def test_a_dataset_that_fails_is_an_error(kaggle: FakeKaggle, cli: str, bundle: Path) -> None:
    kaggle.answers["CreateDataset"] = (200, {"status": "error", "error": "The slug is taken."})
    with pytest.raises(KaggleError, match=r"Dataset creation error: The slug is taken\..*refused"):
        push_dataset(cli, bundle, "first")
    del kaggle.answers["CreateDataset"]
    kaggle.versions, kaggle.answers["GetDatasetStatus"] = 1, (200, {"status": "FAILED"})
    with pytest.raises(KaggleError, match="me/arc-ttt-wheels is failed"):
        push_dataset(cli, bundle, "second")


@pytest.fixture
def stuck(tmp_path: Path) -> str:
    """A command that reads what nobody types."""
    command = tmp_path / "kaggle"
    command.write_text("#!/bin/sh\nread answer && echo typed\nexec sleep 60\n")
    command.chmod(0o755)
    return str(command)


def test_a_command_that_does_not_end_is_an_error_with_advice(stuck: str) -> None:
    with pytest.raises(KaggleError, match="kaggle kernels push had not ended after 0s -> check the connection"):
        run_cli(stuck, "kernels", "push", limit_s=0.3)


def test_an_upload_has_more_time_than_a_question(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, float] = {}
    states = iter([("", 0), ("ready", 1)])
    monkeypatch.setattr(push, "dataset_state", lambda *_: next(states))
    monkeypatch.setattr(push, "run_cli", lambda _, *words, limit_s=1.0: limits.update({words[1]: limit_s}))
    push_dataset("kaggle", bundle, "first")
    assert limits == {"create": kaggle_cli.UPLOAD_LIMIT_S}
    assert kaggle_cli.UPLOAD_LIMIT_S > 10 * kaggle_cli.ANSWER_LIMIT_S


def test_a_plain_push_from_a_clone_works_once_the_owner_is_set(kaggle: FakeKaggle, cli: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    for name in ("kernel.py", "kernel-metadata.json"):
        text = (root / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("OWNER", "me") if name.endswith("json") else text, encoding="utf-8")
    assert push_kernel(cli, tmp_path) == 3
    (sent,) = kaggle.bodies("SaveKernel")
    assert sent["text"] == (root / "kernel.py").read_text(encoding="utf-8")
    assert sent["enableInternet"] is False


def test_without_the_command_line_the_message_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(push.sys, "executable", "/nowhere/python")
    with pytest.raises(InputError, match="pip install kaggle"):
        find_cli()

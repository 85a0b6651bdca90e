"""The real kaggle command line against an API of our own on this machine.

The server poses as the HTTP proxy of a command line that was told to talk to localhost, so nothing can leave the
machine; what it is sent is compared whole.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import arc_lab.publish.push as push
from arc_lab.publish import kaggle_cli
from arc_lab.publish.kaggle_cli import KaggleError, find_cli, run_cli
from arc_lab.publish.metadata import FIELD_TYPES, kernel_problems, source_differences
from arc_lab.publish.push import push_dataset, push_kernel
from arc_lab.publish.submit import submit
from arc_ttt.bootstrap.mounts import MANIFEST
from arc_ttt.errors import InputError

METADATA = {
    "id": "me/arc-ttt-kernel",
    "title": "ARC TTT kernel",
    "code_file": "kernel.py",
    "language": "python",
    "kernel_type": "script",
    "is_private": True,
    "enable_gpu": True,
    "enable_tpu": False,
    "enable_internet": False,
    "machine_shape": "NvidiaTeslaT4",
    "keywords": [],
    "dataset_sources": ["me/arc-ttt-wheels"],
    "competition_sources": ["arc-prize-2026-arc-agi-2"],
    "kernel_sources": [],
    "model_sources": ["me/llama-arc/transformers/4bit/1"],
    "docker_image_pinning_type": "original",
}
CODE = 'print("hello")\n'


class FakeKaggle(ThreadingHTTPServer):
    """Answers by service and method; keeps every request. `answers` change single ones: (status, body)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, Any]] = []
        self.uploads: list[bytes] = []
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {}
        self.versions = 0
        self.absent = 404, {"code": 404, "message": "Not Found"}  # answer for a dataset that is not there
        self.unseen = 0  # so many questions after its creation are answered alike
        self.saved: dict[str, Any] = {}
        self.states = {"v3": "COMPLETE"}  # of the kernel's versions, the newest last

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self, method: str) -> list[Any]:
        return [body for name, body in self.requests if name == method]

    def answer(self, method: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if method in self.answers:
            return self.answers[method]
        if method == "GetDatasetStatus":
            self.unseen -= bool(self.versions)
            return (200, {"status": "READY"}) if self.versions and self.unseen < 0 else self.absent
        if method == "GetDataset":
            return 200, {"ref": "me/arc-ttt-wheels", "currentVersionNumber": self.versions}
        if method == "StartBlobUpload":
            return 200, {"token": f"token-{body['name']}", "createUrl": f"{self.url}/upload"}
        if method in ("CreateDataset", "CreateDatasetVersion"):
            self.versions += 1
            return 200, {"status": "ok", "url": "https://www.kaggle.com/datasets/me/arc-ttt-wheels"}
        if method == "SaveKernel":
            self.saved = body
            return 200, {"ref": "/code/me/arc-ttt-kernel", "url": "https://kaggle", "versionNumber": 3, "kernelId": 11}
        if method == "GetKernel":
            return 200, {"metadata": {"ref": METADATA["id"], "id": 11, **self.saved}, "blob": _blob(self.saved)}
        if method == "GetKernelSessionStatus":
            asked = body.get("versionLabel", [*self.states][-1])
            return (200, {"status": self.states[asked]}) if asked in self.states else self.absent
        if method == "CreateCodeSubmission":
            return 200, {"message": "Successfully submitted", "ref": 5}
        return 200, {}


def _blob(saved: dict[str, Any]) -> dict[str, Any]:
    return {"source": saved.get("text", ""), "language": "python", "kernelType": "script", "slug": "arc-ttt-kernel"}


class _Handler(BaseHTTPRequestHandler):
    server: FakeKaggle
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/upload"):
            self.server.uploads.append(content)
            status, body = 200, {}
        else:
            method = self.path.split("?")[0].rsplit("/", 1)[1]
            sent = json.loads(content) if content else {}
            self.server.requests.append((method, sent))
            status, body = self.server.answer(method, sent)
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Tests have no use for a log."""


@pytest.fixture(scope="module")
def cli() -> str:
    try:
        return find_cli()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKaggle]:
    server = FakeKaggle()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    for name in ("no_proxy", "NO_PROXY", "KAGGLE_API_TOKEN", "KAGGLE_KERNEL_RUN_TYPE", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {
        "HOME": str(home),
        "KAGGLE_CONFIG_DIR": str(home),
        "KAGGLE_USERNAME": "me",
        "KAGGLE_KEY": "k",
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "http_proxy": server.url,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(push, "READY_EVERY_S", 0.01)
    monkeypatch.setattr(push, "READY_LIMIT_S", 20.0)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    folder = tmp_path / "kernel"
    folder.mkdir()
    (folder / "kernel.py").write_text(CODE)
    (folder / "kernel-metadata.json").write_text(json.dumps(METADATA))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "arc_ttt-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    (folder / MANIFEST).write_text("{}")
    about = {"title": "arc ttt wheels", "id": "me/arc-ttt-wheels", "licenses": [{"name": "other"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(about))
    return folder


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
    kaggle.answers["GetKernel"] = (200, {"metadata": {"ref": METADATA["id"], "id": 11, **saved}, "blob": _blob({})})
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


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda body: body.update(values)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (change(id="OWNER/arc-ttt-kernel"), "replace OWNER"),
        (change(id="me/arc", title="arc arc"), "at least 5"),
        (change(title="Other title"), "another slug"),
        (change(accelerator="NvidiaL4"), "machine_shape"),
        (change(enable_internet="false"), "enable_internet"),
        (lambda body: body.pop("enable_internet"), "missing value as true"),
        (change(enable_gpu=False), "enable_gpu"),
        (change(is_private=1), "bool"),
        (change(dataset_sources=None), "list"),
        (change(dataset_sources=["wheels"]), "user/slug"),
        (change(dataset_sources=[]), "without its own code"),
        (change(competition_sources=[]), "no tasks"),
        (change(competition_sources=["arc-prize-2025", "arc-prize-2026-arc-agi-2"]), "one competition only"),
        (change(model_sources=["me/llama/transformers/4bit"]), "version a number"),
        (change(model_sources=["me/MODEL/transformers/VARIATION/1"]), "replace MODEL, VARIATION"),
        (change(machine_shape="NvidiaTeslaP100"), "NvidiaTeslaT4"),
        (change(machine_shape="NvidiaL4X4"), "four L4"),
        (lambda body: body.pop("machine_shape"), 'missing: write "NvidiaTeslaT4", which is two T4'),
        (change(code_file="other.py"), "no such file"),
        (change(kernel_type="notebook"), "script"),
        (change(docker_image_pinning_type="newest"), "original"),
    ],
)
def test_mistakes_in_the_metadata_are_found_at_home(
    kernel: Path, edit: Callable[[dict[str, Any]], None], word: str
) -> None:
    body = json.loads(json.dumps(METADATA))
    assert kernel_problems(body, kernel) == []
    edit(body)
    problems = kernel_problems(body, kernel)
    assert word in problems[0]


def test_a_code_file_that_is_too_long_is_found_at_home(kernel: Path) -> None:
    (kernel / "kernel.py").write_text("#" * 900_000)
    assert "less than 1 MB" in kernel_problems(dict(METADATA), kernel)[0]


def test_what_kaggle_stores_is_compared_source_by_source() -> None:
    assert source_differences(METADATA, dict(METADATA)) == []
    stored = {**METADATA, "enable_internet": True, "dataset_sources": []}
    assert [line.split(":")[0].split(" ")[0] for line in source_differences(METADATA, stored)] == [
        "dataset_sources",
        "enable_internet",
    ]


def test_the_metadata_of_this_repository_need_only_an_owner() -> None:
    root = Path(__file__).resolve().parents[3]
    body = json.loads((root / "kernel-metadata.json").read_text())
    assert set(body) <= set(FIELD_TYPES)
    named = json.loads(json.dumps(body).replace("OWNER", "somebody"))
    assert kernel_problems(named, root) == []


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

"""What happens when nobody reads what is printed any more: real processes, real pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arc_ttt.run.submission import check_submission

ROOT = Path(__file__).resolve().parents[2]
PAIR = {"input": [[1, 2], [3, 4]], "output": [[2, 1], [4, 3]]}
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
KERNEL = [sys.executable, str(ROOT / "kernel.py")]


def after_a_line(command: list[str], **environment: str) -> tuple[int, str]:
    """Exit status and stderr of a command whose reader goes away after one line."""
    env = {**ENV, **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        return process.wait(timeout=200), said


def test_a_command_ends_quietly_when_its_reader_is_gone() -> None:
    lab = [sys.executable, "-u", "-m", "arc_lab"]
    sweep = ["simulate", "--tasks", "3", "--devices", "1,2", "--limit", "1h,2h"]
    assert after_a_line([*lab, *sweep]) == (141, "")


def test_unbuffered_output_stays_unbuffered() -> None:
    """As under `python -u`: the first line is there while the script still waits to be told to end."""
    code = "from arc_ttt.bootstrap.process import outlive_reader; outlive_reader('stdout', 1); print('here'); input()"
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"  # else both would wait for ever
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_a_broken_pipe_of_another_kind_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from arc_lab import __main__ as lab

    def fail(argv: list[str]) -> int:
        raise BrokenPipeError("to a process of its own")

    monkeypatch.setattr(lab, "main", fail)
    with pytest.raises(BrokenPipeError):
        lab.run([])


def test_a_dry_run_goes_on_to_its_submission_when_its_reader_is_gone(tmp_path: Path) -> None:
    tasks = {name: {"train": [PAIR, PAIR], "test": [PAIR]} for name in ("a", "b")}
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    out = tmp_path / "out"
    quick = ["--set=ttt.scope=none", "--set=decode.views=2", "--set=synthesis.cpu_limits_s=1", "--workers=1"]
    command = [*KERNEL, "--tasks", str(tmp_path / "tasks.json"), "--out", str(out), "--limit", "3m", *quick]
    assert after_a_line(command) == (0, "")
    check_submission(json.loads((out / "submission.json").read_text()), {"a": 1, "b": 1})
    report = json.loads((out / "report.json").read_text())
    assert report["stopped_by"] == "all done"
    assert report["score"]["joined"]["at_2"] == 2


@pytest.mark.parametrize("kind", ["no reader", "full disk", "closed"])
def test_what_the_kernel_prints_never_ends_it(tmp_path: Path, kind: str) -> None:
    if kind == "no reader":
        reading, stdout = os.pipe()
        os.close(reading)
    else:
        stdout = os.open("/dev/full", os.O_WRONLY)
    script = "import sys\nfrom arc_ttt.bootstrap.process import outlive_readers\noutlive_readers()\n"
    script += "for stream in (sys.stdout, sys.stderr) * 2: print('x' * 9000, file=stream, flush=True)\n"
    script += "print('unflushed')\nopen(sys.argv[1], 'w').write('went on')"
    shell = 'exec "$@" >&- 2>&-' if kind == "closed" else 'exec "$@" 2>&1'
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", script, str(tmp_path / "end")]
    done = subprocess.run(command, stdout=stdout, env=ENV, cwd=ROOT, timeout=100, check=False)
    os.close(stdout)
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "went on"


def test_words_reach_a_reader_that_stays(tmp_path: Path) -> None:
    script = "import sys\nfrom arc_ttt.bootstrap.process import outlive_readers\noutlive_readers()\n"
    script += "print('first', flush=True)\nprint('last é')"
    with (tmp_path / "log").open("a", encoding="utf-8") as log:
        log.write("before\n")
        log.flush()
        subprocess.run([sys.executable, "-X", "utf8", "-c", script], stdout=log, env=ENV, cwd=ROOT, check=True)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "before\nfirst\nlast é\n"


def test_a_run_on_kaggle_goes_on_to_its_submission_when_its_reader_is_gone(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "working").mkdir()
    zeros = {"attempt_1": [[0, 0], [0, 0]], "attempt_2": [[0, 0], [0, 0]]}
    (tmp_path / "input" / "sample_submission.json").write_text(json.dumps({"x": [zeros]}))
    code, said = after_a_line(KERNEL, ARC_KAGGLE_ROOT=str(tmp_path), KAGGLE_IS_COMPETITION_RERUN="1")
    assert (code, said) == (0, "")
    assert (tmp_path / "working" / "setup.json").is_file()  # it was written after much had been said
    check_submission(json.loads((tmp_path / "working" / "submission.json").read_text()), {"x": 1})

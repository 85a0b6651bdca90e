"""Several processes train as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.pretraining import options_of, run, settings_of
from support.trainings import weights

ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


SCRIPT = """
import sys
from pathlib import Path
import torch
from arc_lab.pretraining.settings import PRESETS
from support.pretraining import TINY, options_of, run, settings_of
torch.set_num_threads(1)
PRESETS["tiny"] = TINY
run(Path(sys.argv[1]), settings_of(steps=4), options_of(Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batches(pack_file: Path, tmp_path: Path) -> None:
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(pack_file), str(tmp_path / "two")],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    run(pack_file, settings_of(steps=4, accumulate=2), options_of(tmp_path / "one"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_command_ends_well_under_torchrun(pack_file: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "arc_lab", "pretrain", "--pack", str(pack_file), "--steps", "3", "--batch-tokens", "1024"]
    small = ["--window-sequences", "8", "--windows-ahead", "1", "--eval-sequences", "2", "--processes", "1", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *command, *small, "--out", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"finished"')]
    assert [(line["finished"], line["steps"]) for line in lines] == [(True, 3)]  # the first process alone tells
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["processes"] == 2

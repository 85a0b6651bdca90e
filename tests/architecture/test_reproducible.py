"""The same seed gives the same bytes, whatever the hash seed is and however many workers there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "ttt.max_sequences=16",
    "ttt.passes=3",
    "ttt.rank=4",
    "decode.views=4",
    "decode.base_views=4",
    "vote.scoring_views=4",
    "model.dtype=float32",
    "synthesis.enabled=false",
)
TASKS = "6150a2bd,a416b8f3,d631b094"  # of the public training tasks: a half turn, two side by side, a row of one colour


def submission(out: Path, *, hash_seed: str, workers: int, seed: int = 3) -> tuple[bytes, dict[str, object]]:
    """What a run of the script leaves, and its report."""
    command = [sys.executable, str(ROOT / "kernel.py"), "--tasks", "training", "--ids", TASKS, "--out", str(out)]
    command += ["--workers", str(workers), "--seed", str(seed), "--limit", "10m", *(f"--set={s}" for s in SMALL)]
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["stopped_by"] == "all done"
    outcomes = [row[stage]["outcome"] for row in report["by_task"].values() for stage in ("base", "ttt")]
    assert outcomes == ["finished"] * 6
    return (out / "submission.json").read_bytes(), report


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, _ = submission(tmp_path / "one", hash_seed="0", workers=1)
    two, report = submission(tmp_path / "two", hash_seed="4711", workers=2)
    assert report["workers"] == 2
    assert one == two
    document = json.loads(one)
    assert set(document) == set(TASKS.split(","))
    attempts = [row[name] for rows in document.values() for row in rows for name in ("attempt_1", "attempt_2")]
    assert len({json.dumps(attempt) for attempt in attempts}) > 3  # answers, not one and the same fallback

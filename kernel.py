"""Test-time training for ARC: one script for Kaggle and for a dry run at home.

On Kaggle (no arguments, no network) it finds the mounted competition, wheels and model, and writes submission.json.
Anywhere else it runs public ARC tasks with the embedded model under a simulated time limit: `python kernel.py --help`.
"""

import os
import signal
import sys
import time
import zipfile
from pathlib import Path

START_S = time.monotonic()
SIGNALS: list[int] = []  # noted from here on; the run looks at them once its first submission is on the disk

# What a competitor edits before `kaggle kernels push`: the names of `--set`, explained in src/arc_ttt/settings.py.
SETTINGS: dict[str, object] = {
    "preset": "embedded",  # embedded, llama-1b-3b or llama-8b: with a mounted model choose the one of its size
    # "model.path": "/kaggle/input/models/OWNER/MODEL/transformers/VARIATION/1",
    # "model.format": "architects",
    "run.limit_s": 11.5 * 3600,
}
COMMIT_TASKS = 4  # tasks of the public commit run; the scoring rerun always takes all

ROOT = Path(os.environ.get("ARC_KAGGLE_ROOT", "/kaggle"))
for name, value in {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}.items():
    os.environ.setdefault(name, value)


def make_importable() -> None:
    """Put arc_ttt on the path: from src/ beside this file, or from its wheel among the mounted inputs."""
    source = Path(__file__).resolve().parent / "src"
    if (source / "arc_ttt").is_dir():
        sys.path.insert(0, str(source))
        return
    for package in sorted((ROOT / "input").rglob("arc_ttt/__init__.py")):
        sys.path.insert(0, str(package.parent.parent))
        return
    for wheel in sorted((ROOT / "input").rglob("arc_ttt-*.whl")):
        target = ROOT / "temp" / "arc_ttt"
        zipfile.ZipFile(wheel).extractall(target)
        sys.path.insert(0, str(target))
        return
    sys.exit("kernel.py: neither src/arc_ttt beside this file nor an arc_ttt wheel among the inputs")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: SIGNALS.append(number))
    make_importable()
    from arc_ttt import bootstrap
    from arc_ttt.deadline import run_start

    start_s = run_start(START_S, container=bootstrap.owns_container())
    if bootstrap.is_kaggle(ROOT) and len(sys.argv) == 1:
        from arc_ttt.kaggle import kaggle_run

        sys.exit(kaggle_run(ROOT, SETTINGS, COMMIT_TASKS, start_s, SIGNALS))
    from arc_lab.dry_run import main

    sys.exit(main(sys.argv[1:], start_s, SIGNALS))

"""`arc-lab COMMAND`, or `python -m arc_lab COMMAND`: find the command and run it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from arc_lab.command_line import PROGRAM, ends_with_its_reader, version_text

COMMANDS = {  # command: (module with `main(argv) -> exit status`, one sentence of help)
    "ablate": ("evaluate.ablate", "Run the paper's ablations on one set of tasks and print the paired table."),
    "benchmark": (
        "evaluate.benchmark",
        "Measure how fast this machine trains and decodes, and its share of the peak.",
    ),
    "bundle": (
        "publish.bundle",
        "Build the dataset folder for Kaggle: wheels, this project's wheel, a small model.",
    ),
    "preflight": ("publish.preflight.command", "Check everything about a submission that can be checked at home."),
    "pretrain": ("pretraining.command", "Train a small Llama on a pack of pairs, from nothing or from a checkpoint."),
    "push": ("publish.push", "Upload the bundle and the kernel with the kaggle command line, and check what arrived."),
    "quantize": ("pretraining.quantize", "Write a checkpoint's NF4 form and measure what that costs."),
    "rearc": ("pretraining.rearc.command", "Build a training pack from the ReARC generators."),
    "rehearse": ("publish.rehearse", "Run kernel.py as Kaggle would: its folders, no network, a clean interpreter."),
    "revote": ("evaluate.revote", "Count a finished run's answers again, under fewer views and other rules."),
    "simulate": ("simulate.command", "Simulate a run in virtual time: does it fit its limit, and what do tasks get?"),
    "submit": ("publish.submit", "Submit a pushed version of the kernel to the competition."),
    "synthesize": ("evaluate.synthesize", "Run CPU program synthesis on a set of tasks and print a table of results."),
    "wheels": ("publish.wheels", "Fetch and check the wheels that Kaggle's image lacks."),
}

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Set before NumPy is imported for `synthesize`, whose limits count the CPU seconds of all threads."""


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status; 2 for wrong use."""
    if argv and argv[0] in COMMANDS:
        if argv[0] == "synthesize":
            for name in ONE_THREAD:
                os.environ.setdefault(name, "1")
        module = importlib.import_module(f"arc_lab.{COMMANDS[argv[0]][0]}")
        return int(module.main(argv[1:]))
    if list(argv[:1]) == ["--version"]:
        print(version_text())
        return 0
    asked = list(argv[:1]) in ([], ["-h"], ["--help"])
    out = sys.stdout if argv and asked else sys.stderr
    if not asked:
        print(f"{PROGRAM}: no command {argv[0]!r}; there are: {', '.join(COMMANDS)}", file=out)
        return 2
    print(f"usage: {PROGRAM} COMMAND [options]; COMMAND --help lists its options", file=out)
    for name, (_, sentence) in COMMANDS.items():
        print(f"  {name:12} {sentence}", file=out)
    return 0 if argv else 2


def run(argv: Sequence[str]) -> int:
    """`main`, ended quietly once the reader of its output is gone."""
    return ends_with_its_reader(lambda: main(argv))


def console() -> int:
    """Entry point of the console script."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(console())

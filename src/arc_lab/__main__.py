"""python -m arc_lab COMMAND ...: tools for a person at home."""

from __future__ import annotations

import importlib
import os
import select
import sys

COMMANDS = {  # command: (module with `main(argv) -> exit status`, one sentence of help)
    "ablate": ("arc_lab.evaluate.ablate", "Run the paper's ablations on one set of tasks and print the paired table."),
    "bundle": (
        "arc_lab.publish.bundle",
        "Build the dataset folder for Kaggle: wheels, the project's own wheel, a small model.",
    ),
    "benchmark": (
        "arc_lab.evaluate.benchmark",
        "Measure how fast this machine trains and decodes, and what share of its peak.",
    ),
    "preflight": (
        "arc_lab.publish.preflight.command",
        "Check at home everything about a submission that can be checked at home.",
    ),
    "pretrain": (
        "arc_lab.pretraining.command",
        "Train a small Llama on a pack of pairs, from nothing or from a checkpoint.",
    ),
    "push": (
        "arc_lab.publish.push",
        "Upload the bundle and the kernel with the kaggle command line, and check what arrived.",
    ),
    "quantize": ("arc_lab.pretraining.quantize", "Write a checkpoint's NF4 form and measure what that costs."),
    "rearc": ("arc_lab.pretraining.rearc.command", "Build a training pack from the ReARC generators."),
    "rehearse": (
        "arc_lab.publish.rehearse",
        "Run kernel.py as Kaggle would: its folders, no network, a clean interpreter, a limit.",
    ),
    "revote": ("arc_lab.evaluate.revote", "Count a finished run's answers again, under fewer views and other rules."),
    "submit": ("arc_lab.publish.submit", "Submit a pushed version of the kernel to the competition."),
    "simulate": (
        "arc_lab.simulate.command",
        "Simulate a run in virtual time: will it fit its limit, and what do tasks get?",
    ),
    "synthesize": (
        "arc_lab.evaluate.synthesize",
        "Run CPU program synthesis on a set of tasks and print a table of results.",
    ),
    "wheels": ("arc_lab.publish.wheels", "Fetch and check the wheels that Kaggle's image lacks."),
}


def main(argv: list[str]) -> int:
    """Run one command and return its exit status; 2 for wrong use."""
    if argv and argv[0] in COMMANDS:
        if argv[0] == "synthesize":  # before NumPy is there: its limits count the CPU seconds of all threads
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
                os.environ.setdefault(name, "1")
        module = importlib.import_module(COMMANDS[argv[0]][0])
        return int(module.main(argv[1:]))
    asked = argv[:1] in ([], ["-h"], ["--help"])
    out = sys.stdout if argv and asked else sys.stderr
    if not asked:
        print(f"arc_lab: no command {argv[0]!r}; there are: {', '.join(COMMANDS)}", file=out)
        return 2
    print("usage: python -m arc_lab COMMAND [options]; COMMAND --help tells the options", file=out)
    for name, (_, sentence) in COMMANDS.items():
        print(f"  {name:12} {sentence}", file=out)
    return 0 if argv else 2


READER_GONE = 128 + 13  # what a shell says of a program that SIGPIPE ended


def run(argv: list[str]) -> int:
    """`main`, ended without a word once the reader of its output is gone, as in `arc_lab simulate | head -3`."""
    try:
        try:
            return main(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        gone = [number for number in (1, 2) if _reader_is_gone(number)]
        if not gone:  # of a process of the command's own: that is an error
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in gone:  # what is still in its buffer goes there
            os.dup2(nowhere, number)
        return READER_GONE


def _reader_is_gone(number: int) -> bool:
    """Whether the pipe that a file descriptor writes to has no reader any more."""
    poll = select.poll()
    poll.register(number, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

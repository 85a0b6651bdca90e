"""The kaggle command line: find it, run it, and read what it prints.

Its exit status says too little: the command ends with success after many failures.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from arc_ttt.deadline import format_duration
from arc_ttt.errors import ArcError, InputError

ANSWER_LIMIT_S = 600.0
"""Seconds for a command that uploads little."""

UPLOAD_LIMIT_S = 6 * 3600.0
"""Seconds for an upload: 2 GB at a megabit a second take four and a half hours."""

LOG_IN = "log in: make an API token on your Kaggle account page and keep it as ~/.kaggle/access_token"
NO_NETWORK = "Kaggle cannot be reached: check the connection"
TOO_SLOW = "check the connection and what has arrived at Kaggle, then try again"
TRY_LATER = "Kaggle has trouble or limits our requests: try again in some minutes"

WITH_STATUS_0 = (
    (r"Maximum batch GPU session count", "two of your GPU runs are still going: wait for one to end, or cancel it"),
    (r"Kernel push error", "Kaggle refused the kernel: the line gives the reason"),
    (r"not valid dataset sources", "a dataset is misspelt, not yours, or not ready: see dataset_sources"),
    (r"not valid competition sources", "join the competition and accept its rules on its page, then push again"),
    (r"not valid kernel sources", "see kernel_sources in kernel-metadata.json"),
    (r"not valid tags", "see keywords in kernel-metadata.json"),
    (r"Skipping folder", "folders are not uploaded: the bundle must be flat"),
    (r"Upload unsuccessful", "a file did not arrive: check the connection, then push again"),
    (r"Dataset (version )?creation error", "Kaggle refused the dataset: the line gives the reason"),
)
"""Patterns of failures in the output of a command that ended with 0 all the same, each with advice."""

WITH_ERROR_STATUS = (
    (r"must be less than 1 megabytes", "kernel.py is too long; keep code in src/, it travels in the wheel"),
    (r"invalid character", "rename the file: letters, digits, dot, dash and underscore"),
    (r"access_token|Unauthorized|authenticate", LOG_IN),
    (r"ConnectionError|Max retries|Connection refused", NO_NETWORK),
    (r"403|Forbidden|[Pp]ermission", "you may not use this: accept the competition's rules, or check the owner's name"),
    (r"404|[Nn]ot [Ff]ound|Could not find", "Kaggle does not know this name: check owner, slug and version"),
    (r"\b5\d\d Server Error|\b429\b|Internal|Unavailable|Too [Mm]any|[Tt]imed out", TRY_LATER),
    (r"", "the line gives the reason"),
)
"""Patterns in the output of a command that ended with an error, each with advice; the first that matches counts."""


class KaggleError(ArcError):
    """A command of the kaggle command line failed, whatever its exit status.

    Args:
        failure: what failed, in Kaggle's words where it printed any.
        advice: what to do about it.
    """

    def __init__(self, failure: str, advice: str = "") -> None:
        super().__init__(f"{failure} -> {advice}" if advice else failure)
        self.failure = failure
        self.advice = advice


def find_cli() -> str:
    """The path of the kaggle command: beside this interpreter, or on PATH.

    Raises:
        InputError: it is not installed.
    """
    beside = Path(sys.executable).parent / "kaggle"
    found = str(beside) if beside.is_file() else shutil.which("kaggle")
    if not found:
        raise InputError("the kaggle command is not installed: pip install kaggle==2.2.4 six")
    return found


def run_cli(cli: str, *arguments: str, limit_s: float = ANSWER_LIMIT_S) -> str:
    """Run one command of the kaggle command line and return its output. Raises KaggleError as `output_of` does."""
    return output_of([cli, *arguments], f"kaggle {arguments[0]} {arguments[1]}", limit_s)


def output_of(words: Sequence[str], name: str, limit_s: float = ANSWER_LIMIT_S) -> str:
    """Run a program that asks Kaggle and return its output.

    Args:
        words: the command line.
        name: what messages call the program.
        limit_s: seconds after which it is killed.

    Raises:
        KaggleError: it failed, reported a failure although it ended with 0, or took too long.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise KaggleError(f"{name} had not ended after {format_duration(limit_s)}", TOO_SLOW) from error
    output = f"{done.stdout}\n{done.stderr}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern, advice in (*WITH_STATUS_0, *WITH_ERROR_STATUS) if done.returncode else WITH_STATUS_0:
        if line := next((line for line in reversed(lines) if re.search(pattern, line)), ""):
            raise KaggleError(f"{name}: {line}", advice)
    if done.returncode:
        raise KaggleError(f"{name} ended with {done.returncode} and no message")
    return done.stdout

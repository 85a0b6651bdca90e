"""`arc-lab submit`: hand a pushed version of the kernel to the competition, once its own run is complete."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from arc_lab.command_line import add_json, json_document, make_parser, reports_errors
from arc_lab.folders import ROOT
from arc_lab.publish.kaggle_cli import KaggleError, find_cli, output_of, run_cli
from arc_lab.publish.metadata import competition_of, read_metadata

OUTPUT = "submission.json"
"""Name of the file that the version wrote; not a path on this machine."""

EXAMPLES = ("arc-lab submit --version 7", 'arc-lab submit --version 7 --message "longer training"')

# A program that asks for the status through the command line's library: `kaggle kernels status` of 2.2.4 takes a
# version, leaves it out of its request and reports the newest one. The site knows versions as v1, v2, ... and answers
# 404 to a bare number.
STATUS = """
import sys
try:
    from kaggle import api
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusRequest
    request = ApiGetKernelSessionStatusRequest()
    request.user_name, request.kernel_slug, request.version_label = sys.argv[1:]
    with api.build_kaggle_client() as kaggle:
        print(kaggle.kernels.kernels_api_client.get_kernel_session_status(request).status)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def submit(cli: str, root: Path, version: int, message: str) -> str:
    """Submit a version whose run is complete, and return what kaggle printed.

    Raises:
        InputError: the metadata name no competition.
        KaggleError: the version's run is not complete, or Kaggle refused.
    """
    body = read_metadata(root / "kernel-metadata.json")
    kernel, competition = str(body.get("id")), competition_of(body)
    state = version_state(cli, kernel, version)
    if state != "COMPLETE":
        wait = state in ("NEW_SCRIPT", "QUEUED", "RUNNING")
        advice = "wait for it" if wait else f"see the log of this version at https://www.kaggle.com/code/{kernel}"
        raise KaggleError(f"version {version} of {kernel} is {state}, not COMPLETE", advice)
    words = ("-f", OUTPUT, "-k", kernel, "-v", str(version), "-m", message)
    return run_cli(cli, "competitions", "submit", competition, *words).strip()


def version_state(cli: str, kernel: str, version: int) -> str:
    """State of the run of one version: QUEUED, RUNNING, COMPLETE, ERROR, ... Raises KaggleError."""
    owner, _, slug = kernel.partition("/")
    words = [_interpreter(cli), "-P", "-c", STATUS, owner, slug, f"v{version}"]
    output = output_of(words, f"asking for the status of version {version}")
    found = re.search(r"KernelWorkerStatus\.(\w+)", output)
    if found is None:
        raise KaggleError(f"version {version} of {kernel}: Kaggle's answer cannot be read: {output.strip()[-200:]!r}")
    return found[1]


def _interpreter(cli: str) -> str:
    """The Python that has the command line's library: the one in the command's first line, or else this one."""
    with contextlib.suppress(OSError), Path(cli).open("rb") as file:
        first = file.readline(1000).decode(errors="replace")
        words = first.removeprefix("#!").split()
        if first.startswith("#!") and len(words) == 1 and Path(words[0]).is_file():
            return words[0]
    return sys.executable


@reports_errors("submit")
def main(argv: Sequence[str]) -> int:
    """Run the submit command. Returns 0, or 1 if Kaggle refused, or 2 for wrong use."""
    parser = make_parser("submit", __doc__, examples=EXAMPLES, version=False)
    parser.add_argument("--version", type=int, required=True, metavar="N", help="version that the push printed")
    parser.add_argument("--message", default="arc-ttt", help="description of the submission")
    parser.add_argument("--kernel", type=Path, default=ROOT, metavar="DIR", help="folder of kernel-metadata.json")
    add_json(parser)
    options = parser.parse_args(argv)
    with json_document(options.json) as document:
        answer = submit(find_cli(), options.kernel, options.version, options.message)
        document |= {"version": options.version, "answer": answer}
        print(answer)
    return 0

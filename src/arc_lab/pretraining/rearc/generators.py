"""Load the ReARC generators of the package reasoning-gym, and make verified pairs.

Only the folder `reasoning_gym/arc/rearc_utils` is imported, from an installed package, an unpacked wheel or the wheel
file itself, without the package's `__init__` and its many requirements. Install or fetch the package with
`pip install --no-deps reasoning-gym==0.1.25` or `pip download --no-deps reasoning-gym==0.1.25`.

Run as `python -m arc_lab.pretraining.rearc.generators`, this module is a worker: it reads requests, one line of JSON
each, and answers each with one line. `generator_pool` starts it with PYTHONHASHSEED=0, because generators iterate over
sets.
Source: Hodel, "Addressing the Abstraction and Reasoning Corpus via Procedural Example Generation", 2024.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import json
import os
import random
import signal
import sys
import threading
import types
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arc_lab.data.packs import Pair, pair_bytes, pair_tokens
from arc_ttt.deadline import cpu_seconds
from arc_ttt.errors import InputError
from arc_ttt.tasks.grids import MAX_SIDE, Grid, freeze

PACKAGE_VERSION = "0.1.25"
"""The version of reasoning-gym that this module was written for."""

ATTEMPT_CPU_S = 20.0
"""CPU seconds of one attempt, at most."""


class SlowAttempt(Exception):
    """An attempt used more CPU time than allowed."""


@dataclass(frozen=True, slots=True)
class Generators:
    """The generators and the verifiers of their rules.

    Args:
        generate: by task id a function `(random.Random, low, high) -> {"input", "output"}`.
        verify: by task id a function from an input to its output.
    """

    generate: dict[str, Callable[..., dict[str, Any]]]
    verify: dict[str, Callable[[Any], Any]]

    @property
    def ids(self) -> list[str]:
        """Ids that have both."""
        return sorted(self.generate.keys() & self.verify.keys())


def package_folder(wheel: str) -> str:
    """The path of the package `reasoning_gym`.

    Args:
        wheel: "installed", a wheel file, or a folder that holds the package or a wheel of it.

    Raises:
        InputError: the package is not there.
    """
    if wheel == "installed":
        spec = importlib.util.find_spec("reasoning_gym")
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not places:
            raise InputError(f"reasoning-gym is not installed: pip install --no-deps reasoning-gym=={PACKAGE_VERSION}")
        return places[0]
    path = Path(wheel).expanduser().resolve()
    wheels = sorted(path.glob("reasoning_gym-*.whl")) if path.is_dir() else []
    if (path / "reasoning_gym" / "arc" / "rearc_utils").is_dir():
        return str(path / "reasoning_gym")
    if wheels:
        path = wheels[-1]
    if path.is_file() and path.suffix == ".whl":
        return str(path / "reasoning_gym")
    raise InputError(f"--wheel {wheel}: neither a wheel of reasoning-gym nor a folder that holds the package")


def source_fingerprint(folder: str) -> str:
    """A hash of the generators' sources in `folder`, which may be inside a wheel (WHEEL/reasoning_gym)."""
    prefix, total = "arc/rearc_utils/", hashlib.sha256()
    inside = Path(folder)
    if inside.is_dir():
        files = {str(path.relative_to(inside)): path for path in (inside / prefix).rglob("*.py")}
        for name in sorted(files):
            total.update(name.encode() + files[name].read_bytes())
    else:
        with zipfile.ZipFile(inside.parent) as wheel:
            start = f"{inside.name}/{prefix}"
            for name in sorted(name for name in wheel.namelist() if name.startswith(start) and name.endswith(".py")):
                total.update(name.removeprefix(f"{inside.name}/").encode() + wheel.read(name))
    return total.hexdigest()[:16]


def load_generators(wheel: str) -> Generators:
    """Import generators and verifiers. This leaves stub packages in `sys.modules`, so call it in a separate process.

    Raises:
        InputError: the package is not there, or cannot be imported.
    """
    folder = package_folder(wheel)
    for name, inside in (("reasoning_gym", ""), ("reasoning_gym.arc", "/arc")):
        stub = types.ModuleType(name)
        stub.__path__ = [folder + inside]
        sys.modules[name] = stub
    base = "reasoning_gym.arc.rearc_utils"
    try:
        generators, verifiers, utils = (
            importlib.import_module(f"{base}.{part}") for part in ("generators", "verifiers", "utils")
        )
    except (ImportError, SyntaxError) as error:
        raise InputError(f"--wheel {wheel}: the generators cannot be imported: {error}") from error
    return Generators(utils.get_generators(generators), utils.get_verifiers(verifiers))


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise SlowAttempt in the body after this number of CPU seconds of the process. Main thread only."""

    def stop(*_: object) -> None:
        raise SlowAttempt

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def as_grid(rows: Any) -> Grid | None:
    """Rows of a generator as a Grid; None if they are no grid of at most 30 x 30."""
    try:
        cells = np.array(rows)
    except ValueError:
        return None
    if cells.ndim != 2 or not 0 < min(cells.shape) <= max(cells.shape) <= MAX_SIDE or cells.dtype.kind not in "iu":
        return None
    return freeze(cells) if 0 <= cells.min() <= cells.max() <= 9 else None


def attempt(
    generators: Generators, task_id: str, rng: random.Random, difficulty: tuple[float, float], cpu_s: float
) -> tuple[Pair | None, str]:
    """Make one pair, or return None and the reason: slow, an error, rejected by the verifier, or no grid.

    The upper bound of the generator's difficulty is drawn between the bounds of `difficulty`, so that easy and small
    grids are well represented.

    Args:
        generators: the generators.
        task_id: the generator to use.
        rng: its source of chance.
        difficulty: bounds from 0 to 1.
        cpu_s: CPU seconds that the attempt may use.
    """
    low, high = difficulty
    try:
        with cpu_limit(cpu_s):
            made = generators.generate[task_id](rng, low, rng.uniform(low, high))
            checked = generators.verify[task_id](made["input"])
            right = tuple(map(tuple, checked)) == tuple(map(tuple, made["output"]))
    except SlowAttempt:
        return None, "slow"
    except Exception as error:  # generated code may fail in any way; the name of the error is counted and reported
        return None, f"error {type(error).__name__}"
    if not right:
        return None, "rejected by the verifier"
    pair = as_grid(made["input"]), as_grid(made["output"])
    if pair[0] is None or pair[1] is None:
        return None, "no grid up to 30 x 30"
    return (pair[0], pair[1]), ""


def make_pairs(generators: Generators, request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request with distinct verified pairs of one generator, in the order in which they were found.

    Attempt n has its own random stream (seed, generator, n), so that a limit which is not reached changes nothing.

    Args:
        generators: the generators.
        request: generator, pairs (wanted), attempts (at most), cpu_s (of the whole request), max_side, max_tokens (of
            a pair), difficulty (two numbers), seed.
    """
    task_id, start_s = request["generator"], cpu_seconds()
    found: dict[bytes, None] = {}
    reasons: Counter[str] = Counter()
    attempts, cut = 0, False
    while len(found) < request["pairs"] and attempts < request["attempts"]:
        if cpu_seconds() - start_s > request["cpu_s"]:
            cut = True
            break
        rng = random.Random(f"{request['seed']}\0{task_id}\0{attempts}")
        attempts += 1
        limit_s = min(ATTEMPT_CPU_S, request["cpu_s"])
        pair, reason = attempt(generators, task_id, rng, tuple(request["difficulty"]), limit_s)
        if pair is not None and max(pair[0].shape + pair[1].shape) > request["max_side"]:
            pair, reason = None, "side too long"
        if pair is not None and pair_tokens(pair) > request["max_tokens"]:
            pair, reason = None, "too many tokens"
        if pair is None:
            reasons[reason] += 1
        elif pair_bytes(pair) in found:
            reasons["made before"] += 1
        else:
            found[pair_bytes(pair)] = None
    return {
        "generator": task_id,
        "pairs": len(found),
        "packed": base64.b64encode(b"".join(found)).decode(),
        "attempts": attempts,
        "reasons": dict(sorted(reasons.items())),
        "cut": cut or reasons["slow"] > 0,
        "cpu_s": round(cpu_seconds() - start_s, 2),
    }


def end_with_parent() -> None:
    """End this process once its parent has died, in whatever way."""
    parent, never = os.getppid(), threading.Event()

    def watch() -> None:
        while os.getppid() == parent:
            never.wait(2.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker(wheel: str) -> int:
    """Answer requests from standard input until it ends. The first line of output lists the generators."""
    end_with_parent()
    generators = load_generators(wheel)
    try:
        print(json.dumps(generators.ids), flush=True)
        for line in sys.stdin:
            print(json.dumps(make_pairs(generators, json.loads(line))), flush=True)
    except BrokenPipeError:
        os._exit(1)  # nobody reads the answers any more
    return 0


if __name__ == "__main__":
    sys.exit(worker(sys.argv[1]))

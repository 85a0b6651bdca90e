"""Which workers a machine gets, and the environment of each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from arc_ttt.deadline import Deadline
from arc_ttt.fleet.fleet import Fleet
from arc_ttt.fleet.twin import Twin
from arc_ttt.machine import count_gpus
from arc_ttt.protocol.orders import Hello
from arc_ttt.settings import Settings

MOST_PROGRAMS = 8
"""The most workers of synthesis beside GPUs."""
CALIBRATE_FROM_S = 3600.0
"""A shorter run has no minutes for trying out steps."""


def make_hello(settings: Settings, deadline: Deadline, *, calibrate: bool = True, generation: int = 0) -> Hello:
    """The first line to a worker.

    Args:
        settings: of the run.
        deadline: when workers stop by themselves.
        calibrate: whether it is to try out training steps first, where the run is long.
        generation: how many models the run has given up before.
    """
    calibrates = calibrate and settings.run.limit_s >= CALIBRATE_FROM_S
    return Hello(settings.to_json(), deadline, 0 if count_gpus() else None, calibrates, generation)


def count_searchers(settings: Settings, gpus: int, cores: int, workers: int) -> int:
    """How many workers synthesize: by default one on each core that no GPU's worker needs, without GPUs as many as
    there are workers on the CPU."""
    if not settings.synthesis.enabled:
        return 0
    return settings.synthesis.workers or (min(MOST_PROGRAMS, max(1, cores - gpus)) if gpus else workers)


def make_fleet(settings: Settings, out: Path, deadline: Deadline) -> tuple[Fleet | Twin, range, int]:
    """One worker a GPU, or without one up to two on the CPU, and the workers of synthesis behind them.

    Each sees its own device and few threads, and has caches of its own. Returns the fleet, the slots that synthesize,
    and the number of cores that both kinds share (0 with GPUs, where each GPU's worker keeps a core to itself).
    """
    if settings.run.in_process:
        names = ["device", "synthesis"] if settings.synthesis.enabled else ["device"]
        unrecorded = settings.override([("model.record", False)])  # a recording that fails would cost the only process
        return Twin(names, make_hello(unrecorded, deadline)), range(1, len(names)), 1
    gpus = count_gpus()
    cores = len(os.sched_getaffinity(0))
    workers = settings.run.workers or gpus or min(2, cores)
    programs = count_searchers(settings, gpus, cores, workers)
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    environments = []
    for slot in range(workers):
        threads = str(settings.run.threads)
        cache = (
            Path(os.environ.get("ARC_TTT_SCRATCH", out)) / "caches" / str(slot)
        ).absolute()  # two writers of one cache have been seen to break it
        environment = {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TRITON_CACHE_DIR": str(cache / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "UNSLOTH_COMPILE_LOCATION": str(cache / "unsloth"),
            **OFFLINE,
        }
        if gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            environment |= {
                "CUDA_VISIBLE_DEVICES": visible[slot % gpus],
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            }
        environments.append(environment)
    plain = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environments += [plain] * programs
    command = [sys.executable, "-m", "arc_ttt.worker"]
    commands = [command] * workers + [[*command, "synthesis"]] * programs
    hello = make_hello(settings, deadline)
    fleet = Fleet(commands, hello, environments, out / "logs")
    return fleet, range(workers, workers + programs), 0 if gpus else workers


OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "BITSANDBYTES_NOWELCOME": "1",
}

"""Scenarios of simulated runs: tasks, devices, models and faults, given or drawn at random."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from arc_lab.simulate.faults import MIXES, Faults
from arc_ttt.checkpoints.shape import ModelSize
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Example, LoadedTasks, Task, freeze

MODELS = {  # preset, and the published checkpoint's shape
    "embedded": ("embedded", None),
    "1b": ("llama-1b-3b", ModelSize(1.24e9, 16, 2048, 128256)),
    "3b": ("llama-1b-3b", ModelSize(3.21e9, 28, 3072, 128256)),
    "8b": ("llama-8b", ModelSize(8.03e9, 32, 4096, 128256)),
}
SURE = 0.2  # in random runs; after 2 CPU seconds 102 of 419 public evaluation inputs of ARC-AGI-1 have a sure program
PRIOR_ERROR = 2.5  # random runs are up to so many times slower or faster than predicted at first


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulated run. load: sum of all full trainings over the devices' time; 0 takes the model's and device's own.

    load_s: seconds of a worker's start; 0 takes the device's. prior_error: how many times longer jobs take than is
    predicted at first. cores: of the machine; those that no GPU's worker needs synthesize, if the settings say so.
    sure: share of tasks for which one CPU second of that finds a program that is taken for right.
    """

    tasks: LoadedTasks
    settings: Settings
    model: ModelSize
    device_type: str = "t4"
    devices: int = 2
    cores: int = 4
    sure: float = 0.0
    load: float = 0.0
    load_s: float = 0.0
    prior_error: float = 1.0
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    cuts: bool = True


@functools.lru_cache(maxsize=4)
def made_up_tasks(count: int, seed: int = 0) -> tuple[Task, ...]:
    """Tasks of no meaning, in sizes like those of the public sets: 2 to 5 demonstrations, sides to 30, some with two
    test inputs."""
    rng = random.Random(seed)
    tasks = []
    for number in range(count):
        side = min(30, max(2, round(rng.lognormvariate(math.log(11), 0.5))))
        shapes = [(min(30, max(1, side + rng.randint(-2, 2))), side) for _ in range(2)]
        grids = [freeze(np.zeros(shape)) for shape in shapes]
        train = tuple(Example(grids[0], grids[1]) for _ in range(rng.choice([2, 3, 3, 3, 4, 4, 5])))
        tasks.append(Task(f"task{number:04d}", train, (grids[0],) * rng.choice([1, 1, 1, 1, 2])))
    return tuple(tasks)


def loaded_from(tasks: Sequence[Task]) -> LoadedTasks:
    return LoadedTasks(tuple(tasks), (), {task.task_id: len(task.tests) for task in tasks})


def random_scenario(
    seed: int, faults: Faults | None = None, limits_h: Sequence[float] = (1, 3, 9, 12), most_tasks: int = 400
) -> Scenario:
    """A scenario at random: tasks, devices, limit, load, workers of synthesis and, unless given, faults."""
    rng = random.Random(seed)
    tasks = rng.sample(made_up_tasks(400), round(math.exp(rng.uniform(math.log(20), math.log(most_tasks)))))
    if faults is None:
        rates = {"crashes": rng.choice([0.0, 0.2, 2.0]), "hangs": rng.choice([0.0, 0.1, 1.0])}
        faults = dataclasses.replace(MIXES["harsh"], **rates)
    settings = Settings.of("llama-1b-3b").override(
        [("run.limit_s", rng.choice(limits_h) * 3600.0), ("ttt.passes", 64), ("synthesis.enabled", False)]
    )
    devices = rng.choice([1, 2, 4])
    scenario = Scenario(
        tasks=loaded_from(tasks),
        settings=settings,
        model=MODELS["3b"][1] or ModelSize(),
        devices=devices,
        load=math.exp(rng.uniform(math.log(0.2), math.log(5.0))),
        load_s=60.0,
        prior_error=math.exp(rng.uniform(-1, 1) * math.log(PRIOR_ERROR)),
        faults=faults,
        seed=seed,
    )
    searchers = rng.choice([0, 1, 4])
    changes = {"synthesis.enabled": searchers > 0, "synthesis.workers": searchers}
    return dataclasses.replace(scenario, settings=settings.override(list(changes.items())), sure=SURE)

"""The lines to a worker: `Hello`, then orders and `Cancel`. Moments travel as seconds left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from arc_ttt.deadline import Deadline
from arc_ttt.protocol.jobs import BASE, FULL_EFFORT, JOINT, SYNTHESIS, TTT, Effort, JobKind
from arc_ttt.tasks.grids import Grid, Task
from arc_ttt.tasks.parse import parse_grid, parse_task

Json: TypeAlias = Mapping[str, Any]

PARENT = "ARC_TTT_COORDINATOR"
"""Name of the environment variable that holds the coordinator's process id."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first line to a worker.

    Args:
        settings: the settings of the run as JSON.
        deadline: when workers stop by themselves.
        gpu: the visible GPU to use; None for the CPU.
        calibrate: whether to try out training steps before the first job.
        generation: how many models the run has given up before.
    """

    settings: str
    deadline: Deadline
    gpu: int | None = None
    calibrate: bool = False
    generation: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "hello",
            "settings": self.settings,
            "left_s": self.deadline.remaining(),
            "gpu": self.gpu,
            "calibrate": self.calibrate,
            "generation": self.generation,
        }

    @classmethod
    def from_json(cls, line: Json) -> Hello:
        deadline = Deadline.after(line["left_s"])
        return cls(line["settings"], deadline, line["gpu"], line["calibrate"], line["generation"])


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOrder:
    """Answer one task, with the base model or after training.

    Args:
        id: number of the job, which its messages repeat.
        kind: BASE or TTT.
        deadline: when the job must end.
        effort: how much of a training it gets.
        programs: by test input, grids that synthesis has found.
        joint: file of the adapter to start from; empty for a fresh one.
    """

    id: int
    kind: JobKind
    task: Task
    deadline: Deadline
    effort: Effort = FULL_EFFORT
    programs: Mapping[int, Sequence[Grid]] = field(default_factory=dict)
    joint: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            **_order_json(self),
            "task_id": self.task.task_id,
            "task": _task_json(self.task),
            **self.effort.to_json(),
            "programs": {index: [grid.tolist() for grid in grids] for index, grids in self.programs.items()},
            "joint": self.joint,
        }

    @classmethod
    def from_json(cls, line: Json) -> AnswerOrder:
        programs = {
            int(index): [parse_grid(rows, where="program", task_id="") for rows in grids]
            for index, grids in line["programs"].items()
        }
        return cls(
            **_order_fields(line),
            kind=JobKind(line["kind"]),
            task=_task(line),
            effort=Effort.from_json(line),
            programs=programs,
            joint=line["joint"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOrder:
    """Search programs for one task within `cpu_limit_s` CPU seconds."""

    id: int
    task: Task
    deadline: Deadline
    cpu_limit_s: float
    kind: JobKind = SYNTHESIS

    def to_json(self) -> dict[str, Any]:
        where = {"task_id": self.task.task_id, "task": _task_json(self.task)}
        return {**_order_json(self), **where, "cpu_limit_s": self.cpu_limit_s}

    @classmethod
    def from_json(cls, line: Json) -> SearchOrder:
        return cls(**_order_fields(line), task=_task(line), cpu_limit_s=line["cpu_limit_s"])


@dataclass(frozen=True, slots=True, kw_only=True)
class JointOrder:
    """Train one adapter over all `tasks` and save it as `path`."""

    id: int
    tasks: Sequence[Task]
    deadline: Deadline
    path: str
    kind: JobKind = JOINT

    def to_json(self) -> dict[str, Any]:
        tasks = {task.task_id: _task_json(task) for task in self.tasks}
        return {**_order_json(self), "tasks": tasks, "path": self.path}

    @classmethod
    def from_json(cls, line: Json) -> JointOrder:
        tasks = [_task({"task_id": task_id, "task": body}) for task_id, body in line["tasks"].items()]
        return cls(**_order_fields(line), tasks=tasks, path=line["path"])


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the job that is under way, with what it has found."""

    def to_json(self) -> dict[str, Any]:
        return {"type": "cancel"}


Order: TypeAlias = AnswerOrder | SearchOrder | JointOrder

_ORDERS: Mapping[JobKind, Callable[[Json], Order]] = {
    BASE: AnswerOrder.from_json,
    TTT: AnswerOrder.from_json,
    SYNTHESIS: SearchOrder.from_json,
    JOINT: JointOrder.from_json,
}


def read_order(line: Json) -> Order | Cancel:
    """A line to a worker that has said hello.

    Raises:
        ArcError, KeyError, ValueError: the line breaks a rule, which only a fault of the coordinator can cause.
    """
    return Cancel() if line["type"] == "cancel" else _ORDERS[JobKind(line["kind"])](line)


def _order_json(order: Order) -> dict[str, Any]:
    return {"type": "job", "id": order.id, "kind": order.kind, "left_s": order.deadline.remaining()}


def _order_fields(line: Json) -> dict[str, Any]:
    return {"id": line["id"], "deadline": Deadline.after(line["left_s"])}


def _task_json(task: Task) -> dict[str, Any]:
    return {
        "train": [{"input": e.input.tolist(), "output": e.output.tolist()} for e in task.train],
        "test": [{"input": grid.tolist()} for grid in task.tests],
    }


def _task(line: Json) -> Task:
    return parse_task(line["task_id"], line["task"], where=f"job {line['task_id']}")

"""The lines of a worker: one frozen class for each kind, checked where the line arrives.

First comes `Ready` or `Fatal`; then for each order any number of `Progress`, `Found` and `Programs`, and one `Done`.
A line that breaks a rule becomes `Unreadable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from arc_ttt.errors import ArcError
from arc_ttt.protocol.jobs import Outcome
from arc_ttt.tasks.grids import Grid
from arc_ttt.tasks.parse import parse_grid
from arc_ttt.votes.candidates import SEARCHED, Program

Json: TypeAlias = Mapping[str, Any]

EXIT_DEVICE_LOST = 10
"""A worker's exit code when the device's context is broken."""
EXIT_FATAL = 13
"""A worker's exit code when the model cannot be loaded."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a worker did otherwise than asked while it loaded. less: it can do less than was asked for."""

    text: str
    less: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """A training step that was tried out: seconds for `sequences` of `length` tokens, and whether they fitted."""

    length: float
    sequences: float
    seconds: float
    fitted: float

    def to_json(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker can take a job."""

    device: str = ""
    dtype: str = ""
    parameters: int = 0
    notes: Sequence[Note] = ()
    calibration: Sequence[Trial] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "ready",
            "device": self.device,
            "dtype": self.dtype,
            "parameters": self.parameters,
            "notes": [{"text": note.text, "less": note.less} for note in self.notes],
            "calibration": [trial.to_json() for trial in self.calibration],
        }

    @classmethod
    def from_json(cls, line: Json) -> Ready:
        notes = [Note(str(row["text"]), bool(row.get("less"))) for row in _rows(line, "notes") if "text" in row]
        trials = [Trial(*(_number(row, name) for name in Trial.__slots__)) for row in _rows(line, "calibration")]
        return cls(_text(line, "device"), _text(line, "dtype"), int(_number(line, "parameters")), notes, trials)


@dataclass(frozen=True, slots=True)
class Fatal:
    """The worker cannot load `model`, the path of `generation` (None where it could not read even that)."""

    reason: str
    model: str = ""
    generation: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"type": "fatal", "reason": self.reason, "model": self.model, "generation": self.generation}

    @classmethod
    def from_json(cls, line: Json) -> Fatal:
        generation = line.get("generation")
        return cls(_text(line, "reason"), _text(line, "model"), generation if type(generation) is int else None)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands, which is also its sign of life."""

    job: int | None = None
    phase: str = ""
    done: int = 0
    of: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"type": "progress", "job": self.job, "phase": self.phase, "done": self.done, "of": self.of}

    @classmethod
    def from_json(cls, line: Json) -> Progress:
        return cls(_job(line), _text(line, "phase")[:20], int(_number(line, "done")), int(_number(line, "of")))


@dataclass(frozen=True, slots=True)
class FoundGrid:
    """A grid that the model wrote.

    Args:
        nll: its negative log-likelihood.
        view: number of the view, None if unknown.
    """

    grid: Grid
    group: str
    nll: float
    view: int | None = None


@dataclass(frozen=True, slots=True)
class ScoredGrid:
    """A grid with its negative log-likelihood under each view. stage: who wrote it; empty for the job's own stage."""

    grid: Grid
    nll_by_view: tuple[float, ...]
    stage: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """All that a job has found for one test input so far. trained: part of its training that the adapter had."""

    task_id: str
    test_index: int
    candidates: Sequence[FoundGrid]
    scored: Sequence[ScoredGrid] = ()
    trained: float = 1.0
    job: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"job": self.job, "task_id": self.task_id, **self.record()}

    def record(self) -> dict[str, Any]:
        """What the journal keeps of it."""
        return {
            "type": "candidates",
            "test_index": self.test_index,
            "candidates": [
                {"grid": c.grid.tolist(), "group": c.group, "nll": c.nll, "view": c.view} for c in self.candidates
            ],
            "scored": [
                {"grid": s.grid.tolist(), "nll_by_view": list(s.nll_by_view)} | ({"stage": s.stage} if s.stage else {})
                for s in self.scored
            ],
            "trained": self.trained,
        }

    @classmethod
    def from_json(cls, line: Json) -> Found:
        task_id, index = str(line["task_id"]), _index(line)
        candidates = [
            FoundGrid(_grid(row, task_id), str(row["group"]), _finite(row["nll"]), _view(row))
            for row in line["candidates"]
        ]
        scored = [
            ScoredGrid(_grid(row, task_id), tuple(map(_finite, row["nll_by_view"])), str(row.get("stage", "")))
            for row in line["scored"]
        ]
        return cls(task_id, index, candidates, scored, _finite(line.get("trained", 1.0)), _job(line))


@dataclass(frozen=True, slots=True)
class Programs:
    """Programs for one test input, best first. cut: the search was cut and may not have come as far as one before."""

    task_id: str
    test_index: int
    programs: Sequence[Program]
    cut: bool = False
    job: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"job": self.job, "task_id": self.task_id, **self.record()}

    def record(self) -> dict[str, Any]:
        """What the journal keeps of it."""
        rows = [
            {"grid": p.grid.tolist(), "text": p.text, "confidence": p.confidence, "fits_all": p.fits_all}
            for p in self.programs
        ]
        return {"type": "programs", "test_index": self.test_index, "programs": rows, "cut": self.cut}

    @classmethod
    def from_json(cls, line: Json) -> Programs:
        task_id, index = str(line["task_id"]), _index(line)
        programs = [
            Program(index, _grid(row, task_id), str(row["text"]), _finite(row["confidence"]), bool(row["fits_all"]))
            for row in line["programs"]
        ]
        return cls(task_id, index, programs, bool(line.get("cut")), _job(line))


@dataclass(frozen=True, slots=True)
class Done:
    """A job has ended.

    Args:
        outcome: how.
        reason: why it did not end well, for people.
        seconds: of the whole job.
        steps: optimizer steps.
        loss: of the first and of the last step; empty without training.
        tokens: that the model read and wrote.
        train_s: seconds of training, recordings not counted.
        compile_s: seconds in which steps were recorded.
        train_tokens: that it trained on.
        degraded: names of what was done with less than asked for.
        out_of_memory: the training did not fit the device.
        shortened: it was done on shorter sequences.
        job: its number; None for a line that names none.
    """

    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    steps: int = 0
    loss: Sequence[float] = ()
    tokens: int = 0
    train_s: float = 0.0
    compile_s: float = 0.0
    train_tokens: int = 0
    degraded: Sequence[str] = ()
    out_of_memory: bool = False
    shortened: bool = False
    job: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"type": "done", "job": self.job, **self.record()}

    def record(self) -> dict[str, Any]:
        """What the journal keeps of it: what differs from nothing, and always how it ended."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "job"}
        always = ("outcome", "reason", "seconds")
        kept = {name: value for name, value in fields.items() if value or name in always}
        return {name: list(value) if isinstance(value, tuple | list) else value for name, value in kept.items()}

    @classmethod
    def from_json(cls, line: Json) -> Done:
        """Numbers that are none become 0, and an outcome that is none counts as failed: the job has ended anyway."""
        try:
            outcome, reason = Outcome(line["outcome"]), _text(line, "reason")
        except (KeyError, ValueError):
            outcome, reason = Outcome.FAILED, f"its worker named no outcome: {line.get('outcome')!r}"[:200]
        loss, degraded = line.get("loss"), line.get("degraded")
        return cls(
            outcome,
            reason,
            seconds=_number(line, "seconds"),
            steps=int(_number(line, "steps")),
            loss=tuple(x for x in loss if isinstance(x, float | int)) if isinstance(loss, list) else (),
            tokens=int(_number(line, "tokens")),
            train_s=_number(line, "train_s"),
            compile_s=_number(line, "compile_s"),
            train_tokens=int(_number(line, "train_tokens")),
            degraded=tuple(map(str, degraded)) if isinstance(degraded, list) else (),
            out_of_memory=line.get("out_of_memory") is True,
            shortened=line.get("shortened") is True,
            job=_job(line),
        )


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line of no known type, or one that breaks a rule of its type. It changes nothing.

    Args:
        line: as it came.
        reason: what is wrong with it.
        known: its type is one of ours.
        job: its number; None for a line that names none.
    """

    line: Json
    reason: str
    known: bool
    job: int | None = None


Said: TypeAlias = Ready | Fatal | Progress | Found | Programs | Done
"""What a worker sends."""
FromWorker: TypeAlias = Said | Unreadable
"""What the coordinator hears."""

_MESSAGES: Mapping[str, Callable[[Json], FromWorker]] = {
    "ready": Ready.from_json,
    "fatal": Fatal.from_json,
    "progress": Progress.from_json,
    "candidates": Found.from_json,
    "programs": Programs.from_json,
    "done": Done.from_json,
}


def read_message(line: Json) -> FromWorker:
    """A line of a worker, or of the journal that kept it. Never raises: what breaks a rule is `Unreadable`."""
    read = _MESSAGES.get(str(line.get("type")))
    if read is None:
        return Unreadable(line, "no known type of message", False, _job(line))
    try:
        return read(line)
    except (ArcError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        what = f"no {error} in it" if isinstance(error, KeyError) else error
        return Unreadable(line, f"malformed {line['type']}: {what}", True, _job(line))


def _grid(row: Json, task_id: str) -> Grid:
    return parse_grid(row["grid"], where=f"answer to {task_id}", task_id=task_id)


def _view(row: Json) -> int | None:
    view = row.get("view")  # journals of earlier versions hold none
    if view is not None and (type(view) is not int or view < SEARCHED):
        raise ValueError(f"{view!r} is no number of a view")
    return view


def _index(line: Json) -> int:
    index = line["test_index"]
    if type(index) is not int or index < 0:
        raise ValueError(f"{index!r} is no number of a test input")
    return index


def _job(line: Json) -> int | None:
    job = line.get("job")
    return job if type(job) is int else None


def _text(line: Json, name: str) -> str:
    return str(line.get(name, ""))


def _rows(line: Json, name: str) -> list[dict[str, Any]]:
    rows = line.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _finite(value: Any) -> float:
    """A number that can be ranked. Raises ValueError for NaN and infinities."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no likelihood")
    return number


def _number(line: Json, name: str) -> float:
    """A number of a message; 0 for what is none."""
    value = line.get(name)
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
    except OverflowError:  # JSON's whole numbers have no end
        return 0.0

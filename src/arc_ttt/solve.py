"""One task from Task to candidates. Read this first.

    task --ttt_sequences--> sequences --train--> adapter --greedy under views, undone--> candidates --score--> scored

`TaskSolver` holds one loaded model and its adapter and does two things for a task: `answer` it with the weights as they
are, and `adapt` to it first.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch

from arc_ttt.adapter import Adapter
from arc_ttt.deadline import Deadline
from arc_ttt.errors import SequenceTooLong, TrainingDiverged
from arc_ttt.events import Outcome
from arc_ttt.formats import TokenSequence
from arc_ttt.grids import MAX_SIDE, Grid, Task, grid_bytes
from arc_ttt.kv_cache import Decoder
from arc_ttt.memory import MemoryPlan
from arc_ttt.model import LoadedModel
from arc_ttt.scoring import score
from arc_ttt.search import PromptBatch, greedy, search
from arc_ttt.sequences import joint_sequences, ttt_sequences
from arc_ttt.settings import Settings
from arc_ttt.training import TrainingReport, shuffled_steps, train
from arc_ttt.views import View, paper_views, sample_views, turns_sides
from arc_ttt.votes import Candidate, ScoredCandidate

Progress = Callable[[str, int, int], None]  # phase, done, of
Found = Callable[[int, "Answers"], None]  # a test input, and all answers so far: its own are complete


def task_rng(seed: int, task_id: str, purpose: str) -> np.random.Generator:
    """A generator that depends on these three alone: not on the order of work, the worker or PYTHONHASHSEED."""
    digest = hashlib.sha256(f"{seed}\0{task_id}\0{purpose}".encode("utf-8", "surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


@dataclass(slots=True)
class Answers:
    """What one pass over a task found. `tokens` counts what the model read and wrote."""

    candidates: list[Candidate] = field(default_factory=list)
    scored: list[ScoredCandidate] = field(default_factory=list)
    outcome: Outcome = Outcome.FINISHED
    reason: str = ""
    training: TrainingReport | None = None
    tokens: int = 0


class TaskSolver:
    """One model on one device, for one task after another.

    on_found: called after each test input with its index and all answers so far, so that they can leave at once.
    memory: of the device, which limits how many views it holds at once.
    """

    def __init__(
        self,
        base: LoadedModel,
        settings: Settings,
        on_found: Found = lambda index, answers: None,
        memory: MemoryPlan | None = None,
    ) -> None:
        self.on_found = on_found
        self.memory = memory
        self.base = base
        self.settings = settings
        self.adapter = None if settings.ttt.scope == "none" else Adapter(base, settings.ttt, seed=settings.run.seed)

    def answer(self, task: Task, deadline: Deadline, progress: Progress = lambda *_: None) -> Answers:
        """Candidates of the base model under `decode.base_views` views."""
        if self.adapter is not None:
            self.adapter.reset(to_base=True)
        return self._answer(task, "base", self.settings.decode.base_views, deadline, progress)

    def adapt(
        self,
        task: Task,
        deadline: Deadline,
        progress: Progress = lambda *_: None,
        *,
        share: float = 1.0,
        decode_s: float = 0.0,
        programs: Mapping[int, Sequence[Grid]] = MappingProxyType({}),
    ) -> Answers:
        """Train the adapter on the task's own demonstrations, then answer under `decode.views` views.

        share: part of the training sequences to use. decode_s: seconds that training leaves free for answering.
        programs: by test input, grids that synthesis found; they are scored along with the model's own.

        Without a trainable sequence, or when training diverges, the base model answers, and the outcome says so.
        """
        settings = self.settings
        if self.adapter is None:
            return self._answer(task, "ttt", settings.decode.views, deadline, progress, programs)
        self.adapter.reset()
        outcome, reason, report = Outcome.FINISHED, "", None
        if settings.ttt.scope in ("per-task", "joint"):
            rng = task_rng(settings.run.seed, task.task_id, "sequences")
            count = max(settings.ttt.batch_sequences, round(share * settings.ttt.max_sequences))
            fewer = replace(settings.ttt, max_sequences=min(count, settings.ttt.max_sequences))
            sequences = ttt_sequences(task, self.base.form, fewer, rng)
            if sequences:
                try:
                    report = self._train(
                        sequences,
                        task_rng(settings.run.seed, task.task_id, "order"),
                        deadline.minus(decode_s),
                        progress,
                    )
                except TrainingDiverged as error:
                    self.adapter.reset(to_base=True)
                    outcome, reason = Outcome.DIVERGED, str(error)
                except torch.OutOfMemoryError as error:
                    self.adapter.reset(to_base=True)
                    outcome, reason = Outcome.FAILED, f"out of memory in training, the base model answers: {error}"
            else:
                reason = "no trainable sequence; the base model answers"
        answers = self._answer(task, "ttt", settings.decode.views, deadline, progress, programs)
        answers.training = report
        if report is not None:
            answers.tokens += report.tokens
            if report.stopped_by == "deadline":
                answers.outcome = Outcome.CUT
        if outcome is not Outcome.FINISHED:
            answers.outcome = outcome
        answers.reason = reason or answers.reason
        return answers

    def adapt_jointly(
        self, tasks: Sequence[Task], deadline: Deadline, progress: Progress = lambda *_: None
    ) -> TrainingReport:
        """Train one adapter over the demonstrations of all tasks; later resets return to it (scope shared or joint)."""
        if self.adapter is None:
            raise ValueError("scope none has no adapter to train")
        self.adapter.reset(to_base=True)
        seed = self.settings.run.seed
        sequences = joint_sequences(
            tasks, self.base.form, self.settings.ttt, lambda task_id: task_rng(seed, task_id, "joint")
        )
        report = TrainingReport()
        if sequences:
            try:
                report = self._train(sequences, task_rng(seed, "", "joint order"), deadline, progress)
            except TrainingDiverged:
                self.adapter.reset(to_base=True)
                report.stopped_by = "diverged"
        self.adapter.rebase()
        return report

    def _train(
        self, sequences: list[TokenSequence], rng: np.random.Generator, deadline: Deadline, progress: Progress
    ) -> TrainingReport:
        assert self.adapter is not None
        ttt = self.settings.ttt
        steps = shuffled_steps(sequences, epochs=ttt.epochs, batch_sequences=ttt.batch_sequences, rng=rng)
        return train(
            self.base,
            self.adapter.parameters(),
            steps,
            ttt,
            deadline,
            lambda step, loss: progress("train", step, len(steps)),
        )

    def _answer(
        self,
        task: Task,
        stage: str,
        count: int,
        deadline: Deadline,
        progress: Progress,
        programs: Mapping[int, Sequence[Grid]] = MappingProxyType({}),
    ) -> Answers:
        answers = Answers()
        decoder = Decoder(self.base)
        for index in range(len(task.tests)):
            try:
                extra = programs.get(index, ())
                self._answer_one(task, index, stage, count, decoder, deadline, answers, extra, progress)
            except SequenceTooLong as error:
                answers.outcome, answers.reason = Outcome.FAILED, str(error)
            self.on_found(index, answers)
            progress("decode", index + 1, len(task.tests))
            if deadline.passed():
                answers.outcome = Outcome.CUT
                break
        return answers

    def _answer_one(
        self,
        task: Task,
        index: int,
        stage: str,
        count: int,
        decoder: Decoder,
        deadline: Deadline,
        into: Answers,
        programs: Sequence[Grid] = (),
        progress: Progress = lambda *_: None,
    ) -> None:
        """Greedy answers under all views of one test input, undone, then the distinct ones scored."""
        settings = self.settings
        views = self._views(task, index, stage, count)
        prompts = [fit_prompt(self.base, task, index, view, settings.model.max_tokens) for view in views]
        rows_columns = answer_limits(task, index)
        limits = [rows_columns[::-1] if turns_sides(view.dihedral) else rows_columns for view in views]
        found: list[Candidate] = []
        scoring: list[tuple[PromptBatch, list[View]]] = []
        at_once, kept = self._views_in_memory(prompts, rows_columns)
        for start in range(0, len(views), at_once):
            rows = slice(start, start + at_once)
            progress("decode", start, len(views))
            try:
                batch = PromptBatch(decoder, prompts[rows], limits[rows])
            except SequenceTooLong:
                if not found:
                    raise
                break  # no memory for more views: those answered so far vote
            if start < kept:
                scoring.append((batch, views[rows]))
            results = greedy(batch, deadline)
            if settings.decode.min_probability > 0:
                for row in range(len(batch.prompts)):
                    more, _ = search(batch, row, min_probability=settings.decode.min_probability, deadline=deadline)
                    first = results[row].grid
                    seen = grid_bytes(first) if first is not None else b""
                    results += [a for a in more if a.grid is not None and grid_bytes(a.grid) != seen]
            into.tokens += sum(len(prompt) for prompt in batch.prompts)
            for result in results:
                if result.grid is not None:
                    view = views[start + result.row]
                    grid = view.undo(result.grid)
                    into.tokens += result.grid.size
                    found.append(Candidate(task.task_id, index, grid, view.group, result.nll, stage))
            if deadline.passed():
                break
        into.candidates += found
        if settings.vote.rule == "product" and found:
            into.scored += self._score(found, programs, scoring, deadline)

    def _score(
        self,
        found: list[Candidate],
        programs: Sequence[Grid],
        scoring: list[tuple[PromptBatch, list[View]]],
        deadline: Deadline,
    ) -> list[ScoredCandidate]:
        """The distinct candidates, most frequent first, scored on prompts that are in the cache already.

        Grids that only a program found are scored too, under the stage "synthesis".
        """
        grids: dict[bytes, Grid] = {}
        for candidate in found:
            grids.setdefault(grid_bytes(candidate.grid), candidate.grid)
        counts = Counter(grid_bytes(candidate.grid) for candidate in found)
        chosen = sorted(grids, key=lambda g: -counts[g])[: self.settings.vote.max_scored]
        for grid in programs:
            if grid_bytes(grid) not in chosen:
                grids[grid_bytes(grid)] = grid
                chosen.append(grid_bytes(grid))
        columns: list[list[float]] = [[] for _ in chosen]
        left = self.settings.vote.scoring_views
        for batch, views in scoring:
            scores = score(batch, views, [grids[g] for g in chosen], deadline)
            if len(scores) < len(chosen):
                return []  # cut: unequal sums do not compare, the count decides
            for column, values in zip(columns, scores, strict=True):
                column += values[:left]
            left -= len(views)
        first = found[0]
        return [
            ScoredCandidate(
                first.task_id, first.test_index, grids[g], tuple(column), first.stage if counts[g] else "synthesis"
            )
            for g, column in zip(chosen, columns, strict=True)
        ]

    def _views_in_memory(self, prompts: list[TokenSequence], rows_columns: tuple[int, int]) -> tuple[int, int]:
        """Views to decode at once and views to keep for scoring."""
        wanted = self.settings.decode.batch_views, self.settings.vote.scoring_views
        if self.memory is None:
            return wanted
        answer = 2 * rows_columns[0] * (rows_columns[1] + 1)  # tokens; text formats take up to two for a cell
        return self.memory.views(max(len(prompt) for prompt in prompts), answer, *wanted)

    def _views(self, task: Task, index: int, stage: str, count: int) -> list[View]:
        """The views of one test input. Both stages draw the same ones, so that they compare."""
        rng = task_rng(self.settings.run.seed, task.task_id, f"views {index}")
        if self.settings.decode.rule == "paper":
            return paper_views(len(task.train), rng)
        return sample_views(count, len(task.train), rng)


def fit_prompt(base: LoadedModel, task: Task, index: int, view: View, max_tokens: int) -> TokenSequence:
    """The prompt of a test input under a view, without its first demonstrations where it would not fit.

    Room is kept for an answer as large as the largest grid of the task, closing tokens included.

    Raises:
        SequenceTooLong: the test input alone does not fit.
    """
    demonstrations = view.demonstrations(task)
    query = view.apply(task.tests[index])
    largest = max([query.size] + [g.size for e in task.train for g in (e.input, e.output)])
    room = len(base.form.answer_ids(base.form.encode((), query), query)[0]) * largest // query.size + 8
    for start in range(len(demonstrations) + 1):
        prompt = base.form.encode(demonstrations[start:], query)
        if len(prompt) + room <= max_tokens:
            return prompt
    raise SequenceTooLong(f"test input {index + 1} alone needs {len(prompt) + room} tokens of {max_tokens}")


def answer_limits(task: Task, index: int) -> tuple[int, int]:
    """Most rows and columns that an answer is given room for: a model that has lost its way would write 30 x 30.

    Twice the largest output of a demonstration, or as much larger than the test input as any output is than its
    input, whichever is more. Source: ours; no answer of the 400 training tasks is larger.
    """
    if not task.train:
        return MAX_SIDE, MAX_SIDE
    limits = []
    for axis in (0, 1):
        largest = max(e.output.shape[axis] for e in task.train)
        growth = max(e.output.shape[axis] / e.input.shape[axis] for e in task.train)
        limits.append(min(MAX_SIDE, max(2 * largest, math.ceil(growth * task.tests[index].shape[axis]))))
    return limits[0], limits[1]


def pick_device(index: int | None) -> torch.device:
    """The worker's device: its one visible GPU, or the CPU."""
    if index is not None and torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("cpu")

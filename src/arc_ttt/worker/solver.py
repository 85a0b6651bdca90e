"""One task from Task to candidates. Read this first.

    task --ttt_sequences--> sequences --train--> adapter --greedy under views, undone--> candidates --score--> scored

`TaskSolver` holds one loaded model and its adapter and does two things for a task: `answer` it with the weights as they
are, and `adapt` to it first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.adapter_trainer import memory_ladder
from arc_ttt.adapt.batches import shuffled_steps
from arc_ttt.adapt.recording import RecordedGradients
from arc_ttt.adapt.sequences import joint_sequences, ttt_sequences
from arc_ttt.adapt.training import TrainingReport, train
from arc_ttt.checkpoints.memory_plan import MemoryPlan
from arc_ttt.deadline import Deadline
from arc_ttt.decode.answerer import Answers, Found
from arc_ttt.decode.decoder import Decoder
from arc_ttt.decode.greedy import Answer, greedy
from arc_ttt.decode.prompts import SHORTEST_PROMPT, PromptBatch, answer_limits, fit_prompt
from arc_ttt.decode.scoring import score
from arc_ttt.decode.search import search
from arc_ttt.errors import OutOfDeviceMemory, SequenceTooLong, TrainingDiverged, out_of_memory
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.cuda import free_memory
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.protocol.jobs import MOST_FREE, Outcome, Progress
from arc_ttt.settings import Settings, TttSettings
from arc_ttt.tasks.grids import Grid, Task, grid_bytes
from arc_ttt.tasks.views import View, numbered, paper_views, sample_views, task_rng, turns_sides
from arc_ttt.votes.candidates import SEARCHED, Candidate, ScoredCandidate


class TaskSolver:
    """One model on one device, for one task after another.

    on_found: called after each batch of views and after each test input, with the index of the test input and all
    answers so far, so that they can leave at once.
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
        self.recorded = None
        if self.adapter is not None and base.device.type == "cuda" and base.can_record:
            self.recorded = RecordedGradients(base, self.adapter.parameters())

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
        number: int = 0,
        share: float = 1.0,
        views: int = 0,
        longest: int = 0,
        decode_s: float = 0.0,
        programs: Mapping[int, Sequence[Grid]] = MappingProxyType({}),
    ) -> Answers:
        """Train the adapter on the task's own demonstrations, then answer under views.

        number: which training of this task it is; each has sequences, an order and views of its own. share: part of
        the training sequences to use. views: how many to answer under; 0 means `decode.views`. longest: tokens of the
        longest training sequence, where that is less than `ttt.max_sequence_tokens`; 0 means no less. decode_s: seconds
        that training leaves free for answering, but never more than `MOST_FREE` of those left. programs: by test input,
        grids that synthesis found; they are scored along with the model's own.

        Without a trainable sequence, or when training diverges, the base model answers, and the outcome says so.
        """
        settings = self.settings
        views = views or settings.decode.views
        if self.adapter is None:
            return self._answer(task, "ttt", views, deadline, progress, programs, number)
        self.adapter.reset()
        outcome, reason, report = Outcome.FINISHED, "", None
        trained, degraded = 1.0, list[str]()
        if settings.ttt.scope in ("per-task", "joint"):
            trained = 0.0
            free_s = min(decode_s, MOST_FREE * max(0.0, deadline.remaining()))
            try:
                report = self._fit(task, (number, share, longest), deadline.minus(free_s), progress, degraded)
                reason = "" if report is not None else "no trainable sequence; the base model answers"
                trained = report.share if report is not None else 0.0
            except TrainingDiverged as error:
                outcome, reason = Outcome.DIVERGED, str(error)
            except OutOfDeviceMemory as error:
                outcome, reason = Outcome.FAILED, f"out of memory in training, the base model answers: {error}"
            if outcome is not Outcome.FINISHED:
                self.adapter.reset(to_base=True)
        answers = self._answer(task, "ttt", views, deadline, progress, programs, number, trained)
        if answers.spoiled and not answers.candidates and report is not None:
            self.adapter.reset(to_base=True)
            outcome, reason = Outcome.DIVERGED, "the adapted model writes no numbers; the base model answers"
            answers = self._answer(task, "ttt", views, deadline, progress, programs, number, trained=0.0)
        answers.training = report
        answers.degraded[:0] = degraded
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
        """Train one adapter over the demonstrations of all tasks; later resets return to it (scope shared or joint).

        Where training diverges or does not fit the memory it is the untrained one, and `stopped_by` says so.
        """
        if self.adapter is None:
            raise ValueError("scope none has no adapter to train")
        self.adapter.reset(to_base=True)
        seed = self.settings.run.seed

        def sequences(ttt: TttSettings) -> list[TokenSequence]:
            return joint_sequences(tasks, self.base.form, ttt, lambda task_id: task_rng(seed, task_id, "joint"))

        try:
            report = self._within_memory(sequences, ("", "joint order"), deadline, progress, []) or TrainingReport()
        except (TrainingDiverged, OutOfDeviceMemory) as error:
            self.adapter.reset(to_base=True)
            report = TrainingReport(stopped_by=f"{type(error).__name__}: {error}")
        self.adapter.rebase()
        return report

    def _fit(
        self,
        task: Task,
        effort: tuple[int, float, int],
        deadline: Deadline,
        progress: Progress,
        degraded: list[str],
    ) -> TrainingReport | None:
        """Train the adapter on the task's demonstrations; None if they make no trainable sequence.

        effort: number, share and longest sequence as for `adapt`.
        """
        number, share, longest = effort
        whole = self.settings.ttt
        count = min(whole.max_sequences, max(whole.batch_sequences, round(share * whole.max_sequences)))

        def sequences(ttt: TttSettings) -> list[TokenSequence]:
            rng = task_rng(self.settings.run.seed, task.task_id, numbered("sequences", number))
            tokens = min(longest or ttt.max_sequence_tokens, ttt.max_sequence_tokens)
            fewer = replace(ttt, max_sequences=min(count, ttt.max_sequences), max_sequence_tokens=tokens)
            return ttt_sequences(task, self.base.form, fewer, rng)

        return self._within_memory(sequences, (task.task_id, numbered("order", number)), deadline, progress, degraded)

    def _within_memory(
        self,
        sequences: Callable[[TttSettings], list[TokenSequence]],
        order: tuple[str, str],
        deadline: Deadline,
        progress: Progress,
        degraded: list[str],
    ) -> TrainingReport | None:
        """Train; while memory does not suffice, again from the start with the next rung of the ladder.

        sequences: what to train on under given settings. order: task id and purpose of the random order. degraded: gets
        the names of the rungs taken. None if there is nothing to train on.

        Raises:
            OutOfDeviceMemory: the last rung did not fit either.
        """
        assert self.adapter is not None
        message = ""
        for name, ttt in memory_ladder(self.settings.ttt, sequences):
            if name:
                if self.recorded is not None:
                    self.recorded.forget()
                free_memory(self.base.device)
                self.adapter.reset()
                degraded.append(name)
            made = sequences(ttt)
            if not made:
                return None
            try:
                return self._train(made, ttt, task_rng(self.settings.run.seed, *order), deadline, progress)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                message = str(error)[:200]
        free_memory(self.base.device)
        degraded.append("base model only")
        raise OutOfDeviceMemory(message)

    def _train(
        self,
        sequences: list[TokenSequence],
        ttt: TttSettings,
        rng: np.random.Generator,
        deadline: Deadline,
        progress: Progress,
    ) -> TrainingReport:
        assert self.adapter is not None
        steps = shuffled_steps(sequences, epochs=ttt.epochs, batch_sequences=ttt.batch_sequences, rng=rng)
        progress("train", 0, len(steps))
        return train(
            self.base,
            self.adapter.parameters(),
            steps,
            ttt,
            deadline,
            lambda step, loss: progress("train", step, len(steps)),
            self.recorded,
        )

    def _answer(
        self,
        task: Task,
        stage: str,
        count: int,
        deadline: Deadline,
        progress: Progress,
        programs: Mapping[int, Sequence[Grid]] = MappingProxyType({}),
        number: int = 0,
        trained: float = 1.0,
    ) -> Answers:
        answers = Answers(trained=trained)
        decoder = self.decoder()
        for index in range(len(task.tests)):
            if deadline.passed():  # a prompt takes its time even if nothing can be written after it
                answers.outcome = Outcome.CUT
                break
            try:
                views = self._views(task, index, count, number)
                self._answer_one(
                    task, index, stage, views, decoder, deadline, answers, programs.get(index, ()), progress
                )
            except (SequenceTooLong, OutOfDeviceMemory) as error:
                answers.outcome, answers.reason = Outcome.FAILED, str(error)
            self.on_found(index, answers)
            progress("decode", index + 1, len(task.tests))
            if deadline.passed():
                answers.outcome = Outcome.CUT
                break
        return answers

    def decoder(self) -> Decoder:
        """A decoder of the weights as they are now, fused where the memory has room for the copy."""
        if self.memory is not None and self.memory.fused == 0:
            return Decoder(self.base, fuse=False)
        try:
            return Decoder(self.base)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        free_memory(self.base.device)
        return Decoder(self.base, fuse=False)

    def _answer_one(
        self,
        task: Task,
        index: int,
        stage: str,
        views: list[View],
        decoder: Decoder,
        deadline: Deadline,
        into: Answers,
        programs: Sequence[Grid] = (),
        progress: Progress = lambda *_: None,
    ) -> None:
        """Greedy answers under all views of one test input, undone, then the distinct ones scored.

        Where memory does not suffice: fewer views at once, then a shorter prompt, then the views answered so far.
        """
        settings = self.settings
        rows_columns = answer_limits(task, index)
        limits = [rows_columns[::-1] if turns_sides(view.dihedral) else rows_columns for view in views]
        found: list[Candidate] = []
        scoring: list[tuple[PromptBatch, list[View]]] = []
        max_tokens, start = settings.model.max_tokens, 0
        size, kept = self._views_in_memory(task, index, views, rows_columns)
        batch: PromptBatch | None
        while start < len(views):
            rows = slice(start, start + size)
            progress("decode", start, len(views))
            batch = None  # the last one, unless it is kept, gives its cache back first
            prompts = [fit_prompt(self.base, task, index, view, max_tokens) for view in views[rows]]
            try:
                batch, results = self._read(decoder, prompts, limits[rows], deadline)
            except (SequenceTooLong, MemoryError, RuntimeError) as error:
                if not isinstance(error, SequenceTooLong) and not out_of_memory(error):
                    raise
                batch, message = None, str(error)[:200]
            if batch is None:  # here, not above: what an exception refers to keeps its memory
                if self.recorded is not None:
                    self.recorded.forget()
                free_memory(self.base.device)
                if size > 1:
                    size, what = max(1, min(size, len(views) - start) // 2), "fewer views at once"
                elif found:
                    into.degraded.append("fewer views")
                    break
                else:
                    max_tokens, what = len(prompts[0]) // 2, "shorter prompts"
                    if max_tokens < SHORTEST_PROMPT:
                        raise OutOfDeviceMemory(f"test input {index + 1}: {message}")
                into.degraded.append(what)
                continue
            if start < kept:
                scoring.append((batch, views[rows]))
            into.tokens += sum(len(prompt) for prompt in batch.prompts)
            for place, result in enumerate(results):
                if result.grid is not None and not math.isfinite(result.nll):
                    into.spoiled += 1
                elif result.grid is not None:
                    view = views[start + result.row]
                    grid = view.undo(result.grid)
                    into.tokens += result.grid.size
                    number = start + result.row if place < len(prompts) else SEARCHED
                    found.append(Candidate(task.task_id, index, grid, view.group, result.nll, stage, number))
                    into.candidates.append(found[-1])
            self.on_found(index, into)
            start += size
            if deadline.passed():
                break
        if settings.vote.rule == "product" and found:
            try:
                into.scored += self._score(found, programs, scoring, deadline)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                into.degraded.append("no scores")

    def _read(
        self, decoder: Decoder, prompts: list[TokenSequence], limits: list[tuple[int, int]], deadline: Deadline
    ) -> tuple[PromptBatch, list[Answer]]:
        """Prompts through the model, and the answers read off it: the greedy one of each, then those of a search."""
        decode = self.settings.decode
        batch = PromptBatch(decoder, prompts, limits)
        results = greedy(batch, deadline)
        if decode.min_probability > 0:
            for row in range(len(batch.prompts)):
                more, _ = search(batch, row, min_probability=decode.min_probability, deadline=deadline)
                first = results[row].grid
                seen = grid_bytes(first) if first is not None else b""
                results += [a for a in more if a.grid is not None and grid_bytes(a.grid) != seen]
        return batch, results

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
            part = batch.first_rows(left) if len(views) > left else batch
            scores = score(part, views[:left], [grids[g] for g in chosen], deadline)
            if len(scores) < len(chosen):
                return []  # cut: unequal sums do not compare, the count decides
            for column, values in zip(columns, scores, strict=True):
                column += values
            left -= len(part.prompts)
        if not all(math.isfinite(value) for column in columns for value in column):
            return []
        first = found[0]
        return [
            ScoredCandidate(
                first.task_id, first.test_index, grids[g], tuple(column), first.stage if counts[g] else "synthesis"
            )
            for g, column in zip(chosen, columns, strict=True)
        ]

    def _views_in_memory(
        self, task: Task, index: int, views: Sequence[View], rows_columns: tuple[int, int]
    ) -> tuple[int, int]:
        """Views to decode at once and views to keep for scoring."""
        wanted = self.settings.decode.batch_views, self.settings.vote.scoring_views
        if self.memory is None:
            return wanted
        prompts = [fit_prompt(self.base, task, index, view, self.settings.model.max_tokens) for view in views]
        answer = 2 * rows_columns[0] * (rows_columns[1] + 1)  # tokens; text formats take up to two for a cell
        return self.memory.views(max(len(prompt) for prompt in prompts), answer, *wanted)

    def _views(self, task: Task, index: int, count: int, number: int) -> list[View]:
        """The views of one test input. The base model and the first training draw the same ones, so they compare."""
        rng = task_rng(self.settings.run.seed, task.task_id, numbered(f"views {index}", number))
        if self.settings.decode.rule == "paper":
            return paper_views(len(task.train), rng)
        ttt = self.settings.ttt
        keep_black = ttt.in_context and ttt.augment != "dihedral"  # training moves black nowhere then
        return sample_views(count, len(task.train), rng, keep_black=keep_black)

"""Answers to one task with the weights as they are: prompts under views, greedy answers undone, candidates scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from arc_ttt.checkpoints.memory_plan import MemoryPlan
from arc_ttt.deadline import Deadline
from arc_ttt.decode.decoder import Decoder
from arc_ttt.decode.greedy import Answer, greedy
from arc_ttt.decode.prompts import SHORTEST_PROMPT, PromptBatch, answer_limits, fit_prompt
from arc_ttt.decode.scoring import score_candidates
from arc_ttt.decode.search import search
from arc_ttt.errors import OutOfDeviceMemory, SequenceTooLong, out_of_memory
from arc_ttt.model.cuda import release_memory
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.protocol.jobs import JobKind, OnProgress, Outcome
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Grid, Task, grid_bytes
from arc_ttt.tasks.views import View, paper_views, purpose_of, sample_views, task_rng, turns_sides
from arc_ttt.votes.candidates import SEARCHED, Candidate, ScoredCandidate
from arc_ttt.votes.rules import RULES

TOKENS_A_CELL = 2
"""The most tokens that a format writes for a cell."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to answer, and how.

    Args:
        task: whose test inputs are answered.
        stage: BASE before test-time training, TTT after it.
        views: how many views to answer under.
        number: which pass over the task it is; each looks through views of its own.
        programs: by test input, grids that synthesis found; they are scored along with the model's own.
    """

    task: Task
    stage: JobKind
    views: int
    number: int = 0
    programs: Mapping[int, Sequence[Grid]] = field(default_factory=dict)


@dataclass(slots=True)
class Answers:
    """What was found for one task.

    Args:
        candidates: every grid that was written, undone.
        scored: distinct grids with their likelihoods.
        outcome: how it ended.
        reason: why it did not end well.
        tokens: that the model read and wrote.
        degraded: names of what was done with less than the settings ask for, because memory did not suffice.
        spoiled: answers whose likelihood was no number.
    """

    candidates: list[Candidate] = field(default_factory=list)
    scored: list[ScoredCandidate] = field(default_factory=list)
    outcome: Outcome = Outcome.FINISHED
    reason: str = ""
    tokens: int = 0
    degraded: list[str] = field(default_factory=list)
    spoiled: int = 0


OnFound = Callable[[int, Answers], None]
"""Called with a test input and all answers so far, after each batch of views and after each test input."""


class Answerer:
    """Reads answers off one model on one device. It never touches weights.

    Args:
        base: the model, with an adapter or without.
        settings: `model`, `decode`, `vote`, and `ttt` for what moves black.
        memory: of the device; it limits how many views are decoded at once.
        forget: gives back what recorded training steps hold.
    """

    def __init__(
        self,
        base: LoadedModel,
        settings: Settings,
        memory: MemoryPlan | None = None,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self.base, self.settings, self.memory, self._forget = base, settings, memory, forget

    def decoder(self) -> Decoder:
        """A decoder of the weights as they are now, fused where the memory has room for the copy."""
        if self.memory is not None and self.memory.fused == 0:
            return Decoder(self.base, fuse=False)
        try:
            return Decoder(self.base)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        release_memory(self.base.device)
        return Decoder(self.base, fuse=False)

    def answer(
        self, request: Request, answers: Answers, deadline: Deadline, progress: OnProgress, on_found: OnFound
    ) -> None:
        """Answer all test inputs of a task into `answers`, as far as the deadline lets."""
        decoder = self.decoder()
        tests = len(request.task.tests)
        for index in range(tests):
            if deadline.passed():  # a prompt takes its time even if nothing can be written after it
                answers.outcome = Outcome.CUT
                break
            try:
                reading = _Reading(self, request, index, decoder)
                reading.read(answers, deadline, progress, on_found)
                reading.score(answers, deadline)
            except (SequenceTooLong, OutOfDeviceMemory) as error:
                answers.outcome, answers.reason = Outcome.FAILED, str(error)
            on_found(index, answers)
            progress("decode", index + 1, tests)
            if deadline.passed():
                answers.outcome = Outcome.CUT
                break

    def views(self, request: Request, index: int) -> list[View]:
        """The views of one test input. The base model and the first training draw the same ones, so they compare."""
        rng = task_rng(self.settings.run.seed, request.task.task_id, purpose_of(f"views {index}", request.number))
        demonstrations = len(request.task.train)
        if self.settings.decode.rule == "paper":
            return paper_views(demonstrations, rng)
        ttt = self.settings.ttt
        keep_black = ttt.in_context and ttt.augment != "dihedral"  # training moves black nowhere then
        return sample_views(request.views, demonstrations, rng, keep_black=keep_black)

    def release(self) -> None:
        """Give back memory after an attempt that did not fit."""
        self._forget()
        release_memory(self.base.device)


class _Reading:
    """The answers to one test input.

    Where memory does not suffice, it takes fewer views at once, then shorter prompts, then the views answered so far.
    """

    def __init__(self, answerer: Answerer, request: Request, index: int, decoder: Decoder) -> None:
        self._answerer, self._request, self._index, self._decoder = answerer, request, index, decoder
        self._settings = answerer.settings
        self._views = answerer.views(request, index)
        rows, columns = answer_limits(request.task, index)
        self._limits = [(columns, rows) if turns_sides(view.dihedral) else (rows, columns) for view in self._views]
        self._max_tokens = self._settings.model.max_tokens
        self._at_once, self._kept = self._views_in_memory(rows, columns)
        self._found: list[Candidate] = []
        self._prompts: list[tuple[PromptBatch, list[View]]] = []

    def read(self, answers: Answers, deadline: Deadline, progress: OnProgress, on_found: OnFound) -> None:
        """Read greedy answers under all views, a batch of views at a time, and undo them."""
        start, batch = 0, None
        while start < len(self._views):
            rows = slice(start, start + self._at_once)
            progress("decode", start, len(self._views))
            batch = None  # the last one, unless it is kept for scoring, gives its cache back first
            task, views = self._request.task, self._views[rows]
            prompts = [fit_prompt(self._answerer.base, task, self._index, view, self._max_tokens) for view in views]
            try:
                batch = PromptBatch(self._decoder, prompts, self._limits[rows])
                results = self._results(batch, deadline)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                batch, message = None, str(error)[:200]
            if batch is None:  # here, not above: what an exception refers to keeps its memory
                self._answerer.release()
                if not self._take_less(start, len(prompts[0]), message, answers):
                    break
                continue
            if start < self._kept:
                self._prompts.append((batch, views))
            answers.tokens += sum(len(prompt) for prompt in batch.prompts)
            self._take(results, start, len(prompts), answers)
            on_found(self._index, answers)
            start += self._at_once
            if deadline.passed():
                break

    def score(self, answers: Answers, deadline: Deadline) -> None:
        """Score the distinct answers, if the vote asks for likelihoods."""
        if not RULES[self._settings.vote.rule].needs_scores or not self._found:
            return
        programs = self._request.programs.get(self._index, ())
        try:
            answers.scored += score_candidates(self._found, programs, self._prompts, self._settings.vote, deadline)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            answers.degraded.append("no scores")

    def _results(self, batch: PromptBatch, deadline: Deadline) -> list[Answer]:
        """The answers read off prompts: the greedy one of each, then those of a search."""
        results = greedy(batch, deadline)
        least = self._settings.decode.min_probability
        if least > 0:
            for row in range(len(batch.prompts)):
                more, _ = search(batch, row, min_probability=least, deadline=deadline)
                first = results[row].grid
                seen = grid_bytes(first) if first is not None else b""
                results += [a for a in more if a.grid is not None and grid_bytes(a.grid) != seen]
        return results

    def _take_less(self, start: int, prompt_tokens: int, message: str, answers: Answers) -> bool:
        """Go down the memory ladder by one rung. Returns False if the views answered so far must do.

        Raises:
            OutOfDeviceMemory: not even the shortest prompt fits.
        """
        if self._at_once > 1:
            self._at_once = max(1, min(self._at_once, len(self._views) - start) // 2)
            answers.degraded.append("fewer views at once")
        elif self._found:
            answers.degraded.append("fewer views")
            return False
        else:
            self._max_tokens = prompt_tokens // 2
            if self._max_tokens < SHORTEST_PROMPT:
                raise OutOfDeviceMemory(f"test input {self._index + 1}: {message}")
            answers.degraded.append("shorter prompts")
        return True

    def _take(self, results: Sequence[Answer], start: int, prompts: int, answers: Answers) -> None:
        """Turn results into candidates. The first `prompts` are greedy, the others were searched."""
        task_id, stage = self._request.task.task_id, self._request.stage
        for place, result in enumerate(results):
            if result.grid is None:
                continue
            if not math.isfinite(result.nll):
                answers.spoiled += 1
                continue
            number = start + result.row
            view = self._views[number]
            answers.tokens += result.grid.size
            seen = number if place < prompts else SEARCHED
            grid = view.undo(result.grid)
            self._found.append(Candidate(task_id, self._index, grid, view.group, result.nll, stage, seen))
            answers.candidates.append(self._found[-1])

    def _views_in_memory(self, rows: int, columns: int) -> tuple[int, int]:
        """Views to decode at once, and views to keep for scoring."""
        wanted = self._settings.decode.batch_views, self._settings.vote.scoring_views
        answerer, task = self._answerer, self._request.task
        if answerer.memory is None:
            return wanted
        most = self._settings.model.max_tokens
        prompts = [fit_prompt(answerer.base, task, self._index, view, most) for view in self._views]
        answer = TOKENS_A_CELL * rows * (columns + 1)
        return answerer.memory.views(max(len(prompt) for prompt in prompts), answer, *wanted)

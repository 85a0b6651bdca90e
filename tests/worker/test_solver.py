"""One task from Task to candidates: the same answers whatever came before, and an answer for every odd task."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arc_ttt.adapt import adapter_trainer, batches, training
from arc_ttt.deadline import Deadline, VirtualClock
from arc_ttt.decode import answerer, scoring
from arc_ttt.decode.prompts import answer_limits, fit_prompt
from arc_ttt.errors import SequenceTooLong
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.protocol.jobs import Effort, Outcome
from arc_ttt.settings import Settings
from arc_ttt.tasks.grids import Example, Grid, Task, freeze, grid_bytes
from arc_ttt.tasks.views import identity_view, sample_views, task_rng
from arc_ttt.worker import solver as solver_module
from arc_ttt.worker.solver import PassAnswers, TaskSolver

CPU = torch.device("cpu")
torch.set_num_threads(1)  # more would wait for each other where cores are shared


def grid(*rows: str) -> Grid:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


PAIRS = (
    Example(grid("12", "30"), grid("21", "03")),
    Example(grid("45", "67"), grid("54", "76")),
    Example(grid("890"), grid("098")),
)
TASK = Task("several", PAIRS, (grid("13", "57"), grid("246")))
OTHER = Task("other", (Example(grid("111"), grid("1")), Example(grid("2"), grid("2"))), (grid("33"),))
ONE = Task("one", PAIRS[:1], (grid("45"),))
NONE = Task("none", (), (grid("1"),))
MIXED = Task("mixed", PAIRS, (grid("13", "57"),))


def run_settings(**changes: Any) -> Settings:
    values = {
        "model.dtype": "float32",
        "decode.views": 5,
        "decode.base_views": 5,
        "decode.batch_views": 3,
        "vote.scoring_views": 4,
        "ttt.max_sequences": 8,
        "ttt.rank": 4,
    }
    return Settings.of("embedded").override([*values.items(), *changes.items()])


SETTINGS = run_settings()


def new_solver(settings: Settings = SETTINGS) -> TaskSolver:
    return TaskSolver(load_model(settings.model, CPU), settings)


@pytest.fixture(scope="module")
def solver() -> TaskSolver:
    return new_solver()


@pytest.fixture(scope="module")
def base(solver: TaskSolver) -> LoadedModel:
    return solver.base


def whole(answers: PassAnswers) -> list[Any]:
    """All that a vote may look at, exactly."""
    found = [(c.task_id, c.test_index, grid_bytes(c.grid), c.group, c.nll, c.stage) for c in answers.candidates]
    scored = [(c.task_id, c.test_index, grid_bytes(c.grid), c.nll_by_view, c.stage) for c in answers.scored]
    return [*found, *scored, answers.outcome, answers.reason]


def test_answers_do_not_depend_on_what_came_before(solver: TaskSolver) -> None:
    """The same bits in another order, in another process's place, and on a machine that had other tasks."""
    never = Deadline.never()
    first = [whole(solver.adapt(t, never)) for t in (TASK, OTHER, ONE)]
    bases = [whole(solver.answer(t, never)) for t in (TASK, OTHER, ONE)]
    fresh = new_solver()
    again_bases = [whole(fresh.answer(t, never)) for t in (ONE, OTHER, TASK)]
    torch.manual_seed(123)
    np.random.seed(123)
    again = [whole(fresh.adapt(t, never)) for t in (ONE, OTHER, TASK)]
    assert again[::-1] == first
    assert again_bases[::-1] == bases
    assert first != bases
    other_seed = new_solver(run_settings(**{"run.seed": 1}))
    assert whole(other_seed.adapt(TASK, never)) != first[0]


def test_every_test_input_gets_candidates_of_its_own(solver: TaskSolver) -> None:
    answers = solver.answer(TASK, Deadline.never())
    assert answers.outcome == Outcome.FINISHED
    for index in (0, 1):
        mine = [c for c in answers.candidates if c.test_index == index]
        assert len(mine) == 5
        assert {c.task_id for c in mine} == {"several"}
        scored = [c for c in answers.scored if c.test_index == index]
        assert {grid_bytes(c.grid) for c in scored} == {grid_bytes(c.grid) for c in mine}
        assert all(len(c.nll_by_view) == 4 for c in scored)  # four scoring views, which span two batches of three
    assert len({c.group for c in answers.candidates}) > 3


def test_candidates_come_back_undone(solver: TaskSolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model writes under a view, the candidate is what stands under the identity."""
    views: list[Any] = []
    original = answerer.greedy

    def copying(batch: Any, deadline: Deadline) -> list[Any]:
        answers = original(batch, deadline)
        views.extend(answers)
        return answers

    monkeypatch.setattr(answerer, "greedy", copying)
    answers = solver.answer(OTHER, Deadline.never())
    drawn = sample_views(5, 2, task_rng(0, "other", "views 0"))
    assert len(views) == len(drawn) == len(answers.candidates)
    assert [candidate.view for candidate in answers.candidates] == list(range(5))
    for view, written, candidate in zip(drawn, views, answers.candidates, strict=True):
        assert grid_bytes(view.apply(candidate.grid)) == grid_bytes(written.grid)
        assert candidate.group == view.group


@pytest.mark.parametrize("task", [ONE, NONE], ids=["one demonstration", "none"])
def test_tasks_with_few_demonstrations_are_answered(solver: TaskSolver, task: Task) -> None:
    answers = solver.adapt(task, Deadline.never())
    assert len(answers.candidates) == 5
    assert answers.outcome == Outcome.FINISHED
    assert (answers.training is None) == (not task.train)
    if not task.train:
        assert "no trainable sequence" in answers.reason
        base = solver.answer(task, Deadline.never())
        assert [c.nll for c in answers.candidates] == [c.nll for c in base.candidates]


def test_both_stages_look_through_the_same_views(solver: TaskSolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a difference between them would be one of views, not of training."""
    prompts: dict[str, list[bytes]] = {"base": [], "ttt": []}
    stage = ""
    original = answerer.fit_prompt

    def copying(*arguments: Any) -> Any:
        prompt = original(*arguments)
        prompts[stage].append(prompt.ids.tobytes())
        return prompt

    monkeypatch.setattr(answerer, "fit_prompt", copying)
    stage = "base"
    solver.answer(TASK, Deadline.never())
    stage = "ttt"
    solver.adapt(TASK, Deadline.never())
    assert prompts["base"] == prompts["ttt"]
    assert len(set(prompts["base"])) == 10


def test_no_scope_answers_with_the_base_model() -> None:
    plain = new_solver(run_settings(**{"ttt.scope": "none"}))
    assert plain.adapter is None
    adapted = plain.adapt(TASK, Deadline.never())
    base = plain.answer(TASK, Deadline.never())
    assert [c.nll for c in adapted.candidates] == [c.nll for c in base.candidates]
    assert adapted.training is None


def test_a_shared_adapter_changes_training_and_never_the_base_pass() -> None:
    shared = new_solver(run_settings(**{"ttt.scope": "shared"}))
    before = whole(shared.answer(TASK, Deadline.never()))
    report = shared.adapt_jointly([TASK, OTHER], Deadline.never())
    assert report.steps == 2
    assert whole(shared.answer(TASK, Deadline.never())) == before
    adapted = shared.adapt(TASK, Deadline.never())
    assert adapted.training is None
    assert [c.nll for c in adapted.candidates] != [c[4] for c in before[: len(adapted.candidates)]]


def test_every_rung_of_a_joint_training_starts_from_the_untrained_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = new_solver(run_settings(**{"ttt.scope": "shared"}))
    shared.adapt_jointly([TASK, OTHER], Deadline.never())
    assert shared.adapter is not None
    assert shared.trainer is not None
    lora_b = [weight for name, weight in shared.adapter.trainable.items() if "lora_B" in name]
    assert any(bool(weight.any()) for weight in lora_b)  # later resets return to the first joint training
    original, untrained = shared.trainer._train, []

    def full_at_first(*arguments: Any) -> Any:
        untrained.append(not any(bool(weight.any()) for weight in lora_b))
        if len(untrained) < 3:
            raise no_memory(torch.OutOfMemoryError)
        return original(*arguments)

    monkeypatch.setattr(shared.trainer, "_train", full_at_first)
    assert shared.adapt_jointly([TASK, OTHER], Deadline.never()).steps > 0
    assert untrained == [True, True, True]


def test_a_share_trains_on_fewer_sequences(solver: TaskSolver) -> None:
    whole_, part = (solver.adapt(OTHER, Deadline.never(), effort=Effort(share=share)).training for share in (1.0, 0.01))
    assert whole_ is not None
    assert part is not None
    assert part.tokens <= whole_.tokens


def test_a_deadline_cuts_training_and_says_so(solver: TaskSolver) -> None:
    clock = VirtualClock()

    def slow(phase: str, done: int, of: int) -> None:
        clock.sleep(50.0 if phase == "train" else 0.0)

    answers = solver.adapt(TASK, Deadline.after(100.0, clock), slow, Effort(decode_s=200.0))
    assert answers.outcome == Outcome.CUT  # no time was left to train, but there was time to answer
    assert answers.training is not None
    assert answers.training.steps == 0
    assert answers.trained == 0.0
    assert len(answers.candidates) == 10
    none = solver.answer(TASK, Deadline.after(-1.0, clock))
    assert none.outcome == Outcome.CUT
    assert none.candidates == []


def test_answers_say_how_much_of_the_training_there_was(solver: TaskSolver) -> None:
    clock, told = VirtualClock(), list[float]()

    def slow(phase: str, done: int, of: int) -> None:
        clock.sleep(10.0 if phase == "train" and done else 0.0)

    part = new_solver(run_settings(**{"ttt.max_sequences": 32, "ttt.batch_sequences": 8, "ttt.stop_loss": 0.0}))
    part.on_found = lambda index, answers: told.append(answers.trained)
    answers = part.adapt(TASK, Deadline.after(45.0, clock), slow, Effort(decode_s=20.0))
    assert answers.training is not None
    assert (answers.training.steps, answers.training.planned) == (3, 4)
    assert answers.trained == 0.75
    assert told
    assert set(told) == {0.75}  # each line says it, for they leave one by one
    assert solver.adapt(TASK, Deadline.never()).trained == 1.0
    assert solver.adapt(NONE, Deadline.never()).trained == 0.0  # the base model answered


def test_most_of_the_time_left_is_never_kept_from_training(solver: TaskSolver) -> None:
    """A prediction of decoding that is far too long, as of a job that begins late in a run."""
    clock = VirtualClock()

    def slow(phase: str, done: int, of: int) -> None:
        clock.sleep(1.0 if phase == "train" and done else 0.0)

    answers = solver.adapt(TASK, Deadline.after(100.0, clock), slow, Effort(decode_s=1000.0))
    assert answers.outcome == Outcome.FINISHED
    assert answers.trained == 1.0


def test_one_test_input_that_does_not_fit_costs_only_itself() -> None:
    small = new_solver(run_settings(**{"model.max_tokens": 100}))
    task = Task("mixed", PAIRS, (freeze(np.ones((12, 12))), grid("12")))
    answers = small.answer(task, Deadline.never())
    assert answers.outcome == Outcome.FAILED
    assert "test input 1" in answers.reason
    assert {c.test_index for c in answers.candidates} == {1}


# Memory


def no_memory(error: type[Exception], text: str = "CUDA out of memory. Tried to allocate 2.00 GiB") -> Exception:
    return error(text)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize(
    ("fits", "rungs"),
    [
        (lambda rows, length, checkpointing: rows == 1, ["one sequence at a time"]),
        (lambda rows, length, checkpointing: length < 30, ["one sequence at a time", "shorter sequences"]),
        (
            lambda rows, length, checkpointing: checkpointing,
            ["one sequence at a time", "shorter sequences", "checkpointing"],
        ),
        (
            lambda rows, length, checkpointing: False,
            ["one sequence at a time", "shorter sequences", "checkpointing", "base model only"],
        ),
    ],
    ids=["batch", "length", "checkpointing", "base"],
)
def test_training_steps_down_the_memory_ladder_until_it_fits(
    solver: TaskSolver,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    fits: Callable[[int, int, bool], bool],
    rungs: list[str],
) -> None:
    """The device refuses what does not fit; each rung starts from the fresh adapter."""
    original = batches.cross_entropy_sum

    def small_device(llama: Any, batch: Any) -> torch.Tensor:
        if not fits(*batch[0].shape, llama.is_gradient_checkpointing):
            raise no_memory(error)
        return original(llama, batch)

    base = whole(solver.answer(MIXED, Deadline.never()))
    monkeypatch.setattr(training, "cross_entropy_sum", small_device)
    answers = solver.adapt(MIXED, Deadline.never())
    assert answers.degraded == rungs
    assert len(answers.candidates) == 5
    assert all(np.isfinite(c.nll) for c in answers.candidates)
    if rungs[-1] == "base model only":
        assert answers.outcome == Outcome.FAILED
        assert "out of memory" in answers.reason
        assert [c.nll for c in answers.candidates] == [row[4] for row in base[:5]]
        assert answers.trained == 0.0
    else:
        assert answers.trained == 1.0
        assert answers.outcome == Outcome.FINISHED
        assert answers.training is not None
        assert answers.training.steps > 0
    monkeypatch.undo()
    again = solver.adapt(MIXED, Deadline.never())  # the next task has it all again
    assert again.degraded == []


def test_one_sequence_at_a_time_trains_the_same(solver: TaskSolver, monkeypatch: pytest.MonkeyPatch) -> None:
    original, want = batches.cross_entropy_sum, solver.adapt(MIXED, Deadline.never())

    def small_device(llama: Any, batch: Any) -> torch.Tensor:
        if len(batch[0]) > 1:
            raise no_memory(torch.OutOfMemoryError)
        return original(llama, batch)

    monkeypatch.setattr(training, "cross_entropy_sum", small_device)
    got = solver.adapt(MIXED, Deadline.never())
    assert [grid_bytes(c.grid) for c in got.candidates] == [grid_bytes(c.grid) for c in want.candidates]
    assert [c.nll for c in got.candidates] == pytest.approx([c.nll for c in want.candidates], rel=1e-2)


@pytest.mark.parametrize(
    ("most", "degraded", "views"),
    [
        (2, ["fewer views at once"], 5),
        (1, ["fewer views at once"], 5),
        (0, ["fewer views at once"], 0),
    ],
)
def test_answers_are_read_with_as_many_views_at_once_as_fit(
    solver: TaskSolver, monkeypatch: pytest.MonkeyPatch, most: int, degraded: list[str], views: int
) -> None:
    original = answerer.greedy

    def small_device(batch: Any, deadline: Deadline) -> list[Any]:
        if len(batch.prompts) > most:
            raise no_memory(torch.OutOfMemoryError)
        return original(batch, deadline)

    monkeypatch.setattr(answerer, "greedy", small_device)
    answers = solver.answer(ONE, Deadline.never())
    assert len(answers.candidates) == views
    assert answers.degraded[: len(degraded)] == degraded
    assert (answers.outcome == Outcome.FAILED) == (views == 0)


def test_a_prompt_that_alone_does_not_fit_loses_demonstrations(
    solver: TaskSolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, longest = answerer.greedy, []

    def small_device(batch: Any, deadline: Deadline) -> list[Any]:
        longest.append(batch.longest)
        if batch.longest > max(longest) // 2:
            raise no_memory(torch.OutOfMemoryError)
        return original(batch, deadline)

    monkeypatch.setattr(answerer, "greedy", small_device)
    answers = solver.answer(Task("many", PAIRS * 3, TASK.tests[:1]), Deadline.never())
    assert len(answers.candidates) == 5
    assert answers.degraded == ["fewer views at once", "shorter prompts"]


def test_scores_that_do_not_fit_leave_the_candidates(solver: TaskSolver, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*arguments: Any) -> Any:
        raise no_memory(torch.OutOfMemoryError)

    monkeypatch.setattr(scoring, "score", no_room)
    answers = solver.answer(ONE, Deadline.never())
    assert (len(answers.candidates), answers.scored, answers.degraded) == (5, [], ["no scores"])
    assert answers.outcome == Outcome.FINISHED


def test_another_error_of_the_device_is_not_taken_for_memory(
    solver: TaskSolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(training, "cross_entropy_sum", broken)
    with pytest.raises(RuntimeError, match="device-side"):
        solver.adapt(ONE, Deadline.never())
    monkeypatch.undo()
    monkeypatch.setattr(answerer, "greedy", broken)
    with pytest.raises(RuntimeError, match="device-side"):
        solver.answer(ONE, Deadline.never())


# No numbers


def test_answers_that_are_no_numbers_never_vote_and_the_base_model_answers_instead(
    solver: TaskSolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter whose weights went wrong at its last step passes every check of training."""
    base = solver.answer(ONE, Deadline.never())
    original = adapter_trainer.train

    def poisoned(*arguments: Any) -> Any:
        report = original(*arguments)
        with torch.no_grad():
            for weight in arguments[1]:
                weight.fill_(float("nan"))
        return report

    monkeypatch.setattr(adapter_trainer, "train", poisoned)
    answers = solver.adapt(ONE, Deadline.never())
    assert answers.outcome == Outcome.DIVERGED
    assert answers.trained == 0.0
    assert [c.nll for c in answers.candidates] == [c.nll for c in base.candidates]
    assert all(np.isfinite(value) for c in answers.scored for value in c.nll_by_view)


def test_scores_that_are_no_numbers_leave_the_count_to_decide(
    solver: TaskSolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scoring, "score", lambda batch, views, grids, deadline: [[float("nan")] * len(views)] * len(grids)
    )
    answers = solver.answer(ONE, Deadline.never())
    assert len(answers.candidates) == 5
    assert answers.scored == []


# Streaming


def test_candidates_leave_after_each_batch_of_views(solver: TaskSolver) -> None:
    """Five views in batches of three: a kill in the second batch loses two answers, not five."""
    seen: list[tuple[int, int, int]] = []
    solver.on_found = lambda index, answers: seen.append(
        (index, sum(c.test_index == index for c in answers.candidates), len(answers.scored))
    )
    try:
        solver.answer(ONE, Deadline.never())
    finally:
        solver.on_found = lambda index, answers: None
    assert [count for _, count, _ in seen] == [3, 5, 5]
    assert seen[1][2] == 0
    assert seen[2][2] > 0


# Prompts


def test_a_long_prompt_drops_demonstrations_from_the_front(base: LoadedModel) -> None:
    view = identity_view(3)
    full = fit_prompt(base, TASK, 0, view, 10_000)
    form = base.form
    assert isinstance(form, CompactFormat)
    room = fit_room(base)
    lengths = []
    for limit in range(1, len(full) + room + 1):
        try:
            prompt = fit_prompt(base, TASK, 0, view, limit)
        except SequenceTooLong:
            continue
        assert len(prompt) + room <= limit
        lengths.append(len(prompt))
    shown = [form.encode(PAIRS[start:], TASK.tests[0]) for start in range(4)]
    assert sorted(set(lengths)) == sorted(map(len, shown))
    middle = fit_prompt(base, TASK, 0, view, len(shown[1]) + room)
    assert middle.ids.tolist() == shown[1].ids.tolist()


def fit_room(base: LoadedModel) -> int:
    """Tokens that `fit_prompt` keeps for the answer to the first test input of TASK."""
    for limit in range(1, 10_000):
        try:
            return limit - len(fit_prompt(base, Task("t", (), TASK.tests[:1]), 0, identity_view(0), limit))
        except SequenceTooLong:
            continue
    raise AssertionError


def test_a_test_input_that_alone_is_too_long(base: LoadedModel) -> None:
    with pytest.raises(SequenceTooLong, match="test input 2"):
        fit_prompt(base, TASK, 1, identity_view(3), 10)


def test_answers_have_room_for_all_that_the_demonstrations_suggest() -> None:
    assert answer_limits(NONE, 0) == (30, 30)
    assert answer_limits(TASK, 0) == (4, 6)  # twice the largest output on each side
    triple = Task("t", (Example(grid("12"), grid("121212", "121212", "121212")),), (freeze(np.ones((5, 7))),))
    assert answer_limits(triple, 0) == (15, 21)
    large = Task("t", (Example(freeze(np.ones((20, 20))), freeze(np.ones((20, 20)))),), (grid("1"),))
    assert answer_limits(large, 0) == (30, 30)


# Random numbers


def test_random_numbers_depend_on_seed_task_and_purpose_alone() -> None:
    """Checked across processes with other hash seeds, without loading a model."""
    names = [(0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y"), (0, "\ud800", "x")]
    here = [int(task_rng(*name).integers(2**62)) for name in names]
    assert len(set(here)) == len(names)
    source = str(Path(solver_module.__file__).parents[2])
    code = (
        f"import sys; sys.path.insert(0, {source!r})\n"
        "from arc_ttt.tasks.views import task_rng\n"
        f"print([int(task_rng(*name).integers(2**62)) for name in {names!r}])\n"
    )
    for hash_seed in ("0", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == str(here), done.stderr

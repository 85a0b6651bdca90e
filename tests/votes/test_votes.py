"""Voting: the official rule case by case, and the sound rules, which never waste an attempt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.errors import SettingsError
from arc_ttt.run.findings import PassResult
from arc_ttt.tasks.grids import Example, Grid, Task, freeze, grid_bytes
from arc_ttt.votes.attempts import attempts, fallback_grids
from arc_ttt.votes.candidates import Candidate, ScoredCandidate
from arc_ttt.votes.rules import rank, rank_passes

fuzz = settings(max_examples=150, deadline=None, database=None)
BLACK = [[[0]], [[0, 0], [0, 0]]]
SOUND = ("product", "hierarchical", "flattened")

# Grids of one colour each, so that no row or column majority mixes two of them.
GRIDS = {name: freeze(np.full((2, 2), number)) for number, name in enumerate("ABCDEF", 1)}
NAMES = {grid_bytes(grid): name for name, grid in GRIDS.items()}


def candidates(votes: str, *, nll: float = 1.0) -> list[Candidate]:
    """ "identity:AAB transpose:C" as candidates in this order."""
    return [
        Candidate("task", 0, GRIDS[letter], group, nll, "ttt")
        for part in votes.split()
        for group, letters in [part.split(":")]
        for letter in letters
    ]


def names(grids: list[Grid]) -> str:
    return "".join(NAMES.get(grid_bytes(grid), "?") for grid in grids)


def scored(**nlls: tuple[float, ...]) -> list[ScoredCandidate]:
    return [ScoredCandidate("task", 0, GRIDS[letter], nll, "ttt") for letter, nll in nlls.items()]


@pytest.mark.parametrize(
    ("votes", "both"),
    [
        # The official code takes the first place by argmax and the second by argsort: with equal counts both can be
        # the same grid, and the other one is lost.
        ("identity:AABB", "AA"),
        ("identity:AAABBB", "AA"),
        # A unanimous group casts three votes, a divided identity at most one each: two lone symmetries outvote it.
        ("identity:AABD transpose:C flip-rows:C", "CA"),
        ("identity:A", "AA"),
        ("identity:AAAA transpose:A", "AA"),
        ("identity:AAB", "AB"),
        # No identity group: second and third are not exchanged.
        ("transpose:A flip-rows:A rot90:B", "AB"),
    ],
)
def test_the_paper_rule_votes_as_the_official_code_does(votes: str, both: str) -> None:
    assert names(rank(candidates(votes), [], rule="paper")) == both


@pytest.mark.parametrize(
    ("votes", "both"),
    [
        ("identity:CB rot90:CA", "CB"),  # B and A tie; the identity knows only B
        ("identity:ABCC rot90:C", "CB"),  # A and B tie in the identity as well: the third place wins
        ("identity:BBCA", "BB"),  # the same, and the third place is the first grid once more
    ],
)
def test_the_paper_rule_breaks_a_tie_for_second_place_as_the_official_code_does(votes: str, both: str) -> None:
    assert names(rank(candidates(votes), [], rule="paper")) == both


def test_a_grid_that_nobody_predicted_ranks_behind_all_that_were() -> None:
    """The row majority of these four, rows `a` and `z`, is none of them."""
    a, b, c, x, y, z = ([[number, number]] for number in range(1, 7))
    predicted = [a + x, a + y, b + z, c + z]
    found = [Candidate("task", 0, freeze(np.array(rows)), "identity", 1.0, "ttt") for rows in predicted]
    ranked = [grid.tolist() for grid in rank(found, [], rule="hierarchical")]
    assert ranked[:4] == predicted
    assert ranked[4] == a + z


@pytest.mark.parametrize(
    ("rule", "votes", "order"),
    [
        ("flattened", "identity:AABB", "AB"),
        ("flattened", "identity:AB transpose:B", "BA"),
        ("flattened", "identity:AABD transpose:C flip-rows:C", "ACBD"),  # A and C twice; the identity knows A
        ("hierarchical", "identity:AABB", "AB"),
        ("hierarchical", "identity:AAABBB", "AB"),
        ("hierarchical", "identity:AABD transpose:C flip-rows:C", "CABD"),
        ("hierarchical", "identity:BBBBB transpose:A flip-rows:A rot90:A", "AB"),  # groups count, not their size
        ("hierarchical", "transpose:A rot90:B", "AB"),
        ("hierarchical", "transpose:B identity:A", "AB"),  # a tie goes to the identity
        ("product", "identity:AABB", "AB"),
    ],
)
def test_the_sound_rules_case_by_case(rule: str, votes: str, order: str) -> None:
    assert names(rank(candidates(votes), [], rule=rule)).startswith(order)


def test_a_tie_of_everything_else_goes_to_the_lower_nll_and_then_to_the_first_seen() -> None:
    for rule in ("flattened", "hierarchical"):
        worse, better = candidates("identity:A", nll=5.0), candidates("identity:B", nll=2.0)
        assert names(rank(worse + better, [], rule=rule))[:2] == "BA"
        assert names(rank(candidates("identity:BA"), [], rule=rule))[:2] == "BA"
        assert names(rank(candidates("identity:AB"), [], rule=rule))[:2] == "AB"


def test_the_product_rule_sums_over_views_and_puts_what_was_not_scored_behind() -> None:
    found = candidates("identity:AAAC transpose:BC flip-rows:DD")
    order = rank(found, scored(A=(1.0, 9.0), B=(4.0, 4.0), C=(4.5, 4.5)), rule="product")
    assert names(order) == "BCAD"


def test_the_product_rule_keeps_the_better_score_of_a_grid_scored_twice() -> None:
    twice = [*scored(A=(5.0,)), *scored(B=(3.0,)), *scored(A=(1.0,))]
    assert names(rank([], twice, rule="product")) == "AB"


def test_the_product_rule_never_prefers_a_score_that_is_no_number() -> None:
    """NaN compares with nothing: in a plain sort it stays where it stands, in front."""
    nan = float("nan")
    assert names(rank([], scored(A=(nan, 1.0), B=(3.0, 3.0), C=(2.0, 2.0)), rule="product")) == "CBA"
    assert names(rank([], scored(A=(math.inf,), B=(3.0,)), rule="product")) == "BA"
    assert names(rank([], scored(A=(), B=(3.0,)), rule="product")) == "BA"
    both = [*candidates("identity:A", nll=nan), *candidates("identity:B", nll=2.0)]
    assert names(rank(both, [], rule="flattened")) == "BA"


@pytest.mark.parametrize("rule", [*SOUND, "paper"])
def test_no_candidate_gives_no_grid(rule: str) -> None:
    assert rank([], [], rule=rule) == []


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"majority.*hierarchical"):
        rank([], [], rule="majority")


CANDIDATES = st.lists(
    st.builds(
        lambda rows, group, nll: Candidate("task", 0, freeze(np.array(rows)), group, nll, "ttt"),
        st.sampled_from(
            [[[0]], [[1]], [[0, 1]], [[1, 0]], [[0], [1]], [[0, 1], [1, 0]], [[0, 1], [1, 1]], [[1, 1], [1, 0]]]
        ),
        st.sampled_from(["identity", "transpose", "rot90", "flip-rows"]),
        st.floats(0, 100),
    ),
    min_size=1,
    max_size=14,
)


@given(CANDIDATES, st.sampled_from(SOUND))
@fuzz
def test_two_distinct_candidates_give_two_distinct_attempts(found: list[Candidate], rule: str) -> None:
    """The official rule may answer A and A where B was predicted as often."""
    distinct = {grid_bytes(candidate.grid) for candidate in found}
    ranked = rank(found, [], rule=rule)
    assert len({grid_bytes(grid) for grid in ranked}) == len(ranked)
    assert distinct <= {grid_bytes(grid) for grid in ranked}
    first, second = attempts(ranked, ranked)
    assert grid_bytes(first) in distinct
    if len(distinct) > 1:
        assert {grid_bytes(first), grid_bytes(second)} <= distinct
        assert grid_bytes(first) != grid_bytes(second)


@given(CANDIDATES, st.sampled_from([*SOUND, "paper"]))
@fuzz
def test_a_unanimous_vote_is_its_grid_whatever_the_rule(found: list[Candidate], rule: str) -> None:
    same = [Candidate("task", 0, found[0].grid, c.group, c.nll, "ttt") for c in found]
    assert {grid_bytes(grid) for grid in rank(same, [], rule=rule)} == {grid_bytes(found[0].grid)}


@given(CANDIDATES, st.sampled_from([*SOUND, "paper"]))
@fuzz
def test_a_vote_is_a_function_of_its_candidates(found: list[Candidate], rule: str) -> None:
    copies = [Candidate(c.task_id, c.test_index, freeze(c.grid), c.group, c.nll, c.stage) for c in found]
    assert [g.tolist() for g in rank(found, [], rule=rule)] == [g.tolist() for g in rank(copies, [], rule=rule)]


def test_attempts_are_the_first_two_and_fallbacks_fill_up() -> None:
    a, b, c = GRIDS["A"], GRIDS["B"], GRIDS["C"]
    assert names(list(attempts([a, b, c], [c]))) == "AB"
    assert names(list(attempts([a], [a, b]))) == "AB"
    assert names(list(attempts([a, a], [b]))) == "AB"
    assert names(list(attempts([], [b, c]))) == "BC"
    assert names(list(attempts([], [b]))) == "BB"


def grid(*rows: str) -> Grid:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


def test_the_fallback_of_a_task_that_keeps_sizes_is_its_own_input_then_its_outputs() -> None:
    task = Task("t", (Example(grid("12"), grid("21")), Example(grid("1"), grid("333"))), (grid("5"), grid("66")))
    assert [g.tolist() for g in fallback_grids(task, 1)] == [[[6, 6]], [[2, 1]], [[3, 3, 3]], *BLACK]
    assert fallback_grids(task, 0)[0].tolist() == [[5]]


def test_the_fallback_of_a_task_that_changes_sizes_is_an_output_first() -> None:
    task = Task("t", (Example(grid("12"), grid("2")), Example(grid("1"), grid("333"))), (grid("5"),))
    assert [g.tolist() for g in fallback_grids(task, 0)] == [[[2]], [[3, 3, 3]], [[5]], *BLACK]


def test_the_fallback_without_demonstrations_or_without_a_task() -> None:
    assert [g.tolist() for g in fallback_grids(Task("t", (), (grid("5"),)), 0)] == [[[5]], *BLACK]
    first, second = attempts([], fallback_grids(None, 3))
    assert first.tolist() != second.tolist()


def test_two_fallbacks_differ_even_where_the_input_is_one_black_cell() -> None:
    first, second = attempts([], fallback_grids(Task("t", (), (grid("0"),)), 0))
    assert first.tolist() != second.tolist()


# Several trainings of one task


def one_pass(weight: float, **nlls: float) -> PassResult:
    """A training that scored the grids named A, B, ... and was right about none in particular."""
    scored = [ScoredCandidate("t", 0, GRIDS[name], (nll,), "ttt") for name, nll in nlls.items()]
    return PassResult(weight, [Candidate("t", 0, s.grid, "identity", 1.0, "ttt") for s in scored], scored)


def test_likelihoods_of_different_trainings_are_compared_within_each_only() -> None:
    """The second training is surer of everything; its third choice still does not beat the first one's first."""
    passes = [one_pass(1.0, A=5.0, B=9.0), one_pass(1.0, C=0.1, A=0.2, D=4.0)]
    assert names(rank_passes(passes, rule="product")) == "ACBD"


def test_a_short_training_has_less_say_than_a_full_one() -> None:
    assert names(rank_passes([one_pass(0.25, A=0.1), one_pass(1.0, B=1.0)], rule="product")) == "BA"


def test_rules_that_count_pool_the_answers_of_all_trainings() -> None:
    passes = [one_pass(0.25, A=1.0, B=1.0), one_pass(1.0, B=1.0)]
    assert names(rank_passes(passes, rule="flattened")) == "BA"


def test_scores_that_are_no_numbers_leave_the_count() -> None:
    passes = [one_pass(1.0, A=float("nan")), one_pass(1.0, B=float("inf"), C=2.0)]
    assert names(rank_passes(passes, rule="product"))[0] == "C"
    assert sorted(names(rank_passes(passes, rule="product"))) == ["A", "B", "C"]


def test_a_single_training_ranks_as_without_others() -> None:
    one = one_pass(1.0, A=3.0, B=1.0, C=2.0)
    assert names(rank_passes([one], rule="product")) == names(rank(one.candidates, one.scored, rule="product")) == "BCA"

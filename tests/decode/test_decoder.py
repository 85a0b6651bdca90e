"""Decoding: the cache computes what the library computes, greedy and search find what slow loops find, scores agree."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_ttt.adapt.adapter import Adapter
from arc_ttt.adapt.batches import shuffled_steps
from arc_ttt.adapt.sequences import ttt_sequences
from arc_ttt.adapt.training import train
from arc_ttt.checkpoints.folders import EMBEDDED
from arc_ttt.deadline import Deadline, VirtualClock
from arc_ttt.decode.decoder import Decoder
from arc_ttt.decode.greedy import greedy
from arc_ttt.decode.kv_cache import KVCache
from arc_ttt.decode.layers import masked_attention
from arc_ttt.decode.prompts import PromptBatch
from arc_ttt.decode.scoring import score
from arc_ttt.decode.search import search
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.attention import hidden_states
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import ModelSettings, TttSettings
from arc_ttt.tasks.grids import Example, Grid, Task, freeze, grid_bytes, same_grid
from arc_ttt.tasks.views import View, identity_view, sample_views

CPU = torch.device("cpu")
torch.set_num_threads(1)  # more would wait for each other where cores are shared
fuzz = settings(max_examples=12, deadline=None, database=None)


def grid(*rows: str) -> Grid:
    return freeze(np.array([[int(cell) for cell in row] for row in rows]))


DEMONSTRATIONS = (Example(grid("123", "450"), grid("321", "054")), Example(grid("77"), grid("77")))
QUERY = grid("98", "76", "54")


def new_model(**changes: Any) -> LoadedModel:
    return load_model(ModelSettings(dtype="float32", **changes), CPU)


def trained_model(**changes: Any) -> LoadedModel:
    """A model whose LoRA weights have moved away from their start."""
    base = new_model(**changes)
    ttt = TttSettings(rank=4, max_sequences=4, batch_sequences=2, learning_rate=5e-3)
    adapter = Adapter(base, ttt, seed=0)
    sequences = ttt_sequences(Task("t", DEMONSTRATIONS, (QUERY,)), base.form, ttt, np.random.default_rng(0))
    steps = shuffled_steps(sequences, epochs=1, batch_sequences=2, rng=np.random.default_rng(0))
    train(base, adapter.parameters(), steps, ttt, Deadline.never())
    return base


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return new_model()


@pytest.fixture(scope="module")
def decoder(base: LoadedModel) -> Decoder:
    return Decoder(base)


@torch.no_grad()
def library_logp(base: LoadedModel, ids: Any, positions: Any) -> torch.Tensor:
    """Log-probabilities (T, V) of one sequence by the library's model, without a cache."""
    i, p = torch.as_tensor(np.array(ids))[None], torch.as_tensor(np.array(positions))[None]
    return torch.log_softmax(base.llama.lm_head(hidden_states(base.llama, i, p)[0]).float(), dim=-1)


def append(decoder: Decoder, cache: KVCache, pieces: list[tuple[Any, Any]]) -> list[torch.Tensor]:
    """Pass one piece (ids, positions) for each row, padded to the right; log-probabilities of each row's piece."""
    steps = max(len(ids) for ids, _ in pieces)
    ids, positions = np.full((len(pieces), steps), 14), np.zeros((len(pieces), steps), dtype=np.int64)
    for row, (tokens, places) in enumerate(pieces):
        ids[row, : len(tokens)], positions[row, : len(tokens)] = tokens, places
    counts = torch.tensor([len(tokens) for tokens, _ in pieces])
    longest = int((cache.lengths + counts).max())
    hidden = decoder.forward(torch.from_numpy(ids), torch.from_numpy(positions), counts, cache, longest)
    logp = decoder.log_probabilities(hidden)
    return [logp[row, : len(tokens)] for row, (tokens, _) in enumerate(pieces)]


def sequences_of(base: LoadedModel) -> list[TokenSequence]:
    """Three sequences of quite different lengths."""
    return [
        base.form.encode(DEMONSTRATIONS, QUERY, QUERY),
        base.form.encode((), QUERY, grid("1")),
        base.form.encode(DEMONSTRATIONS[1:], QUERY.T.copy(), grid("12", "34")),
    ]


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-4)


# The cache


@fuzz
@given(st.lists(st.lists(st.floats(0, 1), max_size=3), min_size=3, max_size=3))
def test_pieces_give_the_logits_of_the_whole(base: LoadedModel, decoder: Decoder, shares: list[list[float]]) -> None:
    """Rows of different lengths, each cut at places of its own; some rows pass nothing while others go on."""
    whole = sequences_of(base)
    cuts = []
    for sequence, row in zip(whole, shares, strict=True):
        inner = sorted(1 + int(share * (len(sequence) - 1)) for share in row)
        cuts.append([0, *([1] if not inner else []), *inner, *([len(sequence)] * (4 - max(1, len(inner))))])
    cache = decoder.new_cache(3, max(map(len, whole)) * 2)
    parts: list[list[torch.Tensor]] = [[], [], []]
    for piece in range(4):
        pieces = []
        for sequence, row in zip(whole, cuts, strict=True):
            start, stop = row[piece], row[piece + 1]
            pieces.append((sequence.ids[start:stop], sequence.positions[start:stop]))
        if max(len(ids) for ids, _ in pieces):
            for row, logp in enumerate(append(decoder, cache, pieces)):
                parts[row].append(logp)
    for sequence, row_parts, row in zip(whole, parts, cuts, strict=True):
        close(torch.cat(row_parts), library_logp(base, sequence.ids, sequence.positions)[: row[4]])


@fuzz
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=6), st.integers(0, 2**32))
def test_after_any_rollback_logits_are_those_of_what_is_left(
    base: LoadedModel, decoder: Decoder, steps: list[tuple[int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    prompt = base.form.encode((), QUERY)
    rows = [(list(prompt.ids), list(prompt.positions)), (list(prompt.ids[:5]), list(prompt.positions[:5]))]
    cache = decoder.new_cache(2, len(prompt) + 200)
    append(decoder, cache, [(ids, positions) for ids, positions in rows])
    for forward, back in steps:
        pieces = []
        for ids, positions in rows:
            fresh = (rng.integers(0, 14, forward), positions[-1] + 1 + np.arange(forward) % 64)
            ids += list(fresh[0])
            positions += list(fresh[1])
            pieces.append(fresh)
        got = append(decoder, cache, pieces)
        for (ids, positions), logp in zip(rows, got, strict=True):
            close(logp, library_logp(base, ids, positions)[-forward:])
        keep = [max(1, len(ids) - back) for ids, _ in rows]
        cache.rollback(torch.tensor(keep), max(keep))
        for (ids, positions), length in zip(rows, keep, strict=True):
            del ids[length:], positions[length:]


@pytest.mark.parametrize("rows", [[1], [2, 0], [1, 1, 2], [0, 1, 2]])
def test_selected_rows_go_on_as_if_they_had_been_alone(base: LoadedModel, decoder: Decoder, rows: list[int]) -> None:
    whole = sequences_of(base)
    cache = decoder.new_cache(3, 200)
    append(decoder, cache, [(s.ids[:-2], s.positions[:-2]) for s in whole])
    chosen = cache.select(rows, 120)
    assert chosen.capacity == 120
    got = append(decoder, chosen, [(whole[row].ids[-2:], whole[row].positions[-2:]) for row in rows])
    for row, logp in zip(rows, got, strict=True):
        close(logp, library_logp(base, whole[row].ids, whole[row].positions)[-2:])
    for row, logp in enumerate(append(decoder, cache, [(s.ids[-2:], s.positions[-2:]) for s in whole])):
        close(logp, library_logp(base, whole[row].ids, whole[row].positions)[-2:])  # the old cache is as it was


def test_a_short_row_of_a_long_batch_can_be_selected_into_less_room(base: LoadedModel, decoder: Decoder) -> None:
    whole = sorted(sequences_of(base), key=len)
    short, long = whole[0], whole[-1]
    room = len(short)
    assert room < len(long) - 2
    cache = decoder.new_cache(2, 200)
    append(decoder, cache, [(s.ids[:-2], s.positions[:-2]) for s in (short, long)])
    (got,) = append(decoder, cache.select([0], room), [(short.ids[-2:], short.positions[-2:])])
    close(got, library_logp(base, short.ids, short.positions)[-2:])


def test_what_lies_behind_a_row_is_finite_from_the_start(base: LoadedModel, decoder: Decoder) -> None:
    """Trap: attention gives it weight 0, but 0 times NaN is NaN, and fresh memory may hold anything. With
    deterministic algorithms torch fills it with NaN, and the shorter rows of a batch answered nonsense."""
    whole = sequences_of(base)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        cache = decoder.new_cache(3, 300)
        append(decoder, cache, [(s.ids[:-1], s.positions[:-1]) for s in whole])
        cache = cache.select([0, 1, 2], 400)
        got = append(decoder, cache, [(s.ids[-1:], s.positions[-1:]) for s in whole])
    finally:
        torch.use_deterministic_algorithms(False)
    for sequence, logp in zip(whole, got, strict=True):
        close(logp, library_logp(base, sequence.ids, sequence.positions)[-1:])


@pytest.mark.parametrize(
    ("changes", "fuse"),
    [({}, True), ({}, False), ({"dequantize": "never"}, True)],
    ids=["fused", "as they are", "4 bits"],
)
def test_a_decoder_made_after_training_is_the_adapted_model(changes: dict[str, str], fuse: bool) -> None:
    untrained = new_model(**changes)
    adapted = trained_model(**changes)
    decoder = Decoder(adapted, fuse=fuse)
    moved = 0.0
    for sequence in sequences_of(adapted):
        cache = decoder.new_cache(1, len(sequence))
        half = len(sequence) // 2
        first = append(decoder, cache, [(sequence.ids[:half], sequence.positions[:half])])
        second = append(decoder, cache, [(sequence.ids[half:], sequence.positions[half:])])
        got = torch.cat((first[0], second[0]))
        close(got, library_logp(adapted, sequence.ids, sequence.positions))
        moved = max(moved, float((got - library_logp(untrained, sequence.ids, sequence.positions)).abs().max()))
    assert moved > 0.1


# Greedy


def slow_greedy(base: LoadedModel, prompt: TokenSequence, limits: tuple[int, int]) -> tuple[Grid | None, float]:
    """One row, no cache: the most probable allowed token, again and again."""
    cursor = base.form.cursor(prompt, limits)
    ids, positions, nll = list(prompt.ids), list(prompt.positions), 0.0
    while not cursor.done:
        logp = library_logp(base, ids, positions)[-1]
        allowed = cursor.allowed()
        token = max(np.flatnonzero(allowed), key=lambda t: float(logp[t]))
        nll -= float(logp[token])
        positions.append(cursor.push(int(token)))
        ids.append(int(token))
    return cursor.reader.grid(), nll


def test_greedy_is_the_slow_obvious_loop(base: LoadedModel, decoder: Decoder) -> None:
    """Rows of different prompts and limits, which end at different times."""
    prompts = [
        base.form.encode(DEMONSTRATIONS, QUERY),
        base.form.encode((), grid("1")),
        base.form.encode(DEMONSTRATIONS[1:], grid("0" * 9, "1" * 9)),
        base.form.encode(DEMONSTRATIONS, QUERY),
    ]
    limits = [(3, 4), (1, 1), (7, 9), (2, 2)]
    answers = greedy(PromptBatch(decoder, prompts, limits), Deadline.never())
    assert [answer.row for answer in answers] == [0, 1, 2, 3]
    for answer, prompt, limit in zip(answers, prompts, limits, strict=True):
        want, nll = slow_greedy(base, prompt, limit)
        assert answer.grid is not None
        assert want is not None
        assert same_grid(answer.grid, want)
        assert answer.nll == pytest.approx(nll, abs=2e-3)
        assert answer.grid.shape[0] <= limit[0]
        assert answer.grid.shape[1] <= limit[1]
        assert answer.reason == ""


def test_a_passed_deadline_cuts_rows_with_a_reason(base: LoadedModel, decoder: Decoder) -> None:
    clock = VirtualClock()
    prompts = [base.form.encode(DEMONSTRATIONS, QUERY), base.form.encode((), grid("1"))]
    answers = greedy(PromptBatch(decoder, prompts, [(30, 30), (30, 30)]), Deadline.after(-1.0, clock))
    assert [answer.grid for answer in answers] == [None, None]
    assert all("deadline" in answer.reason for answer in answers)


def test_a_row_that_is_done_keeps_its_answer_when_the_deadline_comes(base: LoadedModel) -> None:
    clock = VirtualClock()

    class SlowDecoder(Decoder):
        """Each step takes a second."""

        def forward(self, *arguments: Any) -> torch.Tensor:
            clock.advance(1.0)
            return super().forward(*arguments)

    prompts = [base.form.encode(DEMONSTRATIONS, QUERY), base.form.encode(DEMONSTRATIONS, QUERY)]
    batch = PromptBatch(SlowDecoder(base), prompts, [(1, 1), (30, 30)])
    short, long = greedy(batch, Deadline.after(3.0, clock))
    assert short.grid is not None
    assert short.grid.shape == (1, 1)
    assert long.grid is None
    assert "deadline" in long.reason


# Search

SQUARES = [freeze(np.array(cells).reshape(1, 1)) for cells in range(10)]
SQUARES += [
    freeze(np.array(cells).reshape(shape))
    for shape in ((1, 2), (2, 1), (2, 2))
    for cells in itertools.product(range(10), repeat=shape[0] * shape[1])
]


def all_small_answers(base: LoadedModel, decoder: Decoder, prompt: TokenSequence) -> dict[bytes, float]:
    """The nll of every grid of at most 2 x 2, by teacher forcing, many rows at a time."""
    found: dict[bytes, float] = {}
    cache = decoder.new_cache(1, len(prompt) + 8)
    first = append(decoder, cache, [(prompt.ids, prompt.positions)])[0][-1]
    for start in range(0, len(SQUARES), 2000):
        some = SQUARES[start : start + 2000]
        written = [base.form.answer_ids(prompt, square) for square in some]
        rows = cache.select([0] * len(some), len(prompt) + 8)
        logp = append(decoder, rows, written)
        for square, (ids, _), row in zip(some, written, logp, strict=True):
            steps = torch.cat((first[None], row[:-1]))
            found[grid_bytes(square)] = -float(steps[torch.arange(len(ids)), torch.from_numpy(ids)].sum())
    return found


def tiny_model(folder: Path) -> LoadedModel:
    """Random weights, two thin layers, and a head that makes some tokens much more probable than others."""
    config = json.loads((EMBEDDED / "config.json").read_text())
    del config["quantization_config"], config["rope_parameters"]
    config |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    (folder / "config.json").write_text(json.dumps(config))
    base = new_model(path=str(folder), random_start=True)
    with torch.no_grad():
        base.llama.lm_head.weight.mul_(20)
    return base


def test_search_finds_exactly_the_answers_above_the_probability(tmp_path: Path) -> None:
    base = tiny_model(tmp_path)
    decoder = Decoder(base)
    prompt = base.form.encode((Example(grid("12"), grid("1")),), grid("5"))
    every = all_small_answers(base, decoder, prompt)
    assert len(every) == 10 + 100 + 100 + 10_000
    assert sum(math.exp(-nll) for nll in every.values()) <= 1.001
    batch = PromptBatch(decoder, [base.form.encode((), grid("1")), prompt], [(2, 2), (2, 2)])
    by_nll = sorted(every.values())
    for count in (0, 1, 7, 60, 400):
        # A bound in the widest gap near that place, so that rounding does not decide.
        places = range(max(1, count - 2), count + 3) if count else range(0)
        place = max(places, key=lambda i: by_nll[i] - by_nll[i - 1], default=0)
        bound = (by_nll[place - 1] + by_nll[place]) / 2 if place else by_nll[0] / 2
        want = {g for g, nll in every.items() if nll <= bound}
        assert len(want) == place
        found, complete = search(batch, 1, min_probability=math.exp(-bound), deadline=Deadline.never())
        assert complete
        assert len(found) == len(want)
        assert {grid_bytes(a.grid) for a in found if a.grid is not None} == want
        assert [a.nll for a in found] == sorted(a.nll for a in found)
        for answer in found:
            assert answer.grid is not None
            assert answer.row == 1
            assert answer.nll == pytest.approx(every[grid_bytes(answer.grid)], abs=1e-3)


def test_search_and_scoring_and_greedy_give_one_nll(base: LoadedModel, decoder: Decoder) -> None:
    prompt = base.form.encode((Example(grid("12"), grid("1")), Example(grid("34"), grid("3"))), grid("5"))
    batch = PromptBatch(decoder, [prompt], [(2, 2)])
    found, complete = search(batch, 0, min_probability=0.002, deadline=Deadline.never())
    assert complete
    found += greedy(batch, Deadline.never())
    assert len(found) >= 2
    grids = [answer.grid for answer in found if answer.grid is not None]
    scores = score(batch, [identity_view(2)], grids, Deadline.never())
    assert [s for (s,) in scores] == pytest.approx([answer.nll for answer in found], abs=1e-3)


def test_search_stops_at_its_bounds(base: LoadedModel, decoder: Decoder) -> None:
    batch = PromptBatch(decoder, [base.form.encode(DEMONSTRATIONS, QUERY)], [(30, 30)])
    clock = VirtualClock()
    _, complete = search(batch, 0, min_probability=1e-9, deadline=Deadline.after(-1.0, clock))
    assert not complete
    _, complete = search(batch, 0, min_probability=1e-9, deadline=Deadline.never(), max_forwards=5)
    assert not complete


# Scoring


def slow_nll(base: LoadedModel, prompt: TokenSequence, answer: Grid) -> float:
    """Teacher forcing through the library, one row."""
    ids, positions = base.form.answer_ids(prompt, answer)
    logp = library_logp(base, [*prompt.ids, *ids], [*prompt.positions, *positions])
    return -sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(ids))


def test_scores_are_those_of_a_slow_teacher_forced_computation(base: LoadedModel, decoder: Decoder) -> None:
    """Also for views that turn the answer, answers longer than the room kept at first, and prompts of other lengths."""
    views: list[View] = sample_views(6, 2, np.random.default_rng(4))
    prompts = []
    for view in views:
        shown = [view.apply_example(DEMONSTRATIONS[i]) for i in view.order]
        prompts.append(base.form.encode(shown, view.apply(QUERY)))
    assert len({len(prompt) for prompt in prompts}) > 1
    batch = PromptBatch(decoder, prompts)
    grids = [grid("9"), grid("12345", "67890"), freeze(np.arange(90).reshape(9, 10) % 10), QUERY]
    before = greedy(batch, Deadline.never())
    scores = score(batch, views, grids, Deadline.never())
    for answer, row in zip(grids, scores, strict=True):
        want = [slow_nll(base, prompt, view.apply(answer)) for prompt, view in zip(prompts, views, strict=True)]
        assert row == pytest.approx(want, rel=1e-4, abs=2e-3)
    part = batch.first_rows(4)
    for row, few in zip(scores, score(part, views[:4], grids, Deadline.never()), strict=True):
        assert few == pytest.approx(row[:4], abs=1e-3)
    after = greedy(batch, Deadline.never())  # scoring leaves the prompts as they were
    assert [a.nll for a in after] == pytest.approx([a.nll for a in before], abs=1e-4)


def test_scoring_stops_at_the_deadline(base: LoadedModel, decoder: Decoder) -> None:
    batch = PromptBatch(decoder, [base.form.encode((), QUERY)])
    assert score(batch, [identity_view(0)], [QUERY], Deadline.after(-1.0, VirtualClock())) == []


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
@fuzz
def test_folded_groups_attend_as_repeated_keys(rows: int, heads_kv: int, groups: int, steps: int, seed: int) -> None:
    """Attention under a mask with query heads folded into queries, against keys and values copied for every head."""
    random = torch.Generator().manual_seed(seed)
    reach = steps + 6
    query = torch.randn(rows, heads_kv * groups, steps, 8, generator=random)
    keys, values = (torch.randn(rows, heads_kv, reach, 8, generator=random) for _ in range(2))
    lengths = torch.randint(0, 6, (rows,), generator=random)
    mask = torch.arange(reach)[None, None, None] <= (lengths[:, None] + torch.arange(steps))[:, None, :, None]
    repeated = (x.repeat_interleave(groups, 1) for x in (keys, values))
    want = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask)
    torch.testing.assert_close(masked_attention(query, keys, values, mask), want, rtol=1e-5, atol=1e-6)

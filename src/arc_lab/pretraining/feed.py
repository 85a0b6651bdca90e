"""Pretraining data: windows of batches from a pack, each a function of the seed and its number alone.

A window is drawn, made into sequences, cut into batches of similar length and shuffled, in background processes. The
feed's whole state is which window comes next, at which batch, and the length limits of the windows under way; so an
interrupted training goes on with exactly the batches that it would have had.
"""

from __future__ import annotations

import multiprocessing
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arc_lab.data.packs import Group, Pack, Pair, pair_bytes, pair_tokens, stream
from arc_lab.pretraining.rearc.generators import Generators, attempt, end_with_parent, load_generators, package_folder
from arc_ttt.adapt.training import micro_batches, padded
from arc_ttt.errors import ArcError, InputError
from arc_ttt.formats.format import CompactFormat, TokenSequence
from arc_ttt.tasks.grids import MAX_SIDE, Example, Grid, freeze
from arc_ttt.tasks.views import View, dihedral, random_colours

PAIRS = (2, 3, 3, 4, 4, 4, 5, 6)  # pairs of a sequence, drawn uniformly from this list
TRIES = 24
LIVE_CPU_S = 0.5
LIVE_DIFFICULTY = (0.0, 1.0)
DIED = "a background process that makes data died (perhaps the system killed it for its memory)"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What decides the batches."""

    seed: int = 0
    max_tokens: int = 640
    """Longest sequence."""
    batch_tokens: int = 4096
    """Tokens of a batch, padding included."""
    window_sequences: int = 384
    """Sequences drawn at once and sorted by length."""
    windows_ahead: int = 3
    """Windows requested before they are needed."""
    lengths: tuple[int, ...] = ()
    """Lengths that batches are padded to, with always the same number of rows for each; empty: as long as needed."""
    upscale: float = 0.15
    """Share of sequences whose grids are enlarged 2 or 3 times, where they stay within 30 x 30."""
    tasks_weight: float = 0.05
    """Share of sequences from tasks' own pairs instead of generated ones, where the pack has both."""
    compose: float = 0.0
    """Share of sequences whose outputs (or inputs) pass through one more rule, the same for all pairs: new tasks from
    the same generators."""
    packed: bool = False
    """Batches of one row of exactly batch_tokens, filled with whole sequences; needs attention that knows of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """ids: (B, T) uint8. positions: (B, T) int32. places: (N,) int64, targets in the flat ids. tokens, sequences: how
    many real ones there are. squares: sum of the squared lengths of the sequences. starts: (K,) int32 for a packed row
    (B = 1), where its sequences start, then pieces of its padding, then T until K."""

    ids: NDArray[np.uint8]
    positions: NDArray[np.int32]
    places: NDArray[np.int64]
    tokens: int
    sequences: int
    squares: int
    starts: NDArray[np.int32] | None = None

    def row_of_targets(self) -> NDArray[np.int64]:
        """(N,) the number of the sequence, from 0, that each target belongs to."""
        if self.starts is None:
            return self.places // self.ids.shape[1]
        return np.searchsorted(self.starts, self.places, side="right").astype(np.int64) - 1


def batch_of(sequences: Sequence[TokenSequence], rows: int, length: int) -> Batch:
    """A padded batch of compact sequences."""
    ids, positions, targets = padded(sequences, CompactFormat.PAD, rows, length)
    tokens = sum(len(sequence) for sequence in sequences)
    places = np.flatnonzero(targets).astype(np.int64)
    return Batch(ids.astype(np.uint8), positions.astype(np.int32), places, tokens, len(sequences), _squares(sequences))


def packed_row(sequences: Sequence[TokenSequence], length: int, longest: int) -> Batch:
    """Whole sequences one after the other in one row of `length` tokens, padding at its end.

    longest: tokens that nothing in the row exceeds; padding is cut to it, because attention is told so.
    """
    ids = np.full((1, length), CompactFormat.PAD, dtype=np.uint8)
    positions = np.zeros((1, length), dtype=np.int32)
    targets = np.zeros(length, dtype=np.bool_)
    starts = np.full(most_packed(length) - -length // longest + 1, length, dtype=np.int32)
    at = 0
    for number, sequence in enumerate(sequences):
        stop = at + len(sequence)
        ids[0, at:stop], positions[0, at:stop] = sequence.ids, sequence.positions
        targets[at:stop], targets[at] = sequence.loss_mask, False
        starts[number] = at
        at = stop
    padding = range(at, length, longest)
    starts[len(sequences) : len(sequences) + len(padding)] = padding
    places = np.flatnonzero(targets).astype(np.int64)
    return Batch(ids, positions, places, at, len(sequences), _squares(sequences), starts)


def _squares(sequences: Sequence[TokenSequence]) -> int:
    return sum(len(sequence) ** 2 for sequence in sequences)


def most_packed(length: int) -> int:
    """Most sequences of a packed row: fixed, so that every row has the same shapes."""
    return max(1, length // 64)


def packed_rows(sequences: Sequence[TokenSequence], length: int) -> list[list[TokenSequence]]:
    """Sequences, in their order, cut into rows that each hold at most `length` tokens."""
    rows: list[list[TokenSequence]] = []
    free = 0
    for sequence in sequences:
        if not rows or len(sequence) > free or len(rows[-1]) >= most_packed(length):
            rows.append([])
            free = length
        rows[-1].append(sequence)
        free -= len(sequence)
    return rows


def held_pairs(packs: Sequence[Pack]) -> dict[bytes, str]:
    """The pairs that packs hold back to measure on, with the names of their groups."""
    held = ((group, index) for pack in packs for group in pack.groups for index in group.held)
    return {pair_bytes(group.pair(index)): group.name for group, index in held}


def apart(packs: Sequence[Pack]) -> list[Pack]:
    """The packs without the training pairs that another of them holds back to measure on."""
    if len(packs) < 2:
        return list(packs)
    held = held_pairs(packs)
    return [replace(pack, groups=tuple(_without(group, held) for group in pack.groups)) for pack in packs]


def _without(group: Group, held: Mapping[bytes, str]) -> Group:
    """A group without those of its training pairs that are in `held`."""
    dropped = [index for index in group.training if pair_bytes(group.pair(index)) in held]
    if not dropped:
        return group
    return replace(group, starts=np.delete(group.starts, dropped), tokens=np.delete(group.tokens, dropped))


class LivePairs:
    """Fresh pairs straight from the generators, verified; a slow or failed attempt gives none."""

    def __init__(self, generators: Generators, avoid: Callable[[bytes], str | None]) -> None:
        self.generators = generators
        self.avoid = avoid

    def pair(self, name: str, rng: np.random.Generator) -> Pair | None:
        """A pair of the group `name` ("rearc/<id>"); None when there is none at once or it must be avoided."""
        source, _, task_id = name.partition("/")
        if source != "rearc" or task_id not in self.generators.generate:
            return None
        own = random.Random(int(rng.integers(2**62)))
        pair, _ = attempt(self.generators, task_id, own, LIVE_DIFFICULTY, LIVE_CPU_S)
        return None if pair is None or self.avoid(pair_bytes(pair)) else pair


class WindowMaker:
    """Draws sequences from training groups of packs. Calling it with a window's number and length limit makes the
    window's batches."""

    def __init__(self, packs: Sequence[Pack], settings: DataSettings, live: LivePairs | None = None) -> None:
        """packs: as `apart` gives them. Raises InputError when they have nothing to train on."""
        self.settings = settings
        self.live = live
        self.form = CompactFormat()
        groups = [group for pack in packs for group in pack.groups if len(group.training) >= 2]
        self.sources = [
            [g for g in groups if g.name.startswith("rearc/")],
            [g for g in groups if not g.name.startswith("rearc/")],
        ]
        if not groups:
            raise InputError("the packs have no group with two pairs to train on")

    def __call__(self, number: int, limit: int) -> list[Batch]:
        rng = stream(self.settings.seed, "window", number)
        sequences = [self.sequence(rng, limit) for _ in range(self.settings.window_sequences)]
        if self.settings.packed:  # the last row is not full: it would be a smaller step
            rows = packed_rows(sequences, self.settings.batch_tokens)
            shape = self.settings.batch_tokens, self.settings.max_tokens
            return [packed_row(row, *shape) for row in (rows[:-1] or rows)]
        batches = [batch_of(rows, *shape) for rows, shape in self._batches(sequences)]
        return [batches[int(i)] for i in rng.permutation(len(batches))]

    def sequence(self, rng: np.random.Generator, limit: int) -> TokenSequence:
        """One training sequence of at most `limit` tokens: pairs of one group under one fresh view, at times enlarged.

        Where no draw of a group fits, other groups are tried. Raises InputError when nothing ever fits.
        """
        for _ in range(TRIES):
            group = self._group(rng)
            examples = self._examples(group, rng, limit)
            if examples is None:
                continue
            if rng.random() < self.settings.compose:
                sequence = encode(self.form, augmented(composed(examples, rng), rng, 0.0))
                if len(sequence) <= limit:
                    return sequence
            sequence = encode(self.form, augmented(examples, rng, self.settings.upscale))
            if len(sequence) <= limit:
                return sequence
            sequence = encode(self.form, augmented(examples, rng, 0.0))
            if len(sequence) <= limit:
                return sequence
        return self._shortest(rng, limit)

    def _group(self, rng: np.random.Generator) -> Group:
        generated, tasks = self.sources
        pick = tasks if not generated or (tasks and rng.random() < self.settings.tasks_weight) else generated
        return pick[int(rng.integers(len(pick)))]

    def _examples(self, group: Group, rng: np.random.Generator, limit: int) -> list[Example] | None:
        """2 to 6 pairs of a group that fit the limit together; None where not even two of those drawn do."""
        count = min(int(rng.choice(PAIRS)), len(group.training))
        drawn = rng.choice(len(group.training), size=count, replace=False)
        fresh = self.live.pair(group.name, rng) if self.live else None
        chosen: list[Example] = []
        total = 0
        if fresh is not None and pair_tokens(fresh) < limit // 2:
            chosen, total = [Example(*fresh)], pair_tokens(fresh)
        for index in drawn[len(chosen) :]:
            if total + int(group.tokens[index]) <= limit:
                chosen.append(group.example(int(index)))
                total += int(group.tokens[index])
        if len(chosen) < 2:
            return None
        return [chosen[int(i)] for i in rng.permutation(len(chosen))]

    def _shortest(self, rng: np.random.Generator, limit: int) -> TokenSequence:
        """The two shortest training pairs of a random group that has room for them."""
        groups = [group for source in self.sources for group in source]
        for number in rng.permutation(len(groups)):
            group = groups[int(number)]
            first, second = np.argsort(group.tokens[: len(group.training)], kind="stable")[:2]
            if int(group.tokens[first]) + int(group.tokens[second]) <= limit:
                pair = [group.example(int(first)), group.example(int(second))]
                return encode(self.form, augmented(pair, rng, 0.0))
        raise InputError(f"no group of the packs has two pairs that fit {limit} tokens")

    def _batches(self, sequences: list[TokenSequence]) -> list[tuple[list[TokenSequence], tuple[int, int]]]:
        settings = self.settings
        if not settings.lengths:
            lists = micro_batches(sequences, settings.batch_tokens)
            return [(rows, (len(rows), max(len(s) for s in rows))) for rows in lists]
        return fixed_shapes(sequences, settings.lengths, settings.batch_tokens)


def fixed_shapes(
    sequences: Sequence[TokenSequence], lengths: Sequence[int], batch_tokens: int
) -> list[tuple[list[TokenSequence], tuple[int, int]]]:
    """Full batches of a few shapes: as many rows of a length as the budget allows, at least one.

    What does not fill a batch of its length goes on with the next length; of the longest, the rest is dropped.
    """
    batches = []
    waiting: list[TokenSequence] = []
    for below, length in zip((0, *lengths), lengths, strict=False):
        waiting += [s for s in sequences if below < len(s) <= length]
        rows = max(1, batch_tokens // length)
        while len(waiting) >= rows:
            batches.append((waiting[:rows], (rows, length)))
            waiting = waiting[rows:]
    return batches


def augmented(examples: Sequence[Example], rng: np.random.Generator, upscale: float) -> list[Example]:
    """The examples under one fresh symmetry and permutation of all ten colours, sometimes enlarged by 2 or 3."""
    view = View(int(rng.integers(8)), random_colours(rng), tuple(range(len(examples))))
    largest = max(max(e.input.shape + e.output.shape) for e in examples)
    factor = int(rng.integers(2, 4)) if rng.random() < upscale else 1
    seen = [view.apply_example(example) for example in examples]
    if factor == 1 or largest * factor > MAX_SIDE:
        return seen
    return [Example(*(freeze(g.repeat(factor, 0).repeat(factor, 1)) for g in (e.input, e.output))) for e in seen]


def composed(examples: Sequence[Example], rng: np.random.Generator) -> list[Example]:
    """A new task: every output, or every input, of the examples passes through one more rule, the same for all.

    The rule is a symmetry of the square, a mirrored copy beside the grid, a frame, an enlargement, or an exchange of
    two colours, one of which the first output holds. Examples stay as they were where a grid would grow beyond 30 x 30.
    """
    change, colours_only = _another_rule(np.unique(examples[0].output), rng)
    of_input = not colours_only and rng.random() < 0.3
    changed = [
        Example(freeze(change(e.input)), e.output) if of_input else Example(e.input, freeze(change(e.output)))
        for e in examples
    ]
    largest = max(max(e.input.shape + e.output.shape) for e in changed)
    return changed if largest <= MAX_SIDE else list(examples)


def _another_rule(
    colours: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[Callable[[Grid], NDArray[np.uint8]], bool]:
    """A change of grids, and whether it changes colours alone. colours: those of which it exchanges one."""
    kind = int(rng.integers(6))
    if kind < 2:
        symmetry = int(rng.integers(1, 8))
        return lambda g: dihedral(g, symmetry), False
    if kind == 2:
        axis, order = int(rng.integers(2)), int(rng.choice((-1, 1)))
        return lambda g: np.concatenate((g, np.flip(g, axis))[::order], axis), False
    if kind == 3:
        colour = int(rng.integers(10))
        return lambda g: np.pad(g, 1, constant_values=colour), False
    if kind == 4:
        factor = int(rng.integers(2, 4))
        return lambda g: g.repeat(factor, 0).repeat(factor, 1), False
    table = np.arange(10, dtype=np.uint8)
    first, second = int(rng.choice(colours)), int(rng.integers(10))
    table[[first, second]] = second, first
    return lambda g: table[g], True


def encode(form: CompactFormat, examples: Sequence[Example]) -> TokenSequence:
    """A sequence with loss on every output but the first, which nothing explains."""
    sequence = form.encode(examples[:-1], examples[-1].input, examples[-1].output)
    mask = np.zeros(len(sequence), dtype=np.bool_)
    for start, stop in sequence.outputs[1:]:
        mask[start:stop] = True
    return replace(sequence, loss_mask=mask)


def measuring_sequences(packs: Sequence[Pack], split: str, count: int, max_tokens: int) -> list[TokenSequence]:
    """About `count` fixed sequences of held pairs, three shown and one asked, under fixed views.

    split: "train" for held pairs of seen groups, "held-out" for held-out groups. Only the last output is a target.
    """
    groups = [g for pack in packs for g in pack.groups if g.split == split and len(g.held) >= 4]
    form, found = CompactFormat(), []
    for turn in range(max(1, -(-count // max(1, len(groups))))):
        for number, group in enumerate(groups):
            rng = stream(turn, f"measure {group.name}", number)
            drawn = rng.choice(len(group.held), size=4, replace=False)
            examples = [group.example(group.held[int(i)]) for i in drawn]
            sequence = encode(form, augmented(examples, rng, 0.0))
            mask = np.zeros(len(sequence), dtype=np.bool_)
            mask[slice(*sequence.outputs[-1])] = True
            if len(sequence) <= max_tokens:
                found.append(replace(sequence, loss_mask=mask))
    keep = stream(0, "measured", len(found)).permutation(len(found))[:count]
    return [found[int(i)] for i in sorted(keep)]


_MAKER: WindowMaker | InputError | None = None  # of a background process, or why it has none


def _start(packs: Sequence[Pack], settings: DataSettings, wheel: str, avoid: Any) -> None:
    global _MAKER
    end_with_parent()
    try:
        live = LivePairs(load_generators(wheel), avoid) if wheel else None
        _MAKER = WindowMaker(packs, settings, live)
    except InputError as error:
        _MAKER = error


def _make(number: int, limit: int) -> list[Batch]:
    assert _MAKER is not None
    if isinstance(_MAKER, InputError):
        raise _MAKER
    return _MAKER(number, limit)


class Feed:
    """Batches in order, made ahead in background processes; `state` and `start` continue it exactly.

    processes: 0 makes windows in this process when they are needed. wheel: where fresh pairs come from (live); then
    the batches depend on time limits too. avoid: tells of a fresh pair (as bytes) whether it must not be used.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        settings: DataSettings,
        *,
        processes: int = 0,
        wheel: str = "",
        avoid: Callable[[bytes], str | None] = lambda pair: None,
    ) -> None:
        """Raises InputError for packs without anything to train on, or a `wheel` that is none."""
        self.settings = settings
        if wheel:
            package_folder(wheel)
        self._maker = WindowMaker(packs, settings)
        self._pool: ProcessPoolExecutor | None = None
        if processes == 0:
            self._maker.live = LivePairs(load_generators(wheel), avoid) if wheel else None
        else:
            self._pool = ProcessPoolExecutor(
                processes, multiprocessing.get_context("fork"), _start, (packs, settings, wheel, avoid)
            )
            self._pool.submit(int)  # starts all processes now, before this one holds a device or threads
        self._pending: deque[tuple[int, int, Future[list[Batch]] | None]] = deque()
        self._window: list[Batch] = []
        self._index = 0

    def start(self, state: dict[str, Any] | None, limit: int) -> None:
        """Begin with window 0, or where `state` says."""
        if state is None:
            state = {"index": 0, "windows": [[n, limit] for n in range(self.settings.windows_ahead + 1)]}
        for number, own_limit in state["windows"]:
            self._request(number, own_limit)
        self._index = state["index"]

    def next(self, limit: int) -> Batch:
        """The next batch; `limit` is the longest sequence of windows that are requested now.

        Raises:
            ArcError: a background process died.
        """
        while not self._window or self._index >= len(self._window):
            if self._window:
                self._pending.popleft()
                self._request(self._pending[-1][0] + 1, limit)
                self._index = 0
            number, own_limit, future = self._pending[0]
            try:
                self._window = future.result() if future else self._make_here(number, own_limit)
            except BrokenProcessPool as error:
                raise ArcError(DIED) from error
        batch = self._window[self._index]
        self._index += 1
        return batch

    def state(self) -> dict[str, Any]:
        """JSON-ready: the next batch, and the windows under way with their limits."""
        return {"index": self._index, "windows": [[number, limit] for number, limit, _ in self._pending]}

    def ready(self) -> int:
        """Windows that are made and not yet used."""
        return sum(1 for _, _, future in self._pending if future is not None and future.done()) - bool(self._window)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _request(self, number: int, limit: int) -> None:
        try:
            future = self._pool.submit(_make, number, limit) if self._pool is not None else None
        except BrokenProcessPool as error:
            raise ArcError(DIED) from error
        self._pending.append((number, limit, future))

    def _make_here(self, number: int, limit: int) -> list[Batch]:
        return self._maker(number, limit)

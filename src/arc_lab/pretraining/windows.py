"""Make windows of training sequences from pairs. A window depends on the seed and its number alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from arc_lab.data.packs import Group, Pack, Pair, pair_bytes, pair_tokens, stream
from arc_lab.pretraining.batches import Batch, batch_of, fixed_shapes, packed_row, packed_rows
from arc_lab.pretraining.rearc.generators import Generators, attempt
from arc_lab.pretraining.settings import DataSettings
from arc_ttt.adapt.batches import micro_batches
from arc_ttt.errors import InputError
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.formats.format import TokenSequence
from arc_ttt.tasks.grids import MAX_SIDE, Example, Grid, freeze
from arc_ttt.tasks.views import View, dihedral, random_colours

PAIRS = (2, 3, 3, 4, 4, 4, 5, 6)
"""Numbers of pairs in a sequence; each entry is drawn equally often."""

TRIES = 24
"""Groups that are tried for a sequence before the shortest pairs are taken."""

LIVE_CPU_S = 0.5
"""CPU seconds for a fresh pair."""

LIVE_DIFFICULTY = (0.0, 1.0)
"""Bounds of the generators' difficulty for fresh pairs."""


class LivePairs:
    """Fresh verified pairs from the generators. A slow or failed attempt gives none."""

    def __init__(self, generators: Generators, avoid: Callable[[bytes], str | None]) -> None:
        self.generators = generators
        self.avoid = avoid

    def pair(self, name: str, rng: np.random.Generator) -> Pair | None:
        """A pair of the group `name` ("rearc/<id>"); None if one attempt gives none, or one that must be avoided."""
        source, _, task_id = name.partition("/")
        if source != "rearc" or task_id not in self.generators.generate:
            return None
        own = random.Random(int(rng.integers(2**62)))
        pair, _ = attempt(self.generators, task_id, own, LIVE_DIFFICULTY, LIVE_CPU_S)
        return None if pair is None or self.avoid(pair_bytes(pair)) else pair


class WindowMaker:
    """Draws sequences from the training groups of packs.

    A call with a window's number and its longest sequence in tokens makes the batches of the window.
    """

    def __init__(self, packs: Sequence[Pack], settings: DataSettings, live: LivePairs | None = None) -> None:
        """Collect the groups to train on.

        Args:
            packs: packs, as `apart` returns them.
            settings: everything that decides the batches.
            live: gives fresh pairs.

        Raises:
            InputError: the packs have nothing to train on.
        """
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
        if self.settings.packed:  # without the last row, which is not full and would make a smaller step
            rows = packed_rows(sequences, self.settings.batch_tokens)
            shape = self.settings.batch_tokens, self.settings.max_tokens
            return [packed_row(row, *shape) for row in (rows[:-1] or rows)]
        batches = [batch_of(rows, *shape) for rows, shape in self._batches(sequences)]
        return [batches[int(i)] for i in rng.permutation(len(batches))]

    def sequence(self, rng: np.random.Generator, limit: int) -> TokenSequence:
        """One training sequence of at most `limit` tokens: pairs of one group under one fresh view, sometimes enlarged.

        If no draw from a group fits, other groups are tried.

        Raises:
            InputError: no pairs of any group fit.
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
        """A random group of generated pairs or of a task's own pairs."""
        generated, tasks = self.sources
        pick = tasks if not generated or (tasks and rng.random() < self.settings.tasks_weight) else generated
        return pick[int(rng.integers(len(pick)))]

    def _examples(self, group: Group, rng: np.random.Generator, limit: int) -> list[Example] | None:
        """2 to 6 pairs of a group that fit the limit together; None if not even two of the drawn pairs do."""
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
        """For each batch its sequences, and rows and length of its shape."""
        settings = self.settings
        if not settings.lengths:
            lists = micro_batches(sequences, settings.batch_tokens)
            return [(rows, (len(rows), max(len(s) for s in rows))) for rows in lists]
        return fixed_shapes(sequences, settings.lengths, settings.batch_tokens)


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
    """A new task: one more rule is applied to every output, or to every input, of the examples.

    The rule is a symmetry of the square, a mirrored copy beside the grid, a frame, an enlargement, or an exchange of
    two colours, one of which the first output holds. If a grid would grow beyond 30 x 30, the examples stay unchanged.
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
    """A random change of grids, and whether it changes colours alone. An exchange involves one of `colours`."""
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
    """A sequence with loss on every output except the first, which no earlier pair explains."""
    sequence = form.encode(examples[:-1], examples[-1].input, examples[-1].output)
    mask = np.zeros(len(sequence), dtype=np.bool_)
    for start, stop in sequence.outputs[1:]:
        mask[start:stop] = True
    return replace(sequence, loss_mask=mask)

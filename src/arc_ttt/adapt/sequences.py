"""Task -> training sequences for its adapter: leave-one-out, views, demonstration loss, caps.

Everything is built from the demonstrations of the task alone; test inputs are not used at all.
Source: the paper, section 3 (`augment=paper`); `augment=dihedral` is ours: a fresh symmetry, colours and order for
each sequence, for models that were pretrained the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from arc_ttt.adapt.augmenters import Augmenter, examples_identity, map_examples, paper_augmenters
from arc_ttt.formats.format import Format, TokenSequence
from arc_ttt.settings import TttSettings
from arc_ttt.tasks.grids import COLOURS, Example, Task
from arc_ttt.tasks.views import View, identity_view, random_colours

Variant = tuple[Example, ...]  # demonstrations, then the left-out pair in the last place


def ttt_sequences(task: Task, form: Format, settings: TttSettings, rng: np.random.Generator) -> list[TokenSequence]:
    """At most `settings.max_sequences` sequences, each at most `settings.max_sequence_tokens` long.

    Empty when the task has no demonstrations or none of its sequences fits; the base model then answers.
    """
    if not settings.in_context:
        variants = _direct(task, settings, rng)
    elif settings.augment == "dihedral":
        variants = _fresh_views(task, settings.max_sequences, rng)
    else:
        return _paper(task, form, settings, rng)
    sequences = []
    for variant in variants:
        sequence = fit_sequence(variant, form, settings)
        if sequence is not None:
            sequences.append(sequence)
    return sequences


def fit_sequence(variant: Variant, form: Format, settings: TttSettings) -> TokenSequence | None:
    """The sequence of a variant, without its first demonstrations where it would be too long; None if it never fits."""
    for start in range(len(variant)):
        shown = variant[start:]
        sequence = form.encode(shown[:-1], shown[-1].input, shown[-1].output)
        if len(sequence) <= settings.max_sequence_tokens:
            return replace(sequence, loss_mask=loss_mask(sequence, settings))
    return None


def loss_mask(sequence: TokenSequence, settings: TttSettings) -> np.typing.NDArray[np.bool_]:
    """(T,) bool: the targets. The last output always; with demonstration loss those of the demonstrations too."""
    mask = np.zeros(len(sequence), dtype=np.bool_)
    spans = sequence.outputs
    if not settings.demonstration_loss:
        spans = spans[-1:]
    elif not settings.first_output_loss and len(spans) > 1:
        spans = spans[1:]
    for start, stop in spans:
        mask[start:stop] = True
    return mask


def joint_sequences(
    tasks: Iterable[Task], form: Format, settings: TttSettings, rng_of: Callable[[str], np.random.Generator]
) -> list[TokenSequence]:
    """Sequences of all tasks together, for one adapter over the run (the paper's shared adapter; our joint stage)."""
    per_task = settings.joint_sequences if settings.scope == "joint" else settings.max_sequences
    few = replace(settings, max_sequences=per_task)
    return [s for task in tasks for s in ttt_sequences(task, form, few, rng_of(task.task_id))]


def _fresh_views(task: Task, count: int, rng: np.random.Generator) -> Iterable[Variant]:
    """`count` variants, each under its own symmetry, colours and order of all demonstrations."""
    if not task.train:
        return
    for _ in range(count):
        order = tuple(int(i) for i in rng.permutation(len(task.train)))
        view = View(int(rng.integers(8)), random_colours(rng), order)
        yield view.demonstrations(task)


def _direct(task: Task, settings: TttSettings, rng: np.random.Generator) -> Iterable[Variant]:
    """Single pairs without demonstrations: the paper's direct input-output ablation."""
    if not task.train:
        return
    for number in range(settings.max_sequences):
        index = number % len(task.train)
        view = identity_view(len(task.train))
        if settings.augment != "none":
            view = View(int(rng.integers(8)), random_colours(rng), view.order)
        yield (view.apply_example(task.train[index]),)


def _paper(task: Task, form: Format, settings: TttSettings, rng: np.random.Generator) -> list[TokenSequence]:
    """The paper's data set of one task: leave-one-out, topped up from leave-two-out, capped."""
    few = leave_out(task.train, 1)
    sequences = _encode(_augmented(few, settings, rng), form, settings)
    cap = settings.max_sequences
    if len(sequences) > cap:
        keep = sorted(int(i) for i in rng.permutation(len(sequences))[:cap])
        return [sequences[i] for i in keep]
    if len(sequences) < cap:
        fewer = _encode(_augmented(leave_out(task.train, 2), settings, rng), form, settings)
        keep = sorted(int(i) for i in rng.permutation(len(fewer))[: cap - len(sequences)])
        sequences += [fewer[i] for i in keep]
    return sequences


def leave_out(train: Sequence[Example], count: int) -> list[Variant]:
    """Base variants with `count` demonstrations removed, the first of which is the pseudo-test (1 or 2)."""
    variants = []
    for target in range(len(train)):
        others = [i for i in range(len(train)) if i != target]
        if count == 1:
            variants.append((*(train[i] for i in others), train[target]))
        else:
            variants += [(*(train[i] for i in others if i != dropped), train[target]) for dropped in others]
    return variants


def _augmented(base: list[Variant], settings: TttSettings, rng: np.random.Generator) -> list[Variant]:
    """Base variants, their augmentations, and copies of all with new colours and order; repeats removed, order kept."""
    variants = {examples_identity(variant): variant for variant in base}
    if settings.augment == "paper":
        for variant in base:
            for step in paper_augmenters(rng).values():
                mapped = map_examples(variant, step)
                if mapped is not None:
                    variants.setdefault(examples_identity(mapped), mapped)
    for variant in list(variants.values()):
        for _ in range(settings.permutations):
            copy = _reordered(variant, rng)
            if settings.augment == "paper":
                copy = _recoloured(copy, rng)
            variants.setdefault(examples_identity(copy), copy)
    return list(variants.values())


def _reordered(variant: Variant, rng: np.random.Generator) -> Variant:
    return (*(variant[int(i)] for i in rng.permutation(len(variant) - 1)), variant[-1])


def _recoloured(variant: Variant, rng: np.random.Generator) -> Variant:
    """New colours for all grids of the variant; black stays, as in the paper."""
    palette = np.asarray(random_colours(rng, keep_black=True), dtype=np.uint8)
    assert len(palette) == COLOURS
    step: Augmenter = lambda grid: palette[grid]  # noqa: E731
    mapped = map_examples(variant, step)
    assert mapped is not None  # colours change no size
    return mapped


def _encode(variants: list[Variant], form: Format, settings: TttSettings) -> list[TokenSequence]:
    """Sequences of those variants that are short enough; longer ones are left out, as in the paper."""
    sequences = []
    for variant in variants:
        sequence = form.encode(variant[:-1], variant[-1].input, variant[-1].output)
        if len(sequence) <= settings.max_sequence_tokens:
            sequences.append(replace(sequence, loss_mask=loss_mask(sequence, settings)))
    return sequences

"""Keep held pairs out of a training, and make the sequences that measure it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from arc_lab.data.packs import Group, Pack, pair_bytes, stream
from arc_lab.pretraining.windows import augmented, encode
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.formats.format import TokenSequence


def held_pairs(packs: Sequence[Pack]) -> dict[bytes, str]:
    """The pairs that packs hold back to measure on, with the names of their groups."""
    held = ((group, index) for pack in packs for group in pack.groups for index in group.held)
    return {pair_bytes(group.pair(index)): group.name for group, index in held}


def apart(packs: Sequence[Pack]) -> list[Pack]:
    """The packs without those training pairs that another pack holds back to measure on."""
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


def measuring_sequences(packs: Sequence[Pack], split: str, count: int, max_tokens: int) -> list[TokenSequence]:
    """At most `count` fixed sequences of held pairs under fixed views. Three pairs are shown; the last output is asked.

    Args:
        packs: where the pairs come from.
        split: "train" for held pairs of groups that are trained on, "held-out" for held-out groups.
        count: number of sequences.
        max_tokens: longer sequences are left out.
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

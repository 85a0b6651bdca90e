"""Train the adapter within the memory of its device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from arc_ttt.formats.format import TokenSequence
from arc_ttt.settings import TttSettings


def memory_ladder(
    ttt: TttSettings, sequences: Callable[[TttSettings], list[TokenSequence]]
) -> Iterator[tuple[str, TttSettings]]:
    """Settings to train under, each with less memory than the one before, and what was taken away ("" at first).

    sequences: what would be trained on under given settings; a rung that would leave nothing is passed over. Source:
    ours; the first rung changes no gradient, the second loses the longest sequences, the third costs time.
    """
    yield "", ttt
    ttt = replace(ttt, micro_batch_tokens=16)
    yield "one sequence at a time", ttt
    shorter = replace(ttt, max_sequence_tokens=max(16, max(map(len, sequences(ttt))) // 2))
    if sequences(shorter):
        ttt = shorter
        yield "shorter sequences", ttt
    if not ttt.checkpointing:
        yield "checkpointing", replace(ttt, checkpointing=True)

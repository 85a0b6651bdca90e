"""Settings of a training pack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arc_lab.data.families import family_of, held_out_families
from arc_ttt.errors import SettingsError

HELD_PAIRS = 12
"""Pairs of each training generator that are held back by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSettings:
    """Everything that decides a pack, besides the version of the generators."""

    pairs_per_generator: int = 1000
    """Pairs of each training generator."""
    held_pairs: int = HELD_PAIRS
    """Pairs of each training generator that are held back."""
    held_out_pairs: int = 40
    """Pairs of each generator of a held-out family."""
    max_side: int = 30
    """Longest side of a grid, in cells."""
    max_tokens: int = 1900
    """Longest pair, in tokens of the compact format."""
    difficulty: tuple[float, float] = (0.0, 1.0)
    """Bounds of the generators' difficulty, from 0 to 1."""
    attempts_per_pair: int = 6
    """Attempts for each wanted pair, at most."""
    cpu_s_per_generator: float = 300.0
    """CPU seconds after which a generator is stopped; the pack has the pairs until then."""
    seed: int = 0
    only: tuple[str, ...] = ()
    """Task ids of the generators to use; empty for all."""
    training_tasks: bool = False
    """Whether the pairs of the ARC-AGI-1 training tasks are added."""

    def __post_init__(self) -> None:
        low, high = self.difficulty
        if not 0 <= low <= high <= 1:
            raise SettingsError(f"--difficulty {low:g},{high:g}: two numbers from 0 to 1, the lower one first")
        limits = {
            "pairs_per_generator": (8, 1_000_000),
            "held_pairs": (0, self.pairs_per_generator // 2),
            "held_out_pairs": (4, 100_000),
            "max_side": (1, 30),
            "max_tokens": (8, 10_000),
            "attempts_per_pair": (1, 1000),
            "cpu_s_per_generator": (0.1, 1e6),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise SettingsError(f"--{name.replace('_', '-')} must be from {least} to {most}")

    def request(self, task_id: str) -> dict[str, Any]:
        """The request to a process for the pairs of one generator."""
        held_out = family_of(task_id) in held_out_families()
        pairs = self.held_out_pairs if held_out else self.pairs_per_generator
        return {
            "generator": task_id,
            "pairs": pairs,
            "attempts": pairs * self.attempts_per_pair,
            "cpu_s": self.cpu_s_per_generator,
            "max_side": self.max_side,
            "max_tokens": self.max_tokens,
            "difficulty": list(self.difficulty),
            "seed": self.seed,
        }

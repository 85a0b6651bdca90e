"""Keys and values of a batch of sequences in one preallocated cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Tensor = torch.Tensor


class KVCache:
    """Keys and values of one batch, allocated once.

    keys, values: (layers, B, heads_kv, capacity, D). Row b is valid below lengths[b]; what lies behind is garbage to
    which attention gives weight 0. It must be finite, for 0 times NaN is NaN: hence zeros at the start. `rollback`
    only changes lengths. Bytes: 2 * layers * B * heads_kv * capacity * D * itemsize.
    """

    def __init__(self, config: Any, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, rows, heads, capacity, width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.longest = 0  # upper bound of lengths, kept on the host

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def rollback(self, lengths: Tensor, longest: int) -> None:
        """Forget what lies behind `lengths` (B,), none of which is above `longest`."""
        self.lengths = lengths.clone()
        self.longest = longest

    def select(self, rows: Sequence[int], capacity: int) -> KVCache:
        """A copy with only these rows and room for `capacity` tokens."""
        chosen = object.__new__(KVCache)
        index = torch.tensor(rows, dtype=torch.long, device=self.keys.device)
        kept = min(self.longest, capacity)  # a row that is shorter loses nothing but garbage
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros((*old.shape[:1], len(rows), old.shape[2], capacity, old.shape[4]))
            new[:, :, :, :kept] = old[:, index, :, :kept]
            setattr(chosen, name, new)
        chosen.lengths = self.lengths[index]
        chosen.longest = kept
        return chosen

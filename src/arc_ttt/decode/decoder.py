"""Decoder: the forward pass for reading answers, with keys and values kept in one preallocated cache.

Written out here instead of calling the library's model, because it is the hot path of a run: rows of a batch have
lengths of their own, a step back costs nothing, and for small models the projections of a layer are fused with the
adapter's change added in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import scaled_dot_product_attention

from arc_ttt.checkpoints.memory_plan import SCORING_PIECE
from arc_ttt.decode.kv_cache import KVCache, Tensor
from arc_ttt.decode.layers import call_linear, fuse_linears, masked_attention, rms_norm, rotate
from arc_ttt.model.attention import fused_groups, rotary_is_fixed
from arc_ttt.model.loaded import LoadedModel


class Decoder:
    """The forward pass of a Llama over a KVCache, as the weights stand when it is made.

    Plain models are fused, in a copy of their weights: make a new Decoder after training. Layers with 4-bit weights are
    called as they are, and so are all without `fuse`, for want of memory.
    """

    def __init__(self, base: LoadedModel, *, fuse: bool = True) -> None:
        self.base = base
        self.llama = base.llama
        self.config = base.llama.config
        body = base.llama.model
        self.heads = self.config.num_attention_heads
        self.heads_kv = self.config.num_key_value_heads
        self.width = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads
        self.dtype = base.dtype if base.device.type == "cuda" else torch.float32
        fused = [fuse_linears(layer, self.dtype) if fuse else None for layer in body.layers]
        self.layers = [quick or call_linear(layer, self.dtype) for quick, layer in zip(fused, body.layers, strict=True)]
        self.can_record = base.can_record and all(fused)
        self.eps = self.config.rms_norm_eps
        self.rotary = base.rotary or body.rotary_emb
        self.fixed_rotary = base.rotary is None and rotary_is_fixed(base.llama)
        self.repeats = not fused_groups(base.device)

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        return KVCache(self.config, rows, capacity, self.base.device, self.dtype)

    @torch.no_grad()
    def forward(self, ids: Tensor, positions: Tensor, counts: Tensor, cache: KVCache, longest: int) -> Tensor:
        """Append tokens to every row of `cache` and return their last hidden states, normed, (B, S, D).

        Args:
            ids, positions: (B, S), padded to the right.
            counts: (B,), how many of the S are real.
            longest: an upper bound of the rows' new lengths. A padded place writes garbage behind the row's length,
                where the next token goes.
        """
        reach = min(cache.longest + ids.shape[1], cache.capacity)
        with any_kernel():
            hidden = self.hidden(ids, positions, cache.lengths, cache, reach, fresh=cache.longest == 0)
        cache.lengths = cache.lengths + counts
        cache.longest = longest
        return hidden

    def hidden(
        self, ids: Tensor, positions: Tensor, lengths: Tensor, cache: KVCache, reach: int, *, fresh: bool
    ) -> Tensor:
        """The forward pass alone: tokens go behind `lengths` (B,) into the cache, whose own lengths stay.

        Args:
            reach: places of the cache that may hold tokens after it.
            fresh: the cache is empty.
        """
        rows, steps = ids.shape
        body = self.llama.model
        hidden = body.embed_tokens(ids).to(self.dtype)
        cos, sin = self._rotary(hidden, positions)
        slots = lengths[:, None] + torch.arange(steps, device=ids.device)  # (B, S)
        mask = None
        if not fresh:
            mask = torch.arange(reach, device=ids.device)[None, None, None, :] <= slots[:, None, :, None]
        batch = torch.arange(rows, device=ids.device)[:, None]
        for index, layer in enumerate(self.layers):
            keys, values = cache.keys[index], cache.values[index]
            query, key, value = layer.project(rms_norm(hidden, layer.norm_in, self.eps))
            query = query.view(rows, steps, self.heads, self.width).transpose(1, 2)
            key = key.view(rows, steps, self.heads_kv, self.width).transpose(1, 2)
            value = value.view(rows, steps, self.heads_kv, self.width).transpose(1, 2)
            query, key = query * cos + rotate(query) * sin, key * cos + rotate(key) * sin
            if fresh:
                keys[:, :, :steps], values[:, :, :steps] = key, value
                seen = self._causal_attention(query, key, value)
            else:
                keys[batch, :, slots] = key.transpose(1, 2)
                values[batch, :, slots] = value.transpose(1, 2)
                seen = masked_attention(query, keys[:, :, :reach], values[:, :, :reach], mask)
            hidden = hidden + layer.output(seen.transpose(1, 2).reshape(rows, steps, -1))
            hidden = hidden + layer.feed_forward(rms_norm(hidden, layer.norm_out, self.eps))
        return rms_norm(hidden, body.norm.weight, self.eps)

    def _rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, 1, S, D) of the rotary angles. Where the frequencies never change, without the library's
        look at the largest position, which waits for the device."""
        if not self.fixed_rotary:
            cos, sin = self.rotary(hidden, positions)
            return cos.unsqueeze(1), sin.unsqueeze(1)
        rotary = self.llama.model.rotary_emb
        angles = positions[:, None, :, None].float() * rotary.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)
        scale = rotary.attention_scaling
        return (angles.cos() * scale).to(self.dtype), (angles.sin() * scale).to(self.dtype)

    def _causal_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of whole prompts: query (B, heads, T, D), key and value (B, heads_kv, T, D)."""
        if self.heads != self.heads_kv and self.repeats:
            key, value = (x.repeat_interleave(self.heads // self.heads_kv, 1) for x in (key, value))
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Log-probabilities (..., V), float32, of the token after each hidden state."""
        with torch.no_grad():
            head = self.llama.lm_head
            weight = next(head.parameters())
            if weight.is_floating_point():  # float32 under full adapters, whatever computes
                hidden = hidden.to(weight.dtype)
            return torch.log_softmax(head(hidden).float(), dim=-1)

    @torch.no_grad()
    def token_log_probabilities(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Log-probability (B, A), float32, of each token (B, A) after its hidden state (B, A, D).

        A large vocabulary is taken in pieces, so that memory stays below about 256 MB.
        """
        flat, wanted = hidden.flatten(0, 1), tokens.flatten()
        rows = max(1, SCORING_PIECE // self.config.vocab_size)
        pieces = [
            self.log_probabilities(flat[i : i + rows]).gather(-1, wanted[i : i + rows, None])[:, 0]
            for i in range(0, len(flat), rows)
        ]
        return torch.cat(pieces).view(tokens.shape)


@contextmanager
def any_kernel() -> Iterator[None]:
    """Let the device use its usual kernels although deterministic ones are asked for: every place of the cache is
    written once, so that the order of writes cannot matter, and the deterministic kernels sort them first."""
    asked, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warns)

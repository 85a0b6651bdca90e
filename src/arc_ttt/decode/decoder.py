"""Decoder: the forward pass for reading answers, with keys and values kept in one preallocated cache.

Written out here instead of calling the library's model, because it is the hot path of a run: rows of a batch have
lengths of their own, a step back costs nothing, and for small models the projections of a layer are fused with the
adapter's change added in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from arc_ttt.adapt.adapter import effective_weight
from arc_ttt.model.load import LoadedModel, fused_groups, rotary_is_fixed, side_stream, warm_up

Tensor = torch.Tensor
LOGITS_AT_ONCE = 1 << 25  # numbers of one piece of logits


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
        fused = [_fused(layer, self.dtype) if fuse else None for layer in body.layers]
        self.layers = [quick or _called(layer, self.dtype) for quick, layer in zip(fused, body.layers, strict=True)]
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

        ids, positions: (B, S), padded to the right. counts: (B,), how many of the S are real. longest: an upper bound
        of the rows' new lengths. A padded place writes garbage behind the row's length, where the next token goes.
        """
        reach = min(cache.longest + ids.shape[1], cache.capacity)
        with _any_kernel():
            hidden = self.hidden(ids, positions, cache.lengths, cache, reach, fresh=cache.longest == 0)
        cache.lengths = cache.lengths + counts
        cache.longest = longest
        return hidden

    def hidden(
        self, ids: Tensor, positions: Tensor, lengths: Tensor, cache: KVCache, reach: int, *, fresh: bool
    ) -> Tensor:
        """The forward pass alone: tokens go behind `lengths` (B,) into the cache, whose own lengths stay.

        reach: places of the cache that may hold tokens after it. fresh: the cache is empty.
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
            query, key, value = layer.project(_rms_norm(hidden, layer.norm_in, self.eps))
            query = query.view(rows, steps, self.heads, self.width).transpose(1, 2)
            key = key.view(rows, steps, self.heads_kv, self.width).transpose(1, 2)
            value = value.view(rows, steps, self.heads_kv, self.width).transpose(1, 2)
            query, key = query * cos + _turned(query) * sin, key * cos + _turned(key) * sin
            if fresh:
                keys[:, :, :steps], values[:, :, :steps] = key, value
                seen = self._causal_attention(query, key, value)
            else:
                keys[batch, :, slots] = key.transpose(1, 2)
                values[batch, :, slots] = value.transpose(1, 2)
                seen = _masked_attention(query, keys[:, :, :reach], values[:, :, :reach], mask)
            hidden = hidden + layer.output(seen.transpose(1, 2).reshape(rows, steps, -1))
            hidden = hidden + layer.feed_forward(_rms_norm(hidden, layer.norm_out, self.eps))
        return _rms_norm(hidden, body.norm.weight, self.eps)

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
        rows = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        pieces = [
            self.log_probabilities(flat[i : i + rows]).gather(-1, wanted[i : i + rows, None])[:, 0]
            for i in range(0, len(flat), rows)
        ]
        return torch.cat(pieces).view(tokens.shape)


class Recorded:
    """One-token steps of all rows of a cache, recorded once on the GPU: a replay launches in one go what would
    otherwise be hundreds of kernels, each of which takes longer to launch than to run.

    Needs `decoder.can_record`. Starts from the lengths that the cache has now. The cache must have room for every step.
    """

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        device, rows = decoder.base.device, len(cache.lengths)
        self.cache = cache
        self.ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.lengths = cache.lengths.clone()

        def step() -> Tensor:
            hidden = decoder.hidden(self.ids, self.positions, self.lengths, cache, cache.capacity, fresh=False)
            return decoder.log_probabilities(hidden[:, 0])

        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), _any_kernel():
            warm_up(device, step)
            # A stream of its own: torch 2.12 and 2.13 drop the cuBLAS workspace of a stream with any graph of that
            # stream, and graphs of training steps outlive this one (pytorch issue 193402).
            with torch.cuda.graph(self.graph, stream=side_stream(device, "decoding")):
                self.log_probabilities = step()
                self.lengths += 1

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Append one token to every row. ids, positions: (B, 1) on the host. Returns log-probabilities (B, V), good
        until the next step."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        self.graph.replay()
        self.cache.longest += 1
        return self.log_probabilities


@contextmanager
def _any_kernel() -> Iterator[None]:
    """Let the device use its usual kernels although deterministic ones are asked for: every place of the cache is
    written once, so that the order of writes cannot matter, and the deterministic kernels sort them first."""
    asked, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warns)


class _Layer:
    """One decoder layer as four functions and two norm weights."""

    __slots__ = ("feed_forward", "norm_in", "norm_out", "output", "project")

    def __init__(
        self,
        project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
        output: Callable[[Tensor], Tensor],
        feed_forward: Callable[[Tensor], Tensor],
        layer: Any,
    ) -> None:
        self.project, self.output, self.feed_forward = project, output, feed_forward
        self.norm_in = layer.input_layernorm.weight.detach()
        self.norm_out = layer.post_attention_layernorm.weight.detach()


def _fused(layer: Any, dtype: torch.dtype) -> _Layer | None:
    """A layer with query, key and value in one product, gate and up in another; None if weights are packed."""
    attention, mlp = layer.self_attn, layer.mlp
    modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    weights = [effective_weight(m) for m in (*modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    if any(weight is None for weight in weights):
        return None
    plain = [weight.to(dtype) for weight in weights if weight is not None]
    sizes = [weight.shape[0] for weight in plain[:3]]
    qkv, gate_up, o, down = torch.cat(plain[:3]), torch.cat(plain[4:6]), plain[3], plain[6]

    def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = torch.split(linear(x, qkv), sizes, dim=-1)
        return query, key, value

    def feed_forward(x: Tensor) -> Tensor:
        gate, up = linear(x, gate_up).chunk(2, dim=-1)
        return linear(silu(gate) * up, down)

    return _Layer(project, lambda x: linear(x, o), feed_forward, layer)


def _called(layer: Any, dtype: torch.dtype) -> _Layer:
    """A layer through its own modules, 4-bit or adapted ones included."""
    attention, mlp = layer.self_attn, layer.mlp
    query, key, value, output = (
        _adapted(m, dtype) for m in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    )
    gate, up, down = (_adapted(m, dtype) for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))

    def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return query(x), key(x), value(x)

    return _Layer(project, output, lambda x: down(silu(gate(x)) * up(x)), layer)


def _adapted(module: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A layer with its adapter's change, as it is now, computed in `dtype`; the library would compute it in float32."""
    if "default" not in getattr(module, "lora_A", ()):
        return _in_its_type(module, dtype)
    inner = _in_its_type(module.base_layer, dtype)
    first = module.lora_A["default"].weight.detach().to(dtype, copy=True)
    second = (module.lora_B["default"].weight.detach() * module.scaling["default"]).to(dtype)

    def both(x: Tensor) -> Tensor:
        return inner(x) + linear(linear(x, first), second)

    return both


def _in_its_type(module: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A layer for inputs of `dtype`, also where its plain weights are of another type."""
    called: Callable[[Tensor], Tensor] = module
    if type(module) is torch.nn.Linear and module.weight.dtype != dtype:
        return lambda x: called(x.to(module.weight.dtype)).to(dtype)
    return called


def _masked_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention under a mask (B, 1, S, reach): query (B, heads, S, D), keys and values (B, heads_kv, reach, D).

    The query heads that share a key head become further queries of it: no kernel that takes a mask takes groups of
    heads, and the one that takes both writes out all S x reach weights of every head.
    """
    rows, heads, steps, width = query.shape
    groups = heads // keys.shape[1]
    if groups == 1:
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    folded = query.reshape(rows, heads // groups, groups * steps, width)
    wider = None if mask is None else mask.repeat(1, 1, groups, 1)
    return scaled_dot_product_attention(folded, keys, values, attn_mask=wider).reshape(rows, heads, steps, width)


def _turned(x: Tensor) -> Tensor:
    """The second half of the last axis, negated, before the first: what rotary positions add with the sine."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis, computed in float32."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)

"""The layers of a Llama for decoding: fused projections, adapters, attention over a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from arc_ttt.adapt.adapter import effective_weight
from arc_ttt.decode.kv_cache import Tensor


class _Layer:
    """One decoder layer as three functions and two norm weights."""

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


def fuse_linears(layer: Any, dtype: torch.dtype) -> _Layer | None:
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


def call_linear(layer: Any, dtype: torch.dtype) -> _Layer:
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


def masked_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
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


def rotate(x: Tensor) -> Tensor:
    """The second half of the last axis, negated, before the first: what rotary positions add with the sine."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis, computed in float32."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)

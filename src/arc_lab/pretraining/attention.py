"""Causal attention over packed rows: each sequence attends to itself only."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch

from arc_ttt.model.attention import attend_without_mask

ATTENTION = "causal_rows"
"""Name of this attention in a config of transformers."""


def without_waiting(llama: Any) -> None:
    """Let the forward pass run without waiting for the GPU, and accept packed rows."""
    attend_without_mask(llama, ATTENTION, causal_attention)


def causal_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    starts: torch.Tensor | None = None,
    longest: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Let every token attend to the tokens before it in its row or, with `starts`, in its sequence of a packed row.

    Args:
        module: the layer that asks.
        query: (B, H, T, D).
        key: (B, H, T, D).
        value: (B, H, T, D).
        attention_mask: not used.
        starts: (K,) int32 on the device: where the sequences of the packed row start, then T up to the end.
        longest: bound of the sequences' lengths, in tokens.
        kwargs: arguments for the attention of transformers, where rows are not packed.

    Returns:
        (B, T, H, D) and None, in place of the attention weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if starts is None:
        output, _ = sdpa_attention_forward(module, query, key, value, None, **kwargs)
        return output, None
    query, key, value = (each[0].transpose(0, 1).to(value.dtype) for each in (query, key, value))
    attend = _varlen if value.is_cuda else _one_by_one
    return attend(query, key, value, starts, longest)[None], None


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int
) -> torch.Tensor:
    """Attention within all sequences of a packed row (T, H, D) in one kernel; float16 and bfloat16 only."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, starts, starts, longest, longest, **VARLEN_CAUSAL)  # type: ignore[return-value]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it would be compiled for every new length
def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int
) -> torch.Tensor:
    """Attention within all sequences of a packed row (T, H, D), one by one, on any device."""
    output = torch.zeros_like(query)
    bounds = starts.unique().tolist()
    for start, stop in itertools.pairwise(bounds):
        q, k, v = (each[start:stop].transpose(0, 1)[None] for each in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        output[start:stop] = attended[0].transpose(0, 1)
    return output


def _varlen_causal() -> dict[str, Any]:
    """The argument that makes variable-length attention causal in this version of torch; empty if it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return {}
    return {"is_causal": True} if "is_causal" in inspect.signature(varlen_attn).parameters else {"window_size": (-1, 0)}


VARLEN_CAUSAL = _varlen_causal()
"""The arguments of causal variable-length attention; empty if this version of torch has none."""


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed rows train fast: variable-length attention needs compute capability 8 and a 16-bit type."""
    if device.type != "cuda" or not VARLEN_CAUSAL or dtype == torch.float32:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8

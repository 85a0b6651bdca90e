"""Causal attention over packed rows: each sequence sees only itself."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import torch

from arc_ttt.model.attention import attend_without_mask

ATTENTION = "causal_rows"


def without_waiting(llama: Any) -> None:
    """Let the forward pass ask the GPU nothing, and take packed rows too."""
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
    """Attention of every token to those before it in its row, or, with `starts`, in its sequence of a packed row.

    query, key, value: (B, H, T, D); returns (B, T, H, D). starts: (K,) int32 on the device, where the sequences of the
    one row start, then T as often as needed. longest: no sequence has more tokens.
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
    """All sequences of a packed row (T, H, D) in one kernel; float16 and bfloat16 only."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, starts, starts, longest, longest, **VARLEN_CAUSAL)  # type: ignore[return-value]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # else it is compiled for every new length
def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int
) -> torch.Tensor:
    """The same on any device, sequence by sequence."""
    output = torch.zeros_like(query)
    bounds = starts.unique().tolist()
    for start, stop in itertools.pairwise(bounds):
        q, k, v = (each[start:stop].transpose(0, 1)[None] for each in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        output[start:stop] = attended[0].transpose(0, 1)
    return output


def _varlen_causal() -> dict[str, Any]:
    """How this version of torch asks its variable-length attention to be causal; empty where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return {}
    return {"is_causal": True} if "is_causal" in inspect.signature(varlen_attn).parameters else {"window_size": (-1, 0)}


VARLEN_CAUSAL = _varlen_causal()


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed rows can be trained fast: variable-length attention needs compute capability 8 and 16 bits."""
    if device.type != "cuda" or not VARLEN_CAUSAL or dtype == torch.float32:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8

"""Attention of a Llama in training: grouped heads, no mask where none is needed, fixed rotary tables."""

from __future__ import annotations

from typing import Any

import torch

REPEATED = "causal_repeated"


def fused_groups(device: torch.device) -> bool:
    """Whether attention without a mask has a kernel that takes fewer key heads than query heads.

    Below compute capability 8 there is none that does: torch then writes out the weights of all pairs of tokens, 4 GB a
    layer for 8192 tokens and 32 heads. Keys and values must be repeated there.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 8


def repeat_groups(llama: Any) -> None:
    """Let a model with grouped key heads attend through `_repeated_attention`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(REPEATED, _repeated_attention)
    AttentionMaskInterface.register(REPEATED, lambda *_, **__: None)  # padding stands to the right: causal is enough
    llama.set_attn_implementation(REPEATED)


def _repeated_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention with keys and values repeated for every query head: (B, heads, T, D) to (B, T, heads, D)."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def hidden_states(llama: Any, ids: torch.Tensor, positions: torch.Tensor, **attention: Any) -> torch.Tensor:
    """Last hidden states (B, T, D) of right-padded sequences. ids, positions: (B, T).

    The mask of ones is not idle: without it, transformers would cut sequences at every jump of the positions. Padding
    stands to the right, where no real token sees it. attention: an argument for a custom attention function.
    """
    output = llama.model(
        input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False, **attention
    )
    hidden: torch.Tensor = output[0]
    return hidden


def attend_without_mask(llama: Any, name: str = "", attention: Any = None) -> None:
    """Let the forward pass ask the GPU nothing: plain causal attention, and rotary tables that do not look for the
    largest position. The stock code reads the mask (all ones) and the positions back to the host in every forward.

    Only for right-padded rows and for rotary frequencies that are the same for every length. attention: another causal
    attention in its place, registered with transformers under `name`.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface

    def causal(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    name = name or CAUSAL
    AttentionInterface.register(name, attention or causal)
    AttentionMaskInterface.register(name, lambda *_, **__: None)
    llama.set_attn_implementation(name)
    llama.model.rotary_emb.rope_type = "default"  # the tables are built; this only skips their update by length


CAUSAL = "causal_without_mask"


def rotary_is_fixed(llama: Any) -> bool:
    """Whether the frequencies are the same for every length: not those that grow with it, nor two different tables."""
    kind = getattr(llama.model.rotary_emb, "rope_type", "")
    tables = getattr(llama.config, "rope_parameters", None) or {}
    if kind == "longrope":
        return bool(tables.get("short_factor") == tables.get("long_factor"))
    return kind in ("default", "linear", "llama3", "yarn")

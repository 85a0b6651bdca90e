"""Measure the peak rate of a device's matrix products, and count the floating-point operations of a model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from arc_ttt.model.loaded import LoadedModel


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of one matrix product among a few sizes, in FLOP/s."""
    best = 0.0
    for size in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = best_of(lambda a=a, b=b: a @ b, device, 5)  # type: ignore[misc]
        best = max(best, 2 * size**3 / seconds)
    return best


def best_of(work: Callable[[], Any], device: torch.device, times: int) -> float:
    """The least seconds of `times` runs, after one run to warm up."""
    seconds = []
    for _ in range(times + 1):
        start_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start_s)
    return min(seconds[1:])


def flops_per_token(base: LoadedModel, length: float, targets: float = 0.0) -> float:
    """FLOP of training on one token: the products of linear layers and of causal attention that a step needs.

    A weight that trains costs 6: forward, gradient of its input, gradient of itself. A frozen weight, in 4 bits or not,
    costs 4, because the gradient only passes through it. (The first layer's projections cost 2 less where the embedding
    is frozen; this is ignored.) Attention costs 12 for each channel of the heads and each token attended to. Recomputed
    activations and the expansion of 4-bit weights are no useful work and do not count.

    Args:
        base: the model.
        length: tokens of the sequence in which a token stands, mean over tokens.
        targets: share of tokens that pass through the head.
    """
    config = base.llama.config
    linear: float = sum(
        (6 if layer.weight.requires_grad else 4)
        * layer.in_features
        * layer.out_features
        * (targets if "lm_head" in name else 1.0)
        for name, layer in base.llama.named_modules()
        if isinstance(layer, torch.nn.Linear)
    )
    channels: int = config.num_attention_heads * base.llama.model.layers[0].self_attn.head_dim
    attention: float = 12.0 * config.num_hidden_layers * channels * (length + 1) / 2
    return linear + attention

"""Stored 4-bit weights expanded without bitsandbytes: the way out where that library is missing or does not work.

The layout is the one bitsandbytes writes (its QuantState, as saved in safetensors files): beside `X.weight`, two values
a byte, stand `X.weight.absmax`, `.quant_map`, `.nested_absmax`, `.nested_quant_map` and a JSON text
`.quant_state.bitsandbytes__nf4` (or fp4). The numbers are exactly those of its own `dequantize_4bit` in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from arc_ttt.errors import ModelError

STATE = ".quant_state.bitsandbytes__"
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


def holds_four_bit(llama: Any) -> bool:
    """Whether any layer of a model has 4-bit weights of bitsandbytes."""
    return any(type(module).__name__ == "Linear4bit" for module in llama.modules())


def read_expanded(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All weights of a folder's safetensors files in `dtype`, 4-bit ones expanded, on the CPU.

    Raises:
        ModelError: a file is missing or damaged, or a 4-bit weight is not complete.
    """
    weights: dict[str, torch.Tensor] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no safetensors file")
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                names = set(file.keys())
                packed = {name.split(STATE)[0] for name in names if STATE in name}
                for name in sorted(names):
                    if name in packed:
                        parts = {n[len(name) :]: file.get_tensor(n) for n in names if n.startswith(f"{name}.")}
                        weights[name] = expand(file.get_tensor(name), parts).to(dtype)
                    elif STATE not in name and not name.endswith(PARTS):
                        weights[name] = file.get_tensor(name).to(dtype)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ModelError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error
    return weights


def expand(packed: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One weight in float32, in its own shape.

    Args:
        packed: bytes, the first value in the high half.
        parts: the tensors beside it, by the end of their names.

    Raises:
        KeyError: a part is missing. ValueError: the state is not JSON. RuntimeError: sizes do not fit each other.
    """
    state_name = next((name for name in parts if name.startswith(STATE)), STATE)
    state: dict[str, Any] = json.loads(bytes(parts[state_name].tolist()))
    scale = parts[".absmax"]
    if ".nested_absmax" in parts:
        coarse = parts[".nested_absmax"].repeat_interleave(int(state["nested_blocksize"]))[: scale.numel()]
        scale = parts[".nested_quant_map"][scale.long()] * coarse + state["nested_offset"]
    levels = parts[".quant_map"].float()
    flat = packed.reshape(-1).view(torch.uint8)
    values = torch.stack((levels[(flat >> 4).long()], levels[(flat & 15).long()]), dim=1).reshape(-1)
    count = torch.Size(state["shape"]).numel()
    scales = scale.float().repeat_interleave(int(state["blocksize"]))[:count]
    return (values[:count] * scales).reshape(state["shape"])


def expand_weights(llama: Any) -> None:
    """Replace every 4-bit layer by a plain one with exactly the values that the 4 bits stand for."""
    from bitsandbytes.functional import dequantize_4bit

    for module in list(llama.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ != "Linear4bit":
                continue
            plain = torch.nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
            weight = dequantize_4bit(child.weight.data, child.weight.quant_state)
            plain.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
            if child.bias is not None:
                plain.bias = torch.nn.Parameter(child.bias.detach().float(), requires_grad=False)
            setattr(module, name, plain)
    llama.is_loaded_in_4bit = False
    llama.is_quantized = False
    llama.config.__dict__.pop("quantization_config", None)


def disarm_repacking(llama: Any) -> None:
    """Keep 4-bit layers from repacking their weights on CPUs with bfloat16 instructions (wrong gradients after it)."""
    for module in llama.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def compute_in(llama: Any, dtype: torch.dtype) -> None:
    """Let 4-bit layers multiply in `dtype`; a checkpoint stores its own, which may be one that this device emulates."""
    for module in llama.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype = dtype
            state = getattr(module.weight, "quant_state", None)
            if state is not None and module.weight.device.type == "cuda":
                state.dtype = dtype  # of the expanded weight in the backward pass

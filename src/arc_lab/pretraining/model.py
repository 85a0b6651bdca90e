"""Make, load, compile and save the models of pretraining."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from arc_lab.folders import part_of, replace_folder
from arc_lab.pretraining.attention import without_waiting
from arc_lab.pretraining.card import add_weights_card, check_weights
from arc_lab.pretraining.settings import PRESETS, Preset
from arc_ttt.checkpoints.folders import model_folder, read_config
from arc_ttt.errors import InputError
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.model.cuda import compute_dtype
from arc_ttt.model.load import load_model, random_llama
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import ModelSettings

SHARD = "14MB"
"""Largest file of weights."""


def size_of(folder: Path) -> str:
    """The preset whose learning rates and batches suit a checkpoint: the widest that is not wider than it.

    Raises:
        ModelError: the folder holds no Llama.
    """
    hidden = int(read_config(folder).get("hidden_size", 0))
    fitting = [name for name, preset in PRESETS.items() if preset.hidden <= hidden]
    return max(fitting, key=lambda name: PRESETS[name].hidden, default="XS")


def rotary_frequencies(head_size: int) -> list[float]:
    """Angle of each rotated pair for one step of the position, in radians; a position is 4096 grid + 64 row + column.

    Pairs for columns turn by multiples of 1/64 of a circle, so that rows and grids are whole turns; pairs for rows by
    multiples of 1/4096; pairs for grids by multiples of 1/262144. Source: ours.

    Raises:
        InputError: the head size is neither 32 nor 64.
    """
    column = {16: (1, 2, 3, 5, 8, 10), 32: (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12)}.get(head_size // 2)
    if column is None or head_size % 2:
        raise InputError(f"no rotary table for heads of {head_size}; use 32 or 64")
    grid = (1, 2, 4, 10) if head_size == 32 else tuple(range(1, 11))
    turns = [k / 64 for k in column] + [k / 4096 for k in column] + [k / 262_144 for k in grid]
    return [2 * math.pi * turn for turn in turns]


def rope_parameters(kind: str, head_size: int) -> dict[str, Any]:
    """The `rope_parameters` of a config.

    Args:
        kind: longrope for a stock table that can hold any frequencies, here those of `rotary_frequencies`; strided for
            plain rotary positions of long period. Both use the strided positions.
        head_size: width of an attention head.
    """
    if kind == "strided":
        return {"rope_type": "default", "rope_theta": 300_000.0}
    theta = 10_000.0
    frequencies = rotary_frequencies(head_size)
    factors = [1 / (f * theta ** (2 * i / head_size)) for i, f in enumerate(frequencies)]
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": 1 << 20,
        "attention_factor": 1.0,
        "factor": 1.0,
    }


def new_llama(preset: Preset, rope: str, seed: int) -> Any:
    """A fresh LlamaForCausalLM in float32, which the seed determines; residual branches start small."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=CompactFormat().vocabulary,
        hidden_size=preset.hidden,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads,
        head_dim=preset.head_size,
        intermediate_size=preset.feed_forward,
        max_position_embeddings=1 << 20,
        rope_parameters=rope_parameters(rope, preset.head_size),
        tie_word_embeddings=False,
        pad_token_id=CompactFormat.PAD,
        bos_token_id=CompactFormat.IN,
        eos_token_id=CompactFormat.END,
    )
    return random_llama(config, seed)


def training_model(
    preset: Preset, rope: str, seed: int, init: str | None, dtype_name: str, device: torch.device
) -> LoadedModel:
    """A model with all weights trainable in float32.

    Args:
        preset: size of a fresh model.
        rope: rotary positions of a fresh model.
        seed: seed of a fresh model.
        init: folder of a checkpoint to load instead, or embedded-XS or embedded-M.
        dtype_name: compute type, as in `model.dtype`.
        device: the device.

    Raises:
        ModelError: `init` is no checkpoint of the compact format, or its weights differ from those that its card names.
    """
    dtype = compute_dtype(dtype_name, device)
    if init:
        check_weights(model_folder(init))
        settings = ModelSettings(path=init, quantize="none", dequantize="always", dtype="float32")
        base = load_model(settings, device)
        llama = base.llama
    else:
        llama = new_llama(preset, rope, seed).to(device)
    llama.requires_grad_(True).train()
    torch.set_float32_matmul_precision("highest")
    parameters = sum(weight.numel() for weight in llama.parameters())
    base = LoadedModel(llama, CompactFormat(), device, dtype, False, parameters)
    without_waiting(llama)
    return base


def compile_layers(llama: Any, shapes: int) -> None:
    """Compile every layer in place, for this number of fixed shapes."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(8, 4 * shapes)
    for layer in llama.model.layers:
        layer.compile(dynamic=False)


def save_model(llama: Any, folder: Path, dtype: torch.dtype, card: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write a stock checkpoint in shards of at most SHARD, in place of an older one.

    Args:
        llama: the model.
        folder: the folder.
        dtype: type of the written weights.
        card: the card of the training.

    Returns:
        The card beside the weights: `card` with their hashes.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    state = {name: weight.detach().to(dtype).cpu().contiguous() for name, weight in llama.state_dict().items()}
    settings = llama.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        clean = LlamaForCausalLM(LlamaConfig.from_dict(settings)).to(dtype)
    clean.load_state_dict(state, assign=True)
    clean.config.dtype = dtype
    beside = part_of(folder)
    clean.save_pretrained(beside, max_shard_size=SHARD)
    stamped = add_weights_card(beside, card or {})
    replace_folder(beside, folder)
    return stamped

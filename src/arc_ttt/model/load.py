"""Load a Llama: the embedded one or a mounted folder, in 4 or 16 bits, on a CPU or one GPU.

Traps kept here, each guarded by a test:
- Without an attention mask, transformers takes jumps in position ids for packed sequences and cuts the rows of a grid
  apart. `hidden_states` always passes one.
- On CPUs with bfloat16 instructions bitsandbytes repacks 4-bit weights in the first forward without gradients, and
  gradients after it are wrong. `disarm_repacking` switches that off.
- TF32 would round position angles above 2048; float32 matrix products stay exact.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from arc_ttt.checkpoints.checkpoint import Checkpoint
from arc_ttt.checkpoints.shape import SMALL_PARAMETERS
from arc_ttt.errors import ModelError
from arc_ttt.model.attention import fused_groups, repeat_groups
from arc_ttt.model.cuda import compute_dtype
from arc_ttt.model.four_bit import compute_in, disarm_repacking, expand_weights, holds_four_bit, read_expanded
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.model.tokenizer import format_of
from arc_ttt.model.unsloth import Unsloth
from arc_ttt.settings import ModelSettings


def load_model(settings: ModelSettings, device: torch.device, *, seed: int = 0) -> LoadedModel:
    """Load the checkpoint that `settings` name onto `device`, in eval mode, without gradients.

    Raises:
        ModelError: the folder is missing or no Llama, weights are missing, or its tokenizer cannot write the format.
    """
    checkpoint = Checkpoint.of_path(settings.path, gpu=device.type == "cuda")
    folder = checkpoint.folder
    dtype = compute_dtype(settings.dtype, device)
    if settings.backend == "unsloth":
        return _load_with_unsloth(folder, settings, device, dtype)
    _quiet()
    if settings.random_start:
        llama = random_llama(_plain_config(folder), seed).to(device=device)
    else:
        llama = _from_folder(checkpoint, settings, device, dtype)
    llama.eval().requires_grad_(False)
    parameters = _count_parameters(llama)
    four_bit = holds_four_bit(llama)
    expand = settings.dequantize == "always" or (settings.dequantize == "auto" and parameters < SMALL_PARAMETERS)
    if four_bit and expand:
        expand_weights(llama)
        four_bit = False
    if not four_bit and (device.type == "cpu" or parameters < SMALL_PARAMETERS):
        llama.float()
    if device.type == "cuda" and parameters >= SMALL_PARAMETERS:  # long sequences of a large model fit no other way
        llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not fused_groups(device) and llama.config.num_key_value_heads != llama.config.num_attention_heads:
        repeat_groups(llama)
    disarm_repacking(llama)
    compute_in(llama, dtype)
    torch.set_float32_matmul_precision("highest")
    form = format_of(settings.format, folder, llama.config)
    return LoadedModel(llama, form, device, dtype, four_bit, parameters, record=settings.record)


def _from_folder(checkpoint: Checkpoint, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> Any:
    """The checkpoint with weights as stored (4-bit) or quantized while loading."""
    folder, stored = checkpoint.folder, checkpoint.config.get("quantization_config")
    if stored and settings.quantize == "none":
        return _from_expanded(folder, dtype).to(device=device)
    quantization: Any = None
    if not stored and settings.quantize == "nf4":
        # transformers 5.0 moves all 16-bit weights to the GPU faster than it quantizes them: an 8B would not fit a T4
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    if stored or settings.quantize == "nf4":
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=(stored or {}).get("bnb_4bit_quant_type", "nf4"),
            bnb_4bit_use_double_quant=(stored or {}).get("bnb_4bit_use_double_quant", True),
            bnb_4bit_compute_dtype=dtype,
        )
    from transformers import LlamaForCausalLM

    extra = {"quantization_config": quantization} if quantization is not None else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            llama, report = LlamaForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
                **extra,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {error}") from error
    _refuse_missing(report, folder)
    return llama


def _from_expanded(folder: Path, dtype: torch.dtype) -> Any:
    """A checkpoint stored in 4 bits, with its weights expanded to `dtype` by our own reader: needs no bitsandbytes."""
    from transformers import LlamaForCausalLM

    config, weights = _plain_config(folder), read_expanded(folder, dtype)
    llama, report = LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
    )
    _refuse_missing(report, folder)
    return llama


def _plain_config(folder: Path) -> Any:
    """The transformers config of a folder, without its quantization."""
    from transformers import LlamaConfig

    config = LlamaConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _refuse_missing(report: dict[str, Any], folder: Path) -> None:
    """Raises ModelError if a load left weights of the model at random values."""
    if missing := sorted(report.get("missing_keys") or ()):
        raise ModelError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")


def _load_with_unsloth(folder: Path, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """The checkpoint in the hands of unsloth; its classes are put back if that fails.

    Raises:
        ModelError: the format has no tokenizer files, or unsloth fails.
    """
    if settings.format == "compact" or settings.random_start:
        raise ModelError("unsloth is for mounted checkpoints with a tokenizer: not for format compact or random starts")
    unsloth = Unsloth()
    _quiet()
    from transformers import LlamaConfig

    config = LlamaConfig.from_pretrained(folder, local_files_only=True)
    form = format_of(settings.format, folder, config)
    quantize = settings.quantize == "nf4"
    try:
        llama = unsloth.load(folder, config, max_tokens=settings.max_tokens, dtype=dtype, four_bit=quantize)
    except ModelError:
        unsloth.patches.undo()
        raise
    llama.eval().requires_grad_(False)
    four_bit = holds_four_bit(llama)
    disarm_repacking(llama)
    compute_in(llama, dtype)
    torch.set_float32_matmul_precision("highest")
    rotary = unsloth.rotary.to(device)
    return LoadedModel(llama, form, device, dtype, four_bit, _count_parameters(llama), unsloth, rotary)


def random_llama(config: Any, seed: int) -> Any:
    """A Llama with random weights in float32, equal for equal seeds. Residual branches start small."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llama = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in llama.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    return llama.float()


def _count_parameters(llama: Any) -> int:
    """Weights of the model; a 4-bit byte holds two."""
    count = 0
    for weight in llama.parameters():
        packed = type(weight).__name__ == "Params4bit" and weight.dtype == torch.uint8
        count += weight.numel() * (2 if packed else 1)
    return count


def _quiet() -> None:
    """No progress bars or advice from libraries in the middle of our own output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()

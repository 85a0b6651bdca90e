"""The models that pretraining makes: presets, 2-D rotary positions, Muon, and the way they are saved."""

from __future__ import annotations

import inspect
import itertools
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arc_lab.pretraining.card import add_weights_card, check_weights
from arc_ttt.checkpoints.folders import model_folder, read_config
from arc_ttt.errors import InputError
from arc_ttt.formats.format import CompactFormat
from arc_ttt.model.load import LoadedModel, attend_without_mask, compute_dtype, cpu_has_bfloat16, load_model
from arc_ttt.settings import ModelSettings

SHARD = "14MB"
ROPES = ("longrope", "strided")
ATTENTION = "causal_rows"


@dataclass(frozen=True, slots=True)
class Preset:
    """A size of model, and what it is trained with by default.

    Longest sequence and batch in tokens; learning rates of Muon and AdamW; window of sequences sorted by length and
    how many windows are made ahead.
    """

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    max_tokens: int
    batch_tokens: int
    muon_lr: float
    adam_lr: float
    window_sequences: int
    windows_ahead: int

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


PRESETS = {
    "XS": Preset(192, 6, 6, 512, 640, 4096, 0.02, 4e-3, 384, 3),  # 2.7M parameters
    "S": Preset(256, 8, 4, 640, 1024, 6144, 0.02, 3e-3, 512, 3),  # 6.0M
    "M": Preset(512, 10, 8, 1024, 4096, 65_536, 0.015, 2e-3, 2048, 24),  # 26M
}


def size_of(folder: Path) -> str:
    """The preset whose learning rates and batches suit the checkpoint in `folder`: the largest that is not wider.

    Raises:
        ModelError: there is no Llama in the folder.
    """
    hidden = int(read_config(folder).get("hidden_size", 0))
    fitting = [name for name, preset in PRESETS.items() if preset.hidden <= hidden]
    return max(fitting, key=lambda name: PRESETS[name].hidden, default="XS")


def rotary_frequencies(head_size: int) -> list[float]:
    """Angle of each rotated pair for one step of the position, radians, for positions 4096 grid + 64 row + column.

    Columns turn by multiples of 1/64, so that rows and grids are whole turns; rows by multiples of 1/4096; grids by
    multiples of 1/262144. Raises InputError for a head size other than 32 and 64.
    """
    column = {16: (1, 2, 3, 5, 8, 10), 32: (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12)}.get(head_size // 2)
    if column is None or head_size % 2:
        raise InputError(f"no rotary table for heads of {head_size}; use 32 or 64")
    grid = (1, 2, 4, 10) if head_size == 32 else tuple(range(1, 11))
    turns = [k / 64 for k in column] + [k / 4096 for k in column] + [k / 262_144 for k in grid]
    return [2 * math.pi * turn for turn in turns]


def rope_parameters(kind: str, head_size: int) -> dict[str, Any]:
    """The `rope_parameters` of a config: a stock table of any frequencies (longrope), or plain rotary positions of long
    period on the same strided positions."""
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
    """A fresh LlamaForCausalLM in float32, the same for a seed; residual branches start small."""
    from transformers import LlamaConfig, LlamaForCausalLM

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llama = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in llama.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_((2 * preset.layers) ** -0.5)
    return llama.float()


def training_model(
    preset: Preset, rope: str, seed: int, init: str | None, dtype_name: str, device: torch.device
) -> LoadedModel:
    """A fresh model, or the one in folder `init` (or embedded-XS, embedded-M), all weights trainable float32.

    Raises:
        ModelError: `init` is no checkpoint of the compact format, or its weights are not those that its card names.
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


def compile_layers(llama: Any, shapes: int) -> None:
    """Compile every layer in place, for as many fixed shapes as there are."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(8, 4 * shapes)
    for layer in llama.model.layers:
        layer.compile(dynamic=False)


def matrices(llama: Any) -> list[torch.nn.Parameter]:
    """The weights of the linear layers inside the blocks: what Muon trains."""
    return [weight for name, weight in llama.named_parameters() if ".layers." in name and weight.ndim == 2]


def others(llama: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Embedding, head and norms by name: what AdamW trains."""
    return [(n, w) for n, w in llama.named_parameters() if not (".layers." in n and w.ndim == 2)]


def orthogonalized(update: torch.Tensor) -> torch.Tensor:
    """Matrices (N, A, B) with singular values near 1, by five Newton-Schulz steps in the type of `update`.

    Source: Jordan's Muon; coefficients and steps as in torch.optim.Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon (momentum 0.95, Nesterov, decoupled decay), matrices of one shape together.

    torch's own computes in bfloat16 everywhere; here that is so only where the device multiplies it in hardware,
    because CPUs that emulate it would spend most of a step on the optimizer.
    """

    MOMENTUM = 0.95

    def __init__(self, weights: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(list(weights), {"lr": lr, "weight_decay": weight_decay})
        self.shapes: dict[tuple[int, int], list[torch.Tensor]] = {}
        for weight in self.param_groups[0]["params"]:
            self.shapes.setdefault((weight.shape[0], weight.shape[1]), []).append(weight)
        self.momentum = {
            shape: torch.zeros((len(same), *shape), device=same[0].device) for shape, same in self.shapes.items()
        }
        fast = next(iter(self.momentum.values())).is_cuda or cpu_has_bfloat16()
        self.dtype = torch.bfloat16 if fast else torch.float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for shape, weights in self.shapes.items():
            gradients = torch.stack([w.grad for w in weights if w.grad is not None])
            momentum = self.momentum[shape].lerp_(gradients, 1 - self.MOMENTUM)
            update = orthogonalized(gradients.lerp_(momentum, self.MOMENTUM).to(self.dtype)).float()
            torch._foreach_mul_(weights, 1 - lr * decay)
            torch._foreach_add_(weights, list(update), alpha=-lr * max(1.0, shape[0] / shape[1]) ** 0.5)


def save_model(llama: Any, folder: Path, dtype: torch.dtype, card: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write a stock checkpoint in shards of at most 14 MB, replacing an older one in `folder`.

    Returns its card, which stands beside the weights: `card` with their hashes.
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


def part_of(folder: Path) -> Path:
    """Where a new `folder` is made beside the old one; nothing is there now."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    return beside


def replace_folder(beside: Path, folder: Path) -> None:
    """Put `beside` in the place of `folder`. Interrupted at any moment, one of them is whole and none is half."""
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    beside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Bring back what an interruption within `replace_folder` has left under another name."""
    if _old(folder).exists() and not folder.exists():
        _old(folder).replace(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")

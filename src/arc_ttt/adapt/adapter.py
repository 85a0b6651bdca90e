"""Adapter: what test-time training changes. LoRA through peft, or all weights of a small model.

`reset` brings back the fresh adapter bit for bit, so that one loaded model serves all tasks one after another.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from arc_ttt.checkpoints.shape import SMALL_PARAMETERS
from arc_ttt.errors import ModelError
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import TttSettings


class Adapter:
    """The trainable part of a model.

    trainable: its parameters by name, float32. Everything else of the model has no gradients and never moves.
    """

    def __init__(self, base: LoadedModel, settings: TttSettings, *, seed: int) -> None:
        """Attach to `base`. At the start the model computes exactly what the base computes.

        Raises:
            ModelError: `ttt.adapter=full` on a model with 4-bit weights.
        """
        llama = base.llama
        if settings.adapter == "full":
            if base.four_bit:
                raise ModelError("ttt.adapter=full needs plain weights: set model.dequantize=always, or use lora")
            llama.requires_grad_(True)
            llama.float()
        else:
            _attach_lora(base, settings, seed)
            if base.device.type == "cuda" and base.autocast:
                narrow(llama, base.dtype)
        self.trainable = {name: weight for name, weight in llama.named_parameters() if weight.requires_grad}
        self._on_host = base.parameters >= SMALL_PARAMETERS
        self._base = self._copy()
        self._fresh = self._base

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.trainable.values())

    @torch.no_grad()
    def reset(self, *, to_base: bool = False) -> None:
        """Bring every trainable weight back to its fresh value, bit for bit, and drop gradients.

        to_base: to the value of the untrained model, also after a joint stage.
        """
        source = self._base if to_base else self._fresh
        for name, weight in self.trainable.items():
            weight.copy_(source[name])
            weight.grad = None

    def rebase(self) -> None:
        """Make the present weights the fresh ones: later resets return here (after a joint stage)."""
        self._fresh = self._copy()

    def _copy(self) -> dict[str, torch.Tensor]:
        """The present weights; those of a large model's adapter, a gigabyte, in host memory."""
        device = "cpu" if self._on_host else None
        return {name: weight.detach().to(device=device, copy=True) for name, weight in self.trainable.items()}

    def save(self, path: Path) -> None:
        """Write the weights as safetensors, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        save_file({name: weight.detach().cpu().contiguous() for name, weight in self.trainable.items()}, beside)
        beside.replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Read weights that `save` wrote.

        Raises:
            ModelError: the file is missing, damaged, or of another adapter.
        """
        try:
            stored = load_file(path)
        except Exception as error:  # the library raises its own and OSErrors
            raise ModelError(f"{path}: cannot be read as an adapter: {error}") from error
        if stored.keys() != self.trainable.keys():
            raise ModelError(f"{path}: holds another adapter ({len(stored)} weights, {len(self.trainable)} wanted)")
        for name, weight in self.trainable.items():
            if stored[name].shape != weight.shape:
                raise ModelError(f"{path}: {name} is {tuple(stored[name].shape)}, {tuple(weight.shape)} wanted")
        for name, weight in self.trainable.items():
            weight.copy_(stored[name])


def _attach_lora(base: LoadedModel, settings: TttSettings, seed: int) -> None:
    _hide_what_breaks_peft()
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rslora,
        target_modules=list(settings.targets),
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        if base.unsloth is not None:
            base.unsloth.attach(settings, seed=seed)
        else:
            inject_adapter_in_model(config, base.llama)
    for name, weight in base.llama.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()


def _hide_what_breaks_peft() -> None:
    """Let peft not see packages that it would ask about a layer and that do not work here. No layer here is theirs.

    It imports bitsandbytes wherever that is installed, and raises an ImportError at every plain layer where torchao is
    older than it wants, as on Kaggle's image.
    """
    try:
        if importlib.util.find_spec("bitsandbytes") is not None:
            importlib.import_module("bitsandbytes")
    except Exception:  # whatever its libraries raise
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    from peft import import_utils

    asked = getattr(import_utils, "is_torchao_available", bool)
    try:
        asked()
    except ImportError:
        for name, module in list(sys.modules.items()):
            if name.startswith("peft.") and getattr(module, "is_torchao_available", None) is asked:
                module.is_torchao_available = bool  # type: ignore[attr-defined]  # which says no


def narrow(llama: Any, dtype: torch.dtype) -> None:
    """Hold the frozen weights of plain linear layers in the compute type.

    Autocast rounds a float32 weight to that very type in every call, so training computes the same numbers without the
    copies. Embeddings, head, norms and the adapter stay in float32, and with them the sums between layers.
    """
    for name, module in llama.named_modules():
        if type(module) is torch.nn.Linear and "lora_" not in name and not name.endswith("lm_head"):
            module.to(dtype)


def effective_weight(linear: Any) -> torch.Tensor | None:
    """The weight (out, in) that a plain or LoRA layer amounts to now; None for a layer with packed or other weights."""
    if type(linear) is torch.nn.Linear:
        return linear.weight.detach()
    inner = getattr(linear, "base_layer", None)
    if type(inner) is torch.nn.Linear and hasattr(linear, "get_delta_weight"):
        delta: torch.Tensor = linear.get_delta_weight("default").detach()
        return inner.weight.detach().float() + delta.float()
    return None

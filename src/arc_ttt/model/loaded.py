"""A loaded model, with its format and what its device can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from arc_ttt.checkpoints.shape import SMALL_PARAMETERS
from arc_ttt.formats.format import Format
from arc_ttt.model.attention import rotary_is_fixed
from arc_ttt.model.unsloth import Unsloth

SMALL_VOCABULARY = 1024


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A Llama ready to run, its format, and where it runs.

    Args:
        llama: the transformers LlamaForCausalLM; adapters replace its layers in place.
        dtype: compute type.
        four_bit: its linear layers hold 4-bit weights now (False once expanded).
        parameters: number of weights.
        unsloth: the backend that loaded it, if not transformers.
        rotary: the rotary embedding for decoding where the model's own is another's.
        record: whether CUDA graphs may be used; what fails to make one sets it to False.
    """

    llama: Any
    form: Format
    device: torch.device
    dtype: torch.dtype
    four_bit: bool
    parameters: int
    unsloth: Unsloth | None = None
    rotary: Any = None
    record: bool = True

    @property
    def autocast(self) -> bool:
        """Whether training computes in a 16-bit type while adapters stay in float32."""
        return self.dtype != torch.float32

    @property
    def can_record(self) -> bool:
        """Whether whole training steps may be recorded as CUDA graphs: a small plain model with a small vocabulary."""
        small = self.parameters < SMALL_PARAMETERS and self.llama.config.vocab_size <= SMALL_VOCABULARY
        able = self.device.type == "cuda" and not self.four_bit and self.unsloth is None
        return self.record and able and small and rotary_is_fixed(self.llama)

    def training(self) -> None:
        """Switch to training mode."""
        if self.unsloth is not None:
            self.unsloth.training()
        else:
            self.llama.train()

    def inference(self) -> None:
        """Switch to inference mode. The weights stay as they are, with or without gradients."""
        if self.unsloth is not None:
            self.unsloth.inference()
        self.llama.eval()

"""Presets: settings by the size of the model and the kind of device."""

from __future__ import annotations

from typing import Any

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LLAMA = {
    "ttt.augment": "paper",
    "ttt.first_output_loss": False,
    "ttt.max_sequences": 250,
    "ttt.max_sequence_tokens": 8192,
    "ttt.epochs": 2,
    "ttt.batch_sequences": 2,
    "ttt.rank": 128,
    "ttt.alpha": 16.0,
    "ttt.rslora": False,
    "ttt.targets": ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
    "ttt.learning_rate": 5e-5,
    "ttt.warmup_fraction": 0.1,
    "ttt.weight_decay": 0.01,
    "ttt.schedule": "cosine",
    "ttt.micro_batch_tokens": 0,
    "decode.base_share": 0.2,
    "decode.batch_views": 8,
}
PRESETS: dict[str, dict[str, Any]] = {
    "embedded": {},
    "embedded-gpu": {"ttt.max_sequence_tokens": 4096},  # size M has seen sequences as long as that
    # The paper, section 3 and its table of hyper-parameters.
    "llama-1b": {**_LLAMA, "model.format": "architects"},
    "llama-3b": {**_LLAMA, "model.format": "architects"},
    "llama-1b-3b": {**_LLAMA, "model.format": "architects"},
    "llama-8b": {
        **_LLAMA,
        "model.format": "marc",
        "ttt.targets": (*_LLAMA["ttt.targets"], "lm_head"),  # type: ignore[misc]
        "ttt.learning_rate": 1e-4,
        "decode.batch_views": 4,
        "decode.base_share": 0.3,
        "vote.scoring_views": 4,
    },
}
DEVICE_PRESETS: dict[str, dict[str, Any]] = {
    # Compute capability below 8: no bfloat16 in hardware. Adapters stay in float32 under a loss scaler that starts low,
    # for from torch's 65536 it would pass over the first steps. Attention is torch's own: flash attention 2 needs 8.
    "t4": {"model.dtype": "float16"},
    # 8 and above: bfloat16, no loss scaler.
    "l4": {"model.dtype": "bfloat16"},
}


def device_preset(capability: tuple[int, int]) -> str:
    """The device preset for a CUDA compute capability."""
    return "l4" if capability >= (8, 0) else "t4"

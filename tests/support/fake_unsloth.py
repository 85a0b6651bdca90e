"""A stand-in for the unsloth package, with the behaviour that its users see.

What it copies from unsloth 2025.9 to 2026.10: the signatures; a tokenizer is loaded beside the model; classes and
methods of transformers' Llama are replaced at the first load, for the whole process; sequences are cut at
`max_seq_length`; in training the attention mask is dropped; the rotary embedding returns its first rows whatever
positions it is asked for; adapters go through peft's causal model, and embeddings and head named as targets are trained
whole; the mode switches set flags on every module of the chain.

fault: "" or how a load or an adapter goes wrong.
"""

from __future__ import annotations

import types
from typing import Any

import torch


class FakeUnsloth:
    """The module: `FastLanguageModel` and what was called with which arguments."""

    def __init__(self, fault: str = "", *, older: bool = False) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fault = fault
        self.FastLanguageModel = _make(self, older)


def _make(fake: FakeUnsloth, older: bool) -> Any:
    class FastLanguageModel:
        @staticmethod
        def from_pretrained(
            model_name: str = "unsloth/Llama-3.2-1B-Instruct",
            max_seq_length: int = 2048,
            dtype: torch.dtype | None = None,
            load_in_4bit: bool = True,
            fix_tokenizer: bool = True,
            use_gradient_checkpointing: Any = "unsloth",
            offload_embedding: Any = "auto",
            fast_inference: bool = False,
            **kwargs: Any,
        ) -> tuple[Any, Any]:
            fake.calls.append(("from_pretrained", {**locals(), "kwargs": kwargs}))
            assert kwargs.keys() <= {"local_files_only"}, "the rest would reach transformers, which refuses it"
            return _load(fake, model_name, max_seq_length, dtype, load_in_4bit)

        @staticmethod
        def get_peft_model(
            model: Any,
            r: int = 16,
            target_modules: Any = (),
            lora_alpha: float = 16,
            lora_dropout: float = 0.0,
            bias: str = "none",
            use_gradient_checkpointing: Any = "unsloth",
            random_state: int = 3407,
            use_rslora: bool = False,
        ) -> Any:
            fake.calls.append(("get_peft_model", {**locals(), "model": None}))
            return _attach(fake, model, r, list(target_modules), lora_alpha, use_rslora, random_state)

        @staticmethod
        def for_training(model: Any, use_gradient_checkpointing: Any = True) -> Any:
            fake.calls.append(("for_training", {}))
            for module in _chain(model):
                module.__dict__.pop("_flag_for_generation", None)
            return model.train()

        @staticmethod
        def for_inference(model: Any) -> Any:
            fake.calls.append(("for_inference", {}))
            for module in _chain(model):
                module._flag_for_generation = True
            return model.eval()

    if older:  # before embeddings could be moved to the host
        newer = FastLanguageModel.from_pretrained

        def from_pretrained(
            model_name: str = "",
            max_seq_length: int = 2048,
            dtype: torch.dtype | None = None,
            load_in_4bit: bool = True,
            fix_tokenizer: bool = True,
            use_gradient_checkpointing: Any = "unsloth",
            **kwargs: Any,
        ) -> tuple[Any, Any]:
            return newer(model_name, max_seq_length, dtype, load_in_4bit, fix_tokenizer, **kwargs)

        FastLanguageModel.from_pretrained = staticmethod(from_pretrained)  # type: ignore[assignment,method-assign]
    return FastLanguageModel


def _load(fake: FakeUnsloth, name: str, max_seq_length: int, dtype: Any, four_bit: bool) -> tuple[Any, Any]:
    from tokenizers import Tokenizer
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    tokenizer = Tokenizer.from_file(f"{name}/tokenizer.json")
    _patch(fake)
    if fake.fault == "load":
        raise RuntimeError("Unsloth: No or negligible GPU memory available.\nPlease file a bug report!")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    extra = {"quantization_config": quantization} if four_bit else {}
    llama = LlamaForCausalLM.from_pretrained(name, dtype=dtype, local_files_only=True, **extra)
    if fake.fault == "vocabulary":  # what it does with a tokenizer without a padding token
        llama.resize_token_embeddings(llama.config.vocab_size + 1)
    for module in llama.modules():
        module.max_seq_length = max_seq_length
    return llama, tokenizer


def _patch(fake: FakeUnsloth) -> None:
    from transformers.models.llama import modeling_llama

    stock = modeling_llama.LlamaRotaryEmbedding
    forward = modeling_llama.LlamaModel.forward

    class LlamaRotaryEmbedding(stock):  # type: ignore[misc,valid-type]
        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first = torch.arange(position_ids.shape[1], device=x.device)[None]
            return stock.forward(self, x, first)  # type: ignore[no-any-return]

    def fast_forward(
        self: Any, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any
    ) -> Any:
        cut = slice(self.max_seq_length)
        mask = None if self.training else attention_mask[:, cut]
        return forward(
            self, input_ids=input_ids[:, cut], attention_mask=mask, position_ids=position_ids[:, cut], **kwargs
        )

    modeling_llama.LlamaRotaryEmbedding = LlamaRotaryEmbedding  # type: ignore[misc]
    modeling_llama.LlamaModel.forward = fast_forward  # type: ignore[method-assign]
    modeling_llama.LlamaModel._left_by_unsloth = True


def _attach(
    fake: FakeUnsloth, model: Any, rank: int, targets: list[str], alpha: float, rslora: bool, random_state: int
) -> Any:
    from peft import LoraConfig, get_peft_model

    if not 0 <= random_state < 2**32:
        raise ValueError("Seed must be between 0 and 2**32 - 1")
    if fake.fault == "attach":
        raise TypeError("Unsloth: Rank must be an integer.")
    whole = [name for name in targets if name in ("lm_head", "embed_tokens")]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        target_modules=[name for name in targets if name not in whole],
        modules_to_save=whole or None,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    for layer in model.model.layers:
        layer.mlp.forward = types.MethodType(_idle if fake.fault == "idle" else _fused, layer.mlp)
    return peft_model


def _fused(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    return product


def _idle(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    """A kernel that passes the adapter over."""
    gate, up, down = (getattr(m, "base_layer", m) for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    product: torch.Tensor = down(mlp.act_fn(gate(x)) * up(x))
    return product


def _chain(model: Any) -> list[Any]:
    chain = [model]
    while hasattr(chain[-1], "model"):
        chain.append(chain[-1].model)
    return chain

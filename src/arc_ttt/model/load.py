"""Load a Llama: the embedded one or a mounted folder, in 4 or 16 bits, on a CPU or one GPU.

Traps kept here, each guarded by a test:
- Without an attention mask, transformers takes jumps in position ids for packed sequences and cuts the rows of a grid
  apart. `hidden_states` always passes one.
- On CPUs with bfloat16 instructions bitsandbytes repacks 4-bit weights in the first forward without gradients, and
  gradients after it are wrong. `_disarm_repacking` switches that off.
- TF32 would round position angles above 2048; float32 matrix products stay exact.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from arc_ttt.checkpoints.folders import model_folder, read_config
from arc_ttt.checkpoints.memory_plan import SMALL_PARAMETERS
from arc_ttt.errors import ModelError
from arc_ttt.formats.format import CompactFormat, Format
from arc_ttt.formats.text import ArchitectsFormat, BarcFormat, MarcFormat
from arc_ttt.model.four_bit import read_expanded
from arc_ttt.model.unsloth import Unsloth
from arc_ttt.settings import DEVICE_PRESETS, ModelSettings, device_preset

SMALL_VOCABULARY = 1024
REPEATED = "causal_repeated"


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A Llama ready to run, its format, and where it runs.

    llama: the transformers LlamaForCausalLM; adapters replace its layers in place. dtype: compute type. four_bit: its
    linear layers hold 4-bit weights now (False once expanded). parameters: number of weights. unsloth: the backend that
    loaded it, if not transformers. rotary: the rotary embedding for decoding where the model's own is another's.
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


def load_model(settings: ModelSettings, device: torch.device, *, seed: int = 0) -> LoadedModel:
    """Load the checkpoint that `settings` name onto `device`, in eval mode, without gradients.

    Raises:
        ModelError: the folder is missing or no Llama, weights are missing, or its tokenizer cannot write the format.
    """
    folder = model_folder(settings.path, gpu=device.type == "cuda")
    config = read_config(folder)
    dtype = compute_dtype(settings.dtype, device)
    if settings.backend == "unsloth":
        return _load_with_unsloth(folder, settings, device, dtype)
    _quiet()
    if settings.random_start:
        llama = _random_llama(folder, seed).to(device=device)
    else:
        llama = _from_folder(folder, config, settings, device, dtype)
    llama.eval().requires_grad_(False)
    parameters = _count_parameters(llama)
    four_bit = any(type(module).__name__ == "Linear4bit" for module in llama.modules())
    expand = settings.dequantize == "always" or (settings.dequantize == "auto" and parameters < SMALL_PARAMETERS)
    if four_bit and expand:
        _expand(llama)
        four_bit = False
    if not four_bit and (device.type == "cpu" or parameters < SMALL_PARAMETERS):
        llama.float()
    if device.type == "cuda" and parameters >= SMALL_PARAMETERS:  # long sequences of a large model fit no other way
        llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not fused_groups(device) and llama.config.num_key_value_heads != llama.config.num_attention_heads:
        repeat_groups(llama)
    _disarm_repacking(llama)
    _compute_in(llama, dtype)
    torch.set_float32_matmul_precision("highest")
    form = format_of(settings.format, folder, llama.config)
    return LoadedModel(llama, form, device, dtype, four_bit, parameters, record=settings.record)


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute type: as named, or by what the device does fast.

    torch.cuda.is_bf16_supported() is no guide: it is true on a T4, which only emulates bfloat16.
    """
    if name != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        name = str(DEVICE_PRESETS[device_preset(torch.cuda.get_device_capability(device))]["model.dtype"])
        return compute_dtype(name, device)
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware. Emulated, it is some fifty times slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@functools.cache
def side_stream(device: torch.device, purpose: str) -> Any:
    """The stream of a GPU for one purpose: libraries keep 32 MiB of workspace for every stream they have worked on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def warm_up(device: torch.device, run: Callable[[], object]) -> None:
    """Do once what is to be recorded, for what libraries set up at their first call must not be; on a stream that never
    records."""
    side = side_stream(device, "warming up")
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream(device).wait_stream(side)


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
    stands to the right, where no real token sees it. attention: what an attention function of one's own is told.
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


class HubTokenizer:
    """A checkpoint's own tokenizer (tokenizer.json), as the formats need it."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exceptions
            raise ModelError(f"{folder}: tokenizer.json is missing or damaged: {error}") from error
        self._vocabulary = vocabulary

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def token_texts(self) -> list[str | None]:
        """By id the exact text of a token, special ones by their name; None for parts of characters."""
        specials = {i: str(token.content) for i, token in self._tokenizer.get_added_tokens_decoder().items()}
        texts: list[str | None] = [None] * max(self._vocabulary, self._tokenizer.get_vocab_size())
        for token in range(self._tokenizer.get_vocab_size()):
            text = specials.get(token) or self._tokenizer.decode([token], skip_special_tokens=False)
            texts[token] = text if text and "�" not in text else None
        return texts


def _from_folder(
    folder: Path, config: dict[str, Any], settings: ModelSettings, device: torch.device, dtype: torch.dtype
) -> Any:
    """The checkpoint with weights as stored (4-bit) or quantized while loading."""
    stored = config.get("quantization_config")
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
    if report.get("missing_keys"):
        missing = sorted(report["missing_keys"])
        raise ModelError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")
    return llama


def _from_expanded(folder: Path, dtype: torch.dtype) -> Any:
    """A checkpoint stored in 4 bits, with its weights expanded to `dtype` by our own reader: needs no bitsandbytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder, local_files_only=True)
    del config.quantization_config
    weights = read_expanded(folder, dtype)
    llama, report = LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
    )
    if report.get("missing_keys"):
        missing = sorted(report["missing_keys"])
        raise ModelError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")
    return llama


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
    four_bit = any(type(module).__name__ == "Linear4bit" for module in llama.modules())
    _disarm_repacking(llama)
    _compute_in(llama, dtype)
    torch.set_float32_matmul_precision("highest")
    rotary = unsloth.rotary.to(device)
    return LoadedModel(llama, form, device, dtype, four_bit, _count_parameters(llama), unsloth, rotary)


def _random_llama(folder: Path, seed: int) -> Any:
    """The architecture of a folder with fresh weights, the same for a seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        llama = LlamaForCausalLM(config)
    with torch.no_grad():  # residual branches start small, as in pretraining
        for name, weight in llama.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    return llama.float()


def _expand(llama: Any) -> None:
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


def _disarm_repacking(llama: Any) -> None:
    """Keep 4-bit layers from repacking their weights on CPUs with bfloat16 instructions (wrong gradients after it)."""
    for module in llama.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _compute_in(llama: Any, dtype: torch.dtype) -> None:
    """Let 4-bit layers multiply in `dtype`; a checkpoint stores its own, which may be one that this device emulates."""
    for module in llama.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype = dtype
            state = getattr(module.weight, "quant_state", None)
            if state is not None and module.weight.device.type == "cuda":
                state.dtype = dtype  # of the expanded weight in the backward pass


def _count_parameters(llama: Any) -> int:
    """Weights of the model; a 4-bit byte holds two."""
    count = 0
    for weight in llama.parameters():
        packed = type(weight).__name__ == "Params4bit" and weight.dtype == torch.uint8
        count += weight.numel() * (2 if packed else 1)
    return count


def format_of(name: str, folder: Path, config: Any) -> Format:
    """The format object for a checkpoint; its special tokens come from the tokenizer files."""
    if name == "compact":
        form = CompactFormat()
        if config.vocab_size != form.vocabulary:
            raise ModelError(
                f"{folder}: format compact needs {form.vocabulary} tokens, the model has {config.vocab_size}"
            )
        return form
    tokenizer = HubTokenizer(folder, config.vocab_size)
    texts = tokenizer.token_texts()
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    pad = next(token for token in (config.pad_token_id, eos, 0) if token is not None)
    if name == "architects":
        bos_text, eos_text = (
            texts[token] if token is not None and 0 <= token < len(texts) else None
            for token in (config.bos_token_id, eos)
        )
        if (config.bos_token_id is not None and not bos_text) or not eos_text:
            raise ModelError(f"{folder}: the tokenizer has no text for the start or the end of a sequence")
        return ArchitectsFormat(tokenizer, pad=pad, bos=bos_text or "", eos=eos_text)
    kinds = {"marc": MarcFormat, "barc": BarcFormat}
    return kinds[name](tokenizer, pad=pad)


def _quiet() -> None:
    """No progress bars or advice from libraries in the middle of our own output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()

"""The unsloth backend: its loader, adapters and training kernels behind the same interface as transformers.

What it does behind the caller's back, and what is done about it here (read in unsloth 2025.9 to 2026.10):
- it must be imported before transformers, peft and trl; it sends statistics and writes compiled code into the working
  folder: `import_unsloth` sets its variables first and lets one worker import at a time;
- it replaces classes and methods of transformers' Llama for the whole process: `Patches` puts them back, so that a load
  that fails can go on with transformers in the same process;
- it cuts sequences longer than `max_seq_length` without an error, and stretches rotary positions when that is above
  the checkpoint's own limit: `load` keeps it at or below the limit, the caller keeps sequences below it;
- its rotary tables are rounded to 16 bits and, in older versions, ignore the positions they are asked for: decoding
  keeps the library's own (`stock_rotary`), and calls none of the patched forward passes;
- it loads a tokenizer and may add tokens to it: formats without tokenizer files are refused, a changed vocabulary too;
- it trains `lm_head` and `embed_tokens` whole when they are named as targets: refused.
"""

from __future__ import annotations

import fcntl
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from arc_ttt.deadline import REAL_CLOCK, Deadline
from arc_ttt.errors import ModelError
from arc_ttt.presets import LINEAR_LAYERS
from arc_ttt.settings import TttSettings

if TYPE_CHECKING:
    import torch

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_BLOCK_COMPILE_LEGACY": "0",  # compiling each layer for every new length costs minutes
}
LOCK = Path(tempfile.gettempdir()) / "arc_ttt_unsloth.lock"
LOCK_WAIT_S = 300.0
"""After this many seconds a worker imports beside the other."""
MODELING = "transformers.models.llama.modeling_llama"
LARGEST_SEED = 2**32


class Unsloth:
    """One model in the hands of unsloth. `load` first, then `attach`; `training` and `inference` switch."""

    def __init__(self) -> None:
        """Import unsloth.

        Raises:
            ModelError: it cannot be imported.
        """
        self._fast = import_unsloth().FastLanguageModel
        self._model: Any = None
        self.patches = Patches()
        self.rotary: Any = None

    def load(self, folder: Path, config: Any, *, max_tokens: int, dtype: torch.dtype, four_bit: bool) -> Any:
        """The LlamaForCausalLM of a folder with tokenizer files. config: its transformers config.

        Raises:
            ModelError: unsloth cannot load it, or changed its vocabulary.
        """
        self.rotary = stock_rotary(config)
        options = {
            "max_seq_length": min(max_tokens, config.max_position_embeddings),
            "dtype": dtype,
            "load_in_4bit": four_bit,
            "fix_tokenizer": False,
            "use_gradient_checkpointing": True,
            "local_files_only": True,
        }
        if "offload_embedding" in inspect.signature(self._fast.from_pretrained).parameters:
            options["offload_embedding"] = False  # by default it moves embeddings to the host when memory is tight
        try:
            self._model, _ = self._fast.from_pretrained(str(folder), **options)
        except Exception as error:  # whatever its many patches and libraries raise
            raise ModelError(f"{folder}: unsloth cannot load it: {_one_line(error)}") from error
        rows = self._model.get_input_embeddings().weight.shape[0]
        if rows != config.vocab_size:
            raise ModelError(f"{folder}: unsloth made {rows} tokens of {config.vocab_size}")
        return self._model

    def attach(self, settings: TttSettings, *, seed: int) -> None:
        """LoRA layers, in place.

        Raises:
            ModelError: these settings are not for unsloth, or it fails.
        """
        if refusal := adapter_refusal(settings):
            raise ModelError(refusal)
        try:
            self._model = self._fast.get_peft_model(
                self._model,
                r=settings.rank,
                target_modules=list(settings.targets),
                lora_alpha=settings.alpha,
                lora_dropout=0.0,
                bias="none",
                use_rslora=settings.rslora,
                use_gradient_checkpointing=True,
                random_state=seed % LARGEST_SEED,
            )
        except Exception as error:
            raise ModelError(f"unsloth cannot attach adapters: {_one_line(error)}") from error

    def training(self) -> None:
        """Training mode: gradient checkpointing on, its flags for generation gone."""
        self._fast.for_training(self._model)

    def inference(self) -> None:
        """Inference mode."""
        self._fast.for_inference(self._model)


def adapter_refusal(settings: TttSettings) -> str:
    """Why unsloth cannot train such an adapter; empty if it can."""
    if settings.adapter != "lora" or settings.scope == "none":
        return "unsloth is for LoRA training; ttt.adapter or ttt.scope names none"
    if whole := sorted(set(settings.targets) - set(LINEAR_LAYERS)):
        return f"unsloth trains {', '.join(whole)} whole instead of by LoRA; leave it out of ttt.targets"
    return ""


def import_unsloth() -> ModuleType:
    """The module, with its variables set and one process importing at a time.

    Raises:
        ModelError: it is not installed, finds no device, or fails with the installed libraries.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    compiled = Path(tempfile.gettempdir()) / f"arc_ttt_unsloth_{os.getpid()}"
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(compiled))
    try:
        with _one_at_a_time(Deadline.after(LOCK_WAIT_S)):
            import unsloth
    except Exception as error:  # ImportError of any of its libraries; NotImplementedError without a device
        raise ModelError(f"model.backend is unsloth, but it cannot be imported: {_one_line(error)}") from error
    module: ModuleType = unsloth
    return module


@contextmanager
def _one_at_a_time(deadline: Deadline) -> Iterator[None]:
    """Hold the lock of this machine; go on without it after the deadline. The kernel frees it when its holder dies."""
    try:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # another user's, or nowhere to write: side by side then
        yield
        return
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.passed():
                    break
                REAL_CLOCK.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def stock_rotary(config: Any) -> Any:
    """The library's own rotary embedding of a config. Make it before unsloth loads a model: its class is replaced."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(config=config)


class Patches:
    """The state of transformers' Llama module and its classes, and of peft's causal model, to go back to."""

    def __init__(self) -> None:
        import peft
        import transformers.models.llama.modeling_llama  # noqa: F401

        module = sys.modules[MODELING]
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        own = [kind for kind in classes if kind.__module__ == MODELING]
        self._kept = [(owner, dict(vars(owner))) for owner in (module, *own, peft.PeftModelForCausalLM)]

    def undo(self) -> list[str]:
        """Put everything back; the names that had changed."""
        changed = []
        for owner, kept in self._kept:
            now = dict(vars(owner))
            for name in kept.keys() | now.keys():
                if name in ("__dict__", "__weakref__") or now.get(name) is kept.get(name):
                    continue
                changed.append(f"{owner.__name__}.{name}")
                if name in kept:
                    setattr(owner, name, kept[name])
                else:
                    delattr(owner, name)
        return sorted(changed)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:300]

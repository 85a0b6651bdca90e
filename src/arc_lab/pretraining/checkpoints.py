"""Save and load the state of a training: tensors in one safetensors file, everything else in one JSON file.

`checkpoint.json` names the tensor file and its SHA-256, and holds a SHA-256 of its own content. It is replaced last and
in one step, so that an interruption at any moment leaves either the previous checkpoint or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from arc_lab.pretraining.muon import Muon
from arc_ttt.atomic import write_atomically
from arc_ttt.errors import InputError

CHECKPOINT_VERSION = 3
"""Version of the format."""

STATE_FILE = "checkpoint.json"

STATE_NAMES = ("step", "tokens", "padded", "sequences", "squares", "seconds", "curve", "loss", "logged_at")
"""Entries of the trainer's own state."""

NAMES = (*STATE_NAMES, "feed", "loss_scaler", "settings", "conditions", "packs")
"""All entries of a checkpoint."""


class CheckpointError(InputError):
    """A training checkpoint is damaged, of another version, or of another training."""


@dataclass(slots=True, eq=False)
class Trained:
    """Everything that training changes in place. `names` are those of AdamW's weights, in its order."""

    llama: Any
    muon: Muon
    adamw: torch.optim.AdamW
    names: list[str]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and optimizer state by name, on the CPU."""
        found = {f"model.{name}": weight for name, weight in self.llama.state_dict().items()}
        found |= {f"muon.{shape[0]}x{shape[1]}": momentum for shape, momentum in self.muon.momentum.items()}
        for name, weight in self._adamw_weights().items():
            for part, value in self.adamw.state.get(weight, {}).items():
                found[f"adamw.{name}.{part}"] = value
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor], where: Path) -> None:
        """Put tensors back as `tensors()` gave them; `where` is their file, for messages.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        wanted: dict[str, torch.Tensor] = {f"model.{n}": w for n, w in self.llama.state_dict().items()}
        wanted |= {f"muon.{shape[0]}x{shape[1]}": momentum for shape, momentum in self.muon.momentum.items()}
        for name, target in wanted.items():
            if name not in tensors or tensors[name].shape != target.shape:
                raise CheckpointError(f"{where}: {name} is missing or of another shape; it is of another model")
            target.copy_(tensors[name])
        for name, weight in self._adamw_weights().items():
            prefix = f"adamw.{name}."
            parts = {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
            fused = self.adamw.defaults.get("fused")
            if parts:
                self.adamw.state[weight] = {
                    part: value.to(weight.device if fused or part != "step" else "cpu", copy=True)
                    for part, value in parts.items()
                }

    def _adamw_weights(self) -> dict[str, torch.nn.Parameter]:
        return dict(zip(self.names, self.adamw.param_groups[0]["params"], strict=True))


def save(folder: Path, trained: Trained, state: Mapping[str, Any]) -> None:
    """Write a checkpoint with everything in NAMES as `state`, then remove the previous one."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"checkpoint-{state['step']:08d}.safetensors"
    beside = folder / f".{name}.part"
    save_file(trained.tensors(), beside)
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    beside.replace(folder / name)
    document = {**state, "version": CHECKPOINT_VERSION, "tensors": name, "sha256": digest}
    write_atomically(folder / STATE_FILE, json.dumps({**document, "own_sha256": _own_hash(document)}, sort_keys=True))
    for old in folder.glob("*checkpoint-*.safetensors*"):
        if old.name != name:
            old.unlink()


def _own_hash(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def load(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """State and tensors of the last checkpoint; None if there is none.

    Raises:
        CheckpointError: the checkpoint is damaged or of another version.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        version, tensors, digest = state["version"], folder / state["tensors"], state["sha256"]
        own = state.pop("own_sha256", None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is no training checkpoint: {error}") from error
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path}: is of version {version}; this program reads version {CHECKPOINT_VERSION}. Give another --out, "
            "with --init for these weights"
        )
    if own != _own_hash(state):
        raise CheckpointError(f"{path}: is damaged: its content does not match its SHA-256")
    missing = [name for name in NAMES if name not in state]
    if missing:
        raise CheckpointError(f"{path}: is no training checkpoint: it lacks {', '.join(missing)}")
    try:
        with tensors.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise CheckpointError(f"{tensors}: is damaged: its SHA-256 is not the one that {STATE_FILE} names")
        return state, load_file(tensors)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{tensors}: cannot be read: {error}") from error


def check_same(
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    conditions: Mapping[str, Any],
    packs: list[str],
    path: Path,
) -> None:
    """Refuse to continue under other settings, conditions or packs than the checkpoint's.

    Args:
        state: the checkpoint's state.
        settings: the settings of the training.
        conditions: everything else that decides the batches or the rounding.
        packs: digests of the packs.
        path: the checkpoint's folder, for messages.

    Raises:
        CheckpointError: something differs; the message names it.
    """
    if state["packs"] != packs:
        raise CheckpointError(f"{path}: was trained on other packs ({', '.join(p[:12] for p in state['packs'])})")
    before = {**state["settings"], **state["conditions"]}
    now = {**settings, **conditions}
    differing = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if differing:
        difference = "; ".join(f"{name}={before.get(name)}, now it is {now.get(name)}" for name in differing)
        raise CheckpointError(
            f"{path}: was trained with {difference}; give the same options to go on, or another --out "
            "(with --init for these weights)"
        )

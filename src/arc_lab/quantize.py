"""`python -m arc_lab quantize`: a checkpoint's NF4 form, and what the four bits cost.

    python -m arc_lab quantize --model local/xs/model --out local/xs/nf4 --pack local/rearc.pack

Linear layers become NF4 with double quantization (bitsandbytes); embedding, head and norms stay as they are. The
written folder is loaded again and must hold the same bits. With a pack, exact match on its held pairs is measured
with the weights as they were and with those that four bits stand for: before test-time training, and after a short one
on tasks of held-out generators. Both are measured on the same questions; the difference has a paired standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arc_lab.datasets import held_out_tasks
from arc_lab.packs import Pack, read_pack
from arc_lab.pretrain_data import measuring_sequences
from arc_lab.pretrain_loop import exact_match
from arc_ttt.deadline import Deadline
from arc_ttt.errors import ArcError, InputError, ModelError
from arc_ttt.grids import Grid, Task, same_grid
from arc_ttt.model import LoadedModel, load_model
from arc_ttt.settings import ModelSettings, Settings, parse_overrides
from arc_ttt.solve import TaskSolver

WORTH_ACTING_ON = 0.02  # exact match; a larger loss asks for straight-through NF4 in the decay, or int8

SMALL = {
    "ttt.max_sequences": 96,
    "ttt.max_sequence_tokens": 1024,
    "ttt.rank": 16,
    "decode.views": 1,
    "vote.rule": "flattened",
}
"""Settings of the short test-time training: 12 steps, one greedy answer."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Exact match of the same questions with plain and with 4-bit weights."""

    plain: tuple[bool, ...]
    four_bit: tuple[bool, ...]

    @property
    def difference(self) -> float:
        """Share right with four bits minus share right without."""
        return float(np.mean(self._changes())) if self.plain else 0.0

    @property
    def standard_error(self) -> float:
        """Of the difference, over questions, paired."""
        changes = self._changes()
        return float(np.std(changes)) / math.sqrt(len(changes)) if len(changes) else 0.0

    def _changes(self) -> np.typing.NDArray[np.float64]:
        changes: np.typing.NDArray[np.float64] = np.array(self.four_bit, float) - np.array(self.plain, float)
        return changes

    def document(self) -> dict[str, Any]:
        return {
            "n": len(self.plain),
            "plain": sum(self.plain),
            "four_bit": sum(self.four_bit),
            "difference": round(self.difference, 4),
            "standard_error": round(self.standard_error, 4),
        }


def quantize(model: Path, out: Path) -> dict[str, Any]:
    """Write the NF4 form of the checkpoint in `model` to `out`; returns sizes and counts.

    Raises:
        ModelError: `model` cannot be loaded or is in 4 bits already, `out` exists with something else in it, or what
            was written does not load to the same bits.
    """
    config = json.loads((model / "config.json").read_text()) if (model / "config.json").is_file() else {}
    if config.get("quantization_config"):
        raise ModelError(f"{model}: holds quantized weights already")
    if out.exists() and not (out / "config.json").is_file():
        raise ModelError(f"{out}: exists and is no checkpoint; name another folder")
    cpu = torch.device("cpu")
    settings = ModelSettings(path=str(model), quantize="nf4", dequantize="never", dtype="float32")
    packed = load_model(settings, cpu)
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    packed.llama.save_pretrained(beside)
    again = load_model(replace(settings, path=str(beside)), cpu)
    differing = different_tensors(packed, again)
    if differing:
        raise ModelError(f"{beside}: {len(differing)} tensors changed by saving, the first is {differing[0]}")
    shutil.rmtree(out, ignore_errors=True)
    beside.replace(out)
    return {
        "out": str(out),
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "parameters": packed.parameters,
        "four_bit_layers": sum(type(m).__name__ == "Linear4bit" for m in packed.llama.modules()),
    }


def different_tensors(first: LoadedModel, second: LoadedModel) -> list[str]:
    """Names of stored tensors (packed weights and their scales too) that are not equal bit for bit."""
    one, two = first.llama.state_dict(), second.llama.state_dict()
    return [
        name
        for name in sorted({*one, *two})
        if name not in one
        or name not in two
        or one[name].dtype != two[name].dtype
        or not torch.equal(one[name], two[name])
    ]


def cost_before(plain: LoadedModel, four_bit: LoadedModel, pack: Pack, split: str, count: int, max_tokens: int) -> Cost:
    """What four bits cost on held pairs (split: as `measuring_sequences`), without test-time training."""
    sequences = measuring_sequences([pack], split, count, max_tokens)
    return Cost(tuple(exact_match(plain, sequences)), tuple(exact_match(four_bit, sequences)))


def cost_after(model: Path, nf4: Path, tasks: Sequence[tuple[Task, Grid]], settings: Settings) -> Cost:
    """What four bits cost after test-time training on each task: one greedy answer, adapters on either base."""
    right = []
    for folder, quantize in ((model, "none"), (nf4, "nf4")):
        changes = [("model.path", str(folder)), ("model.quantize", quantize)]
        own = settings.override(changes)
        solver = TaskSolver(load_model(own.model, torch.device("cpu")), own)
        right.append(tuple(_solves(solver, task, answer) for task, answer in tasks))
    return Cost(right[0], right[1])


def _solves(solver: TaskSolver, task: Task, answer: Grid) -> bool:
    answers = solver.adapt(task, Deadline.never())
    return any(same_grid(candidate.grid, answer) for candidate in answers.candidates[:1])


def measure(model: Path, nf4: Path, pack: Pack, settings: Settings, *, sequences: int, tasks: int) -> dict[str, Any]:
    """All costs, JSON-ready by name."""
    device = torch.device("cpu")
    longest = settings.ttt.max_sequence_tokens
    plain = load_model(ModelSettings(path=str(model), quantize="none"), device)
    four_bit = load_model(ModelSettings(path=str(nf4)), device)
    costs = {
        f"{name}, before": cost_before(plain, four_bit, pack, split, sequences, longest)
        for name, split in (("seen generators", "train"), ("held-out generators", "held-out"))
    }
    if tasks:
        costs["held-out generators, after"] = cost_after(model, nf4, held_out_tasks(pack, tasks, longest), settings)
    return {name: cost.document() for name, cost in costs.items()}


def main(argv: Sequence[str]) -> int:
    """Run the quantize command."""
    parser = argparse.ArgumentParser(
        prog="python -m arc_lab quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="a checkpoint with plain weights")
    add("--out", type=Path, required=True, metavar="DIR", help="where the NF4 checkpoint goes")
    add("--pack", type=Path, help="measure the cost on this pack's held pairs")
    add("--sequences", type=int, default=200, help="questions of each kind before test-time training")
    add("--tasks", type=int, default=40, help="tasks after test-time training; 0 for none")
    add("--threads", type=int, default=1)
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting of the test-time training")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        settings = Settings().override([*SMALL.items(), *parse_overrides(options.set)])
        pack = read_pack(options.pack) if options.pack else None
        written = quantize(options.model, options.out)
        costs = {}
        if pack is not None:
            costs = measure(
                options.model, options.out, pack, settings, sequences=options.sequences, tasks=options.tasks
            )
    except (InputError, ArcError) as error:
        print(f"arc_lab quantize: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"{written['parameters']:,} parameters, {written['bytes']:,} bytes, reloads bit for bit")
    for name, cost in costs.items():
        print(
            f"  {name} test-time training: {cost['plain']} of {cost['n']} with plain weights, {cost['four_bit']} with "
            f"four bits ({cost['difference']:+.1%} +- {cost['standard_error']:.1%})"
        )
        if cost["difference"] < -WORTH_ACTING_ON:
            print("    more than 2 points: end the decay with straight-through NF4, or ship int8")
    print(json.dumps({**written, "costs": costs}))
    return 0

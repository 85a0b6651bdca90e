"""`python -m arc_lab quantize`: a checkpoint's NF4 form, and what the four bits cost.

    python -m arc_lab quantize --model local/xs/model --out local/xs/nf4 --pack local/rearc.pack

Linear layers become NF4 with double quantization (bitsandbytes); embedding, head and norms stay as they are. The
written folder is loaded again and must hold the same bits. It may replace an earlier one and nothing else; the card
beside the weights, if any, goes along. With a pack, exact match on its held pairs is measured with the weights as they
were and with those that four bits stand for: before test-time training on pairs of seen and of held-out generators, and
both before and after a short one on tasks of held-out generators. Either kind of weights gets the same questions; the
difference has a paired standard error.

What is measured is kept in OUT.measured.json: the same command again, of the same weights, settings and pack, goes on
where it was interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arc_lab.command_line import resumable
from arc_lab.data.datasets import held_out_tasks
from arc_lab.data.packs import Pack, read_pack
from arc_lab.pretraining.card import add_weights_card, check_weights, read_card
from arc_lab.pretraining.feed import measuring_sequences
from arc_lab.pretraining.loop import exact_match
from arc_lab.pretraining.model import part_of, replace_folder
from arc_ttt.checkpoints.folders import read_config, weights_mark
from arc_ttt.deadline import REAL_CLOCK, Deadline, format_duration
from arc_ttt.errors import ModelError, SettingsError
from arc_ttt.formats.format import TokenSequence
from arc_ttt.model.load import LoadedModel, load_model
from arc_ttt.run.submission import write_atomically
from arc_ttt.settings import ModelSettings, Settings, parse_overrides
from arc_ttt.tasks.grids import Grid, Task, same_grid
from arc_ttt.votes.rules import rank
from arc_ttt.worker.solver import Answers, TaskSolver

WORTH_ACTING_ON = 0.02  # exact match; a larger loss asks for straight-through NF4 in the decay, or int8

SMALL = {
    "ttt.max_sequences": 64,
    "ttt.max_sequence_tokens": 512,
    "ttt.rank": 16,
    "decode.views": 1,
    "decode.base_views": 1,
    "vote.rule": "flattened",
}
"""Settings of the short test-time training: 8 steps, one greedy answer, tasks and pairs of at most 512 tokens; a few
minutes of one core for 20 tasks with XS."""


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
        """Of the difference, over questions, paired; where no question differs, as if one did."""
        changes = self._changes()
        count = len(changes)
        spread = float(np.std(changes)) if changes.any() else 1 / math.sqrt(max(1, count))
        return spread / math.sqrt(max(1, count))

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
        ModelError: `model` cannot be loaded, is damaged or in 4 bits already, `out` exists and is not what an earlier
            call wrote, or what was written does not load to the same bits.
    """
    out = out.resolve()
    if model.resolve() == out:
        raise ModelError(f"--out {out}: would replace the folder of --model; name another one")
    if read_config(model).get("quantization_config"):
        raise ModelError(f"{model}: holds quantized weights already")
    check_replaceable(out)
    card = check_weights(model)
    cpu = torch.device("cpu")
    settings = ModelSettings(path=str(model), quantize="nf4", dequantize="never", dtype="float32")
    packed = load_model(settings, cpu)
    beside = part_of(out)
    packed.llama.save_pretrained(beside)
    again = load_model(replace(settings, path=str(beside)), cpu)
    differing = different_tensors(packed, again)
    if differing:
        raise ModelError(f"{beside}: {len(differing)} tensors changed by saving, the first is {differing[0]}")
    add_weights_card(beside, card)
    replace_folder(beside, out)
    return {
        "out": str(out),
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "parameters": packed.parameters,
        "four_bit_layers": sum(type(m).__name__ == "Linear4bit" for m in packed.llama.modules()),
    }


OWN_FILES = re.compile(r"(config|generation_config|card)\.json|model.*\.safetensors(\.index\.json)?")


def check_replaceable(out: Path) -> None:
    """Refuse a folder that holds anything but an NF4 checkpoint of this command.

    Raises:
        ModelError: names a file that would be lost.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / "config.json").is_file() or not read_config(out).get("quantization_config"):
        raise ModelError(f"{out}: exists and is no checkpoint in 4 bits; name another folder")
    names = sorted(path.name for path in out.iterdir())
    other = [name for name in names if not OWN_FILES.fullmatch(name)]
    if "card.json" in names and "weights" not in read_card(out):
        other.append("card.json")
    if other:
        raise ModelError(f"{out}: holds {other[0]} too, which is not of this command; move it or name another folder")


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


class Measured:
    """Which questions were answered right, part by part, in a file that outlives an interruption.

    The file counts only under the same `question`: one text for weights, settings and data.
    """

    def __init__(self, path: Path | None, question: str) -> None:
        self.path, self.question = path, question
        self.parts: dict[str, list[bool]] = {}
        if path is not None and path.is_file():
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                if document["question"] == question:
                    self.parts = {str(name): [bool(one) for one in right] for name, right in document["parts"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                self.parts = {}  # what cannot be read is measured again

    def part(self, name: str, compute: Callable[[], Iterable[bool]]) -> tuple[bool, ...]:
        """The part `name`: as it stands in the file, else computed and written there."""
        if name not in self.parts:
            self.parts[name] = list(compute())
            if self.path is not None:
                document = {"question": self.question, "parts": self.parts}
                write_atomically(self.path, json.dumps(document, indent=1) + "\n")
        return tuple(self.parts[name])


PLAIN, FOUR_BIT = "plain weights", "four bits"
WEIGHTS = {PLAIN: "none", FOUR_BIT: "nf4"}  # names of the two, with model.quantize of each


class Measurement:
    """The costs of four bits, each of the two kinds of weights loaded when it is first needed."""

    def __init__(
        self, folders: dict[str, Path], settings: Settings, kept: Measured, say: Callable[[str], None]
    ) -> None:
        self.folders, self.settings, self.kept, self.say = folders, settings, kept, say
        self.solver = functools.cache(self._solver)
        self.start_s = REAL_CLOCK.now()

    def of_pairs(self, pack: Pack, split: str, count: int) -> Cost:
        """On held pairs (split: as `measuring_sequences`), without test-time training."""
        drawn = measuring_sequences(
            [pack], split, 4 * count, self.settings.ttt.max_sequence_tokens
        )  # many are too long
        sequences = drawn[:: max(1, len(drawn) // count)][:count]
        right = {}
        for kind in WEIGHTS:
            name = f"{count} pairs, {split}, {kind}"
            right[kind] = self.kept.part(name, functools.partial(self._exact, kind, sequences))
            self._tell(f"{name}: {sum(right[kind])} right")
        return Cost(right[PLAIN], right[FOUR_BIT])

    def of_tasks(self, tasks: Sequence[tuple[Task, Grid]]) -> tuple[Cost, Cost]:
        """On tasks, before and after test-time training on each."""
        found: dict[str, list[tuple[bool, ...]]] = {kind: [] for kind in WEIGHTS}
        for number, (task, answer) in enumerate(tasks, 1):
            for kind in WEIGHTS:
                both = functools.partial(self._solved, kind, task, answer)
                found[kind].append(self.kept.part(f"task {task.task_id}, {kind}", both))
            counts = [
                f"{kind} {sum(before for before, _ in rows)} right before, {sum(after for _, after in rows)} after"
                for kind, rows in found.items()
            ]
            self._tell(f"{number} of {len(tasks)} tasks: {'; '.join(counts)}")
        before, after = (
            Cost(*(tuple(rows[column] for rows in found[kind]) for kind in (PLAIN, FOUR_BIT))) for column in (0, 1)
        )
        return before, after

    def _solver(self, kind: str) -> TaskSolver:
        own = self.settings.override([("model.path", str(self.folders[kind])), ("model.quantize", WEIGHTS[kind])])
        return TaskSolver(load_model(own.model, torch.device("cpu")), own)

    def _exact(self, kind: str, sequences: Sequence[TokenSequence]) -> list[bool]:
        solver = self.solver(kind)
        if solver.adapter is not None:
            solver.adapter.reset(to_base=True)
        return exact_match(solver.base, sequences)

    def _solved(self, kind: str, task: Task, answer: Grid) -> tuple[bool, bool]:
        """Whether the first attempt is right: of the base model, and after training on the task."""
        solver, never = self.solver(kind), Deadline.never()
        return (
            self._right(solver.answer(task, never), answer),
            self._right(solver.adapt(task, never), answer),
        )

    def _right(self, answers: Answers, answer: Grid) -> bool:
        ranked = rank(answers.candidates, answers.scored, rule=self.settings.vote.rule)
        return any(same_grid(grid, answer) for grid in ranked[:1])

    def _tell(self, text: str) -> None:
        self.say(f"{format_duration(REAL_CLOCK.now() - self.start_s)}  {text}")


def measure(
    model: Path,
    nf4: Path,
    pack: Pack,
    settings: Settings,
    *,
    sequences: int,
    tasks: int,
    kept: Path | None = None,
    say: Callable[[str], None] = functools.partial(print, flush=True),  # noqa: B008
) -> dict[str, Any]:
    """All costs, JSON-ready by name. kept: a file to go on from after an interruption; say: takes lines of progress."""
    question = json.dumps([settings.to_json(), pack.sha256, weights_mark(model), weights_mark(nf4)])
    folders = {PLAIN: model, FOUR_BIT: nf4}
    measurement = Measurement(folders, settings, Measured(kept, question), say)
    costs = {}
    if sequences:
        for name, split in (("pairs of seen generators", "train"), ("pairs of held-out generators", "held-out")):
            costs[f"{name}, before"] = measurement.of_pairs(pack, split, sequences)
    if tasks:
        drawn = held_out_tasks(pack, tasks, settings.ttt.max_sequence_tokens)
        name = "tasks of held-out generators"
        costs[f"{name}, before"], costs[f"{name}, after"] = measurement.of_tasks(drawn)
    return {name: cost.document() for name, cost in costs.items()}


def cost_lines(costs: dict[str, Any]) -> list[str]:
    """The costs for a person, with what to do about one that is too high."""
    lines = []
    for name, cost in costs.items():
        lines.append(
            f"  {name} test-time training: {cost['plain']} of {cost['n']} with plain weights, {cost['four_bit']} with "
            f"four bits ({cost['difference']:+.1%} ± {cost['standard_error']:.1%})"
        )
        if cost["difference"] < -WORTH_ACTING_ON:
            lines.append("    more than 2 points: end the decay with straight-through NF4, or ship int8")
            if cost["difference"] > -2 * cost["standard_error"]:
                lines.append("    (within two standard errors of nothing: ask more questions first)")
    return lines


@resumable
def main(argv: Sequence[str]) -> int:
    """Run the quantize command; 130 when it was interrupted and can go on."""
    parser = argparse.ArgumentParser(
        prog="python -m arc_lab quantize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="a checkpoint with plain weights")
    add("--out", type=Path, required=True, metavar="DIR", help="where the NF4 checkpoint goes")
    add("--pack", type=Path, help="measure the cost on this pack's held pairs")
    add("--sequences", type=int, default=200, help="pairs of each kind before test-time training; 0 for none")
    add("--tasks", type=int, default=20, help="tasks before and after test-time training; 0 for none")
    add("--threads", type=int, default=1)
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting of the test-time training")
    options = parser.parse_args(argv)
    for name, least in (("sequences", 0), ("tasks", 0), ("threads", 1)):
        if getattr(options, name) < least:
            raise SettingsError(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    torch.set_num_threads(options.threads)
    settings = Settings().override([*SMALL.items(), *parse_overrides(options.set)])
    pack = read_pack(options.pack) if options.pack else None
    written = quantize(options.model, options.out)
    costs = {}
    if pack is not None:
        kept = options.out.with_name(options.out.name + ".measured.json")
        counts = {"sequences": options.sequences, "tasks": options.tasks}
        costs = measure(options.model, options.out, pack, settings, kept=kept, **counts)
    print(f"{written['parameters']:,} parameters, {written['bytes']:,} bytes, reloads bit for bit")
    print("\n".join(cost_lines(costs)), end="\n" if costs else "")
    print(json.dumps({**written, "costs": costs}))
    return 0

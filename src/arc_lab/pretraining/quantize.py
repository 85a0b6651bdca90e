"""`arc-lab quantize`: write a checkpoint's NF4 form, and measure the cost of the four bits.

Linear layers become NF4 with double quantization (bitsandbytes); embedding, head and norms stay as they are. The
written folder is loaded again and must hold the same bits. It may replace a folder that this command wrote earlier, and
nothing else. A card beside the weights is copied.

With a pack, exact match on its held pairs is measured twice: with the original weights, and with the weights that the
four bits stand for. Pairs of seen and of held-out generators are measured before test-time training; tasks of held-out
generators before and after a short training. Both kinds of weights answer the same questions, so that the difference
has a paired standard error. OUT.measured.json keeps what has been measured: the same command with the same weights,
settings and pack continues where it was interrupted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arc_lab.command_line import add_json, add_set, json_document, make_parser, resumable
from arc_lab.data.packs import read_pack
from arc_lab.folders import part_of, replace_folder
from arc_lab.pretraining.card import add_weights_card, check_weights, read_card
from arc_lab.pretraining.quantization_cost import Questions, cost_lines, measure
from arc_ttt.checkpoints.folders import read_config
from arc_ttt.errors import ModelError, SettingsError
from arc_ttt.model.load import load_model
from arc_ttt.model.loaded import LoadedModel
from arc_ttt.settings import ModelSettings, Settings, parse_overrides

SMALL = {
    "ttt.max_sequences": 64,
    "ttt.max_sequence_tokens": 512,
    "ttt.rank": 16,
    "decode.views": 1,
    "decode.base_views": 1,
    "vote.rule": "flattened",
}
"""Settings of the short test-time training: 8 steps, one greedy answer, tasks and pairs of at most 512 tokens. It takes
a few minutes of one core for 20 tasks with XS."""


def quantize(model: Path, out: Path) -> dict[str, Any]:
    """Write the NF4 form of the checkpoint in `model` to `out`, and return sizes and counts.

    Raises:
        ModelError: `model` cannot be loaded, is damaged or is in 4 bits already; `out` exists and no earlier call wrote
            it; or the written checkpoint does not load to the same bits.
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


WRITTEN_FILES = re.compile(r"(config|generation_config|card)\.json|model.*\.safetensors(\.index\.json)?")


def check_replaceable(out: Path) -> None:
    """Refuse to replace a folder that holds anything but an NF4 checkpoint of this command.

    Raises:
        ModelError: a file would be lost; the message names it.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / "config.json").is_file() or not read_config(out).get("quantization_config"):
        raise ModelError(f"{out}: exists and is no checkpoint in 4 bits; name another folder")
    names = sorted(path.name for path in out.iterdir())
    other = [name for name in names if not WRITTEN_FILES.fullmatch(name)]
    if "card.json" in names and "weights" not in read_card(out):
        other.append("card.json")
    if other:
        raise ModelError(f"{out}: holds {other[0]} too, which is not of this command; move it or name another folder")


def different_tensors(first: LoadedModel, second: LoadedModel) -> list[str]:
    """Names of stored tensors, packed weights and their scales among them, that are not equal bit for bit."""
    one, two = first.llama.state_dict(), second.llama.state_dict()
    return [
        name
        for name in sorted({*one, *two})
        if name not in one
        or name not in two
        or one[name].dtype != two[name].dtype
        or not torch.equal(one[name], two[name])
    ]


EXAMPLES = (
    "arc-lab quantize --model local/xs/model --out local/xs/nf4",
    "arc-lab quantize --model local/xs/model --out local/xs/nf4 --pack local/rearc.pack --json",
)


@resumable("quantize")
def main(argv: Sequence[str]) -> int:
    """Run the quantize command."""
    parser = make_parser("quantize", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="a checkpoint with plain weights")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the NF4 checkpoint")
    add("--pack", type=Path, metavar="FILE", help="measure the cost on this pack's held pairs")
    add("--sequences", type=int, default=200, metavar="N", help="pairs of each kind before training; 0 for none")
    add("--tasks", type=int, default=20, metavar="N", help="tasks before and after test-time training; 0 for none")
    add("--threads", type=int, default=1, metavar="N", help="numeric threads")
    add_set(parser, "any setting of the test-time training; may be repeated")
    add_json(parser)
    options = parser.parse_args(argv)
    for name, least in (("sequences", 0), ("tasks", 0), ("threads", 1)):
        if getattr(options, name) < least:
            raise SettingsError(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    torch.set_num_threads(options.threads)
    settings = Settings().override([*SMALL.items(), *parse_overrides(options.set)])
    pack = read_pack(options.pack) if options.pack else None
    with json_document(options.json) as document:
        written = quantize(options.model, options.out)
        costs = {}
        if pack is not None:
            kept = options.out.with_name(options.out.name + ".measured.json")
            questions = Questions(pack, sequences=options.sequences, tasks=options.tasks)
            costs = measure(options.model, options.out, questions, settings, kept=kept)
        print(f"{written['parameters']:,} parameters, {written['bytes']:,} bytes, reloads bit for bit")
        print("\n".join(cost_lines(costs)), end="\n" if costs else "")
        document |= {**written, "costs": costs}
    return 0

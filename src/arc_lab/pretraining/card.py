"""Write and check the card of a training: card.json for programs, card.md for people."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arc_ttt.atomic import write_atomically
from arc_ttt.deadline import format_duration
from arc_ttt.errors import ModelError

MEASURED_ON = {"seen": "held pairs of seen generators", "held-out": "held-out generators"}
"""The kinds of pairs on which exact match is measured, in words."""


def write_card(card: Mapping[str, Any], folder: Path) -> None:
    """Write both forms of a card."""
    write_atomically(folder / "card.json", json.dumps(card, indent=1, sort_keys=True))
    write_atomically(folder / "card.md", card_text(card))


def add_weights_card(folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write `card` with the hashes of the weights into a model folder, and return it."""
    stamped = {**card, "weights": weights_hashes(folder)}
    write_atomically(folder / "card.json", json.dumps(stamped, indent=1, sort_keys=True))
    return stamped


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a model folder; empty if there is none.

    Raises:
        ModelError: the card is damaged.
    """
    path = folder / "card.json"
    if not path.exists():
        return {}
    try:
        card = dict(json.loads(path.read_text(encoding="utf-8")))
        dict(card.get("weights", {}))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: is no card: {error}") from error
    return card


def check_weights(folder: Path) -> dict[str, Any]:
    """The card in a model folder, after a comparison of the weights with the hashes that it names.

    Raises:
        ModelError: the card is damaged, or the weights are others.
    """
    card = read_card(folder)
    named = card.get("weights", {})
    found = weights_hashes(folder) if "weights" in card else {}
    differing = sorted(name for name in {*named, *found} if named.get(name) != found.get(name))
    if differing:
        raise ModelError(f"{folder}: is damaged: {differing[0]} is not the file whose SHA-256 card.json names")
    return card


def weights_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of weights in a folder, by name."""
    hashes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    share = f"{card['share_of_peak']:.1%}" if card["share_of_peak"] is not None else "not measured"
    lines = [
        f"# {card['settings']['preset']}: {card['parameters']:,} parameters",
        "",
        "Finished." if card["finished"] else "Interrupted; the same command goes on.",
        "",
        "| figure | value |",
        "|---|---|",
        f"| steps | {card['steps']:,} |",
        f"| tokens (without padding) | {card['tokens']:,} |",
        f"| sequences | {card['sequences']:,} |",
        f"| padding | {card['padding']:.1%} |",
        f"| time | {format_duration(card['seconds'])} |",
        f"| tokens/s | {card['tokens_s']:,} |",
        f"| share of the measured peak | {share} |",
        f"| device | {card['device']}, {card['dtype']}, {card['processes']} process(es) |",
        f"| last loss, nats a target | {card['loss']} |",
        *(f"| pack (SHA-256) | {digest} |" for digest in card["packs"]),
        "",
        *_exact_lines(card),
        "",
        "## Settings",
        "",
        *(f"- {name}: {value}" for name, value in sorted(card["settings"].items())),
        "",
        "## Curve",
        "",
        "| step | seconds | loss | tokens/s | seen | held-out |",
        "|---|---|---|---|---|---|",
        *_curve_lines(card["curve"]),
        "",
    ]
    return "\n".join(lines)


def _exact_lines(card: Mapping[str, Any]) -> list[str]:
    """The section on exact match."""
    lines = ["## Exact match, greedy, three pairs shown, no test-time training", ""]
    for name, figures in (card["exact_match"] or {}).items():
        share = figures["exact"] / max(1, figures["n"])
        error = math.sqrt(share * (1 - share) / max(1, figures["n"]))
        lines.append(f"- {MEASURED_ON[name]}: {share:.1%} +- {error:.1%} (n = {figures['n']})")
    return lines


def _curve_lines(curve: list[dict[str, Any]], most: int = 60) -> list[str]:
    """Rows of the curve's table: about `most` losses, and all exact matches."""
    losses = [line for line in curve if "loss" in line]
    every = max(1, -(-len(losses) // most))
    chosen = {id(line) for line in losses[::every]} | {id(line) for line in losses[-1:]}
    lines = []
    for line in curve:
        if "loss" in line and id(line) in chosen:
            lines.append(f"| {line['step']} | {line['seconds']} | {line['loss']:.4f} | {line['tokens_s']} | | |")
        elif "exact_match" in line:
            shares = [f"{f['exact']} of {f['n']}" for f in line["exact_match"].values()]
            lines.append(f"| {line['step']} | {line['seconds']} | | | {' | '.join(shares)} |")
    return lines

"""All prompt formats by the names that `model.format` takes. To add one: a module, and a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from arc_ttt.errors import ModelError
from arc_ttt.formats.architects import ArchitectsFormat
from arc_ttt.formats.barc import BarcFormat
from arc_ttt.formats.compact import CompactFormat
from arc_ttt.formats.format import Format, TextTokenizer
from arc_ttt.formats.marc import MarcFormat


@dataclass(frozen=True, slots=True)
class Special:
    """What a checkpoint says of its special tokens.

    Args:
        pad: the id that fills batches.
        bos: text of the start of a sequence; empty for none, None where the tokenizer has no text for it.
        eos: text of the end of a sequence; None where the tokenizer has no text for it.
    """

    pad: int
    bos: str | None
    eos: str | None


@dataclass(frozen=True, slots=True)
class FormatRow:
    """A format and what goes with it.

    Args:
        preset: the settings of its first checkpoint.
        make: the format for a tokenizer and its special tokens; None for a format without a tokenizer of its own.
    """

    preset: str
    make: Callable[[TextTokenizer, Special], Format] | None


def _architects(tokenizer: TextTokenizer, special: Special) -> Format:
    if special.bos is None or not special.eos:
        raise ModelError("the tokenizer has no text for the start or the end of a sequence")
    return ArchitectsFormat(tokenizer, pad=special.pad, bos=special.bos, eos=special.eos)


FORMATS: dict[str, FormatRow] = {
    "compact": FormatRow("embedded", None),
    "architects": FormatRow("llama-1b-3b", _architects),
    "marc": FormatRow("llama-8b", lambda tokenizer, special: MarcFormat(tokenizer, pad=special.pad)),
    "barc": FormatRow("llama-8b", lambda tokenizer, special: BarcFormat(tokenizer, pad=special.pad)),
}


def compact_format(vocabulary: int) -> Format:
    """The format without a tokenizer.

    Raises:
        ModelError: the model has another vocabulary.
    """
    form = CompactFormat()
    if vocabulary != form.vocabulary:
        raise ModelError(f"format compact needs {form.vocabulary} tokens, the model has {vocabulary}")
    return form

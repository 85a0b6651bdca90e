"""The tokenizer of a checkpoint, and the format that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arc_ttt.errors import ModelError
from arc_ttt.formats.format import Format
from arc_ttt.formats.registry import FORMATS, Special, compact_format


class HubTokenizer:
    """A checkpoint's own tokenizer (tokenizer.json), as the formats need it."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exceptions
            raise ModelError(f"{folder}: tokenizer.json is missing or damaged: {error}") from error
        self._vocabulary = vocabulary
        self._texts: list[str | None] = []

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def token_texts(self) -> list[str | None]:
        """By id the exact text of a token, special ones by their name; None for parts of characters."""
        if self._texts:
            return self._texts
        specials = {i: str(token.content) for i, token in self._tokenizer.get_added_tokens_decoder().items()}
        texts: list[str | None] = [None] * max(self._vocabulary, self._tokenizer.get_vocab_size())
        for token in range(self._tokenizer.get_vocab_size()):
            text = specials.get(token) or self._tokenizer.decode([token], skip_special_tokens=False)
            texts[token] = text if text and "�" not in text else None
        self._texts = texts
        return texts


def format_of(name: str, folder: Path, config: Any) -> Format:
    """The format object for a checkpoint; its special tokens come from the tokenizer files.

    Raises:
        ModelError: the checkpoint cannot be written to in this format.
    """
    make = FORMATS[name].make
    tokenizer = HubTokenizer(folder, config.vocab_size) if make is not None else None
    try:
        if make is None or tokenizer is None:
            return compact_format(config.vocab_size)
        return make(tokenizer, _special(tokenizer, config))
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error


def _special(tokenizer: HubTokenizer, config: Any) -> Special:
    texts = tokenizer.token_texts()
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    pad = next(token for token in (config.pad_token_id, eos, 0) if token is not None)
    bos_text, eos_text = (
        texts[token] if token is not None and 0 <= token < len(texts) else None for token in (config.bos_token_id, eos)
    )
    return Special(pad, "" if config.bos_token_id is None else bos_text or None, eos_text)

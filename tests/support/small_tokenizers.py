"""Small byte-level tokenizers in the manner of Llama 3, trained on the texts of the formats."""

from __future__ import annotations

from functools import cache

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from arc_ttt.formats.architects import ArchitectsFormat
from arc_ttt.formats.barc import BarcFormat
from arc_ttt.formats.marc import MarcFormat
from arc_ttt.formats.text import TextFormat
from arc_ttt.tasks.grids import Example, Grid, freeze


def random_grid(height: int, width: int, seed: int) -> Grid:
    return freeze(np.random.default_rng(seed).integers(0, 10, (height, width)))


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
BOS, EOS = SPECIALS[:2]


class ByteTokenizer:
    """A byte-level BPE as `TextTokenizer`.

    kind: "characters" has no merges; "llama" cuts by the pre-tokenizer of Llama 3 first, so that up to three digits are
    one token; "greedy" merges whatever stands together, rows and markers included.
    """

    def __init__(self, kind: str, texts: list[str]) -> None:
        self.inner = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.inner.pre_tokenizer = whole if kind == "greedy" else pre_tokenizers.Sequence([split, whole])
        self.inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        size = len(alphabet) + len(SPECIALS) + (0 if kind == "characters" else 500)
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False, min_frequency=1
        )
        self.inner.train_from_iterator(texts, trainer)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def token_texts(self) -> list[str | None]:
        texts: list[str | None] = []
        for token in range(self.inner.get_vocab_size()):
            text = self.inner.decode([token], skip_special_tokens=False)
            texts.append(None if "\ufffd" in text else text)
        return texts


class NoTokenizer:
    """Every character of ASCII is a token, and the special texts: enough to make a format's text."""

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        raise NotImplementedError

    def token_texts(self) -> list[str | None]:
        return [*map(chr, range(128)), *SPECIALS]


def make(name: str, tokenizer: NoTokenizer | ByteTokenizer) -> TextFormat:
    if name == "architects":
        return ArchitectsFormat(tokenizer, pad=0, bos=BOS, eos=EOS)
    return {"marc": MarcFormat, "barc": BarcFormat}[name](tokenizer, pad=0)


@cache
def tokenizer_for(name: str, kind: str) -> ByteTokenizer:
    plain = make(name, NoTokenizer())
    texts = []
    for seed in range(25):
        pairs = [Example(random_grid(4, 2 + seed % 3, seed), random_grid(3, 1 + seed % 4, seed + 99)) for _ in range(2)]
        text, _ = plain.text(pairs, pairs[0].input, pairs[0].output)
        for special in SPECIALS:
            text = text.replace(special, "\0")
        texts += text.split("\0")
    return ByteTokenizer(kind, texts)

"""The shape of a Llama, as its config.json describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arc_ttt.errors import ModelError
from arc_ttt.presets import LINEAR_LAYERS


@dataclass(frozen=True, slots=True)
class Model:
    """What the cost of a model depends on."""

    parameters: float = 2.7e6
    layers: int = 6
    width: int = 192
    vocabulary: int = 16

    @classmethod
    def of(cls, config: dict[str, Any]) -> Model:
        """From a Llama's config.json."""
        width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        vocabulary, inner = int(config["vocab_size"]), int(config["intermediate_size"])
        heads = max(1, int(config.get("num_attention_heads", 1)))
        shared = int(config.get("num_key_value_heads", heads)) / heads
        layer = width * width * (2 + 2 * shared) + 3 * width * inner
        return cls(layers * layer + width * vocabulary, layers, width, vocabulary)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama, as its config.json gives them."""

    hidden: int
    layers: int
    heads: int
    heads_kv: int
    head: int
    feed_forward: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a checkpoint's config."""
        heads = int(config["num_attention_heads"])
        return cls(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            heads_kv=int(config.get("num_key_value_heads") or heads),
            head=int(config.get("head_dim") or config["hidden_size"] // heads),
            feed_forward=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    def linear(self, name: str) -> tuple[int, int]:
        """Inputs and outputs of a layer that an adapter can change."""
        attention, narrow = self.heads * self.head, self.heads_kv * self.head
        return {
            "q_proj": (self.hidden, attention),
            "k_proj": (self.hidden, narrow),
            "v_proj": (self.hidden, narrow),
            "o_proj": (attention, self.hidden),
            "gate_proj": (self.hidden, self.feed_forward),
            "up_proj": (self.hidden, self.feed_forward),
            "down_proj": (self.feed_forward, self.hidden),
            "lm_head": (self.hidden, self.vocabulary),
            "embed_tokens": (self.vocabulary, self.hidden),
        }[name]

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers but the head."""
        return self.layers * sum(i * o for i, o in map(self.linear, LINEAR_LAYERS))

    @property
    def other_weights(self) -> int:
        """Weights of the embeddings, of the head where it is not tied to them, and of the norms."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.other_weights


def parameter_count(config: dict[str, Any]) -> int:
    """Weights of a Llama with this config.json, norms left out.

    Raises:
        ModelError: a size is missing or no number.
    """
    try:
        hidden, layers, vocabulary = (int(config[name]) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
        heads = int(config["num_attention_heads"])
        width = int(config.get("head_dim") or hidden // heads)
        shared = int(config.get("num_key_value_heads") or heads)
        attention = 2 * hidden * width * (heads + shared)
        embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
        return embeddings + layers * (attention + 3 * hidden * int(config["intermediate_size"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"config.json: the sizes of the model are not complete: {error!r}") from error

"""The shape of a Llama, as its config.json describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arc_ttt.errors import ModelError
from arc_ttt.presets import LINEAR_LAYERS

SMALL_PARAMETERS = 200_000_000
"""Models with fewer weights keep activations and are never held in 4 bits."""


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a Llama, as its config.json gives them.

    Args:
        hidden: width of the hidden states.
        layers: number of layers.
        heads: query heads.
        heads_kv: key and value heads.
        head: width of a head.
        feed_forward: width of the feed-forward part.
        vocabulary: tokens.
        tied: the head shares the embeddings' weights.
    """

    hidden: int
    layers: int
    heads: int
    heads_kv: int
    head: int
    feed_forward: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LlamaShape:
        """From a checkpoint's config.

        Raises:
            ModelError: a size is missing or no number.
        """
        try:
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
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelError(f"config.json: the sizes of the model are not complete: {error!r}") from error

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
    def matrix_weights(self) -> int:
        """All weights but those of the norms."""
        return self.linear_weights + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linear_weights + self.other_weights

    @property
    def is_small(self) -> bool:
        """Whether the model keeps activations, is never held in 4 bits, and may record its steps."""
        return self.matrix_weights < SMALL_PARAMETERS


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the cost of a model depends on; by default that of embedded XS.

    Args:
        parameters: weights that a token passes: those of the layers, and one table of the vocabulary.
        layers: number of layers.
        width: of the hidden states.
        vocabulary: tokens.
    """

    parameters: float = 2.7e6
    layers: int = 6
    width: int = 192
    vocabulary: int = 16

    @classmethod
    def of(cls, shape: LlamaShape) -> ModelSize:
        """From the shape of a Llama."""
        shared = shape.heads_kv / max(1, shape.heads)
        layer = shape.hidden * shape.hidden * (2 + 2 * shared) + 3 * shape.hidden * shape.feed_forward
        parameters = shape.layers * layer + shape.hidden * shape.vocabulary
        return cls(parameters, shape.layers, shape.hidden, shape.vocabulary)

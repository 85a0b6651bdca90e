"""Memory plan: what of a model, its adapter, its activations and its caches fits a device, from formulas.

    device = context + weights + adapter + optimizer + activations of a micro-batch     while it trains
    device = context + weights + adapter + caches of the views kept for scoring + one batch in decoding

`plan` solves both for what is free to choose: the tokens of a micro-batch, the longest training sequence, and how many
views are decoded at once and kept. All figures are bytes and tokens. Source: ours; the formulas count what the layers
of transformers and peft keep for their gradients under autocast, and the tests hold them against counted allocations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from arc_ttt.settings import LINEAR_LAYERS, Settings, TttSettings

CONTEXT = 450 * 1024**2  # CUDA context, kernels and library workspaces of one process
MOST_FUSED = 0.25  # of the usable memory, that the decoder's copy of plain layers may take
MARGIN = 0.08  # of the device, lost to fragments of the allocator
BLOCK = 64  # weights of one NF4 block, which has a scale of one byte; 256 scales share a second one of four
PIECE = 1 << 24  # logits that exist at once in training
SCORING_PIECE = 1 << 25  # and in scoring
ROOM = 32  # places behind a prompt in its cache
SMALL_PARAMETERS = 200_000_000  # models below it keep activations and are never held in 4 bits
NO_TRAINING = "the base model answers alone"  # how a note says that nothing is trained
SHORTEST = 256  # tokens; a device that cannot train on so many cannot train


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


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan needs to know of a device.

    total: bytes. fused_groups: its attention kernels take fewer key heads than query heads (compute capability 8 and
    above); elsewhere keys and values are repeated. itemsize: bytes of a number of the compute type.
    """

    total: int
    fused_groups: bool = True
    itemsize: int = 2

    @property
    def usable(self) -> int:
        """Bytes for tensors."""
        return int(self.total * (1 - MARGIN)) - CONTEXT


T4 = Device(15_095 * 1024**2, fused_groups=False)  # of 15 GiB, what CUDA reports
L4 = Device(22 * 1024**3)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What fits.

    weights, adapter, optimizer, fused: bytes; the last is the decoder's copy of plain layers, 0 where there is to be
    none. tokens: of a micro-batch, padding included, and so also the longest training sequence; 0 where nothing can be
    trained.
    """

    shape: Shape
    device: Device
    weights: int
    adapter: int
    optimizer: int
    fused: int
    tokens: int

    def views(self, prompt_tokens: int, answer_tokens: int, batch_views: int, kept_views: int) -> tuple[int, int]:
        """Views decoded at once, and views whose prompts stay cached for scoring; at most those wanted, at least one.

        A batch in decoding takes its prompts' cache, and two copies half as long again while rows leave it and grow.
        A batch that is kept takes its cache alone. The largest batch wins that leaves room to keep what is wanted.
        """
        cache = cache_bytes(self.shape, 1, prompt_tokens + answer_tokens + ROOM, self.device.itemsize)
        row = 4 * cache + prompt_tokens * forward_bytes(self.shape, self.device)
        logits = SCORING_PIECE * (self.device.itemsize + 8)
        narrow = 0 if self.fused else self.optimizer // 12 * self.device.itemsize  # the decoder's copies of adapters
        left = self.device.usable - self.weights - self.adapter - self.fused - narrow - logits
        best = 1, 1
        for batch in range(min(batch_views, left // row), 0, -1):
            kept = min(kept_views, batch * (1 + (left - batch * row) // (batch * cache)))
            if kept > best[1]:
                best = batch, kept
        return best


def weight_bytes(shape: Shape, *, four_bit: bool, itemsize: int = 2) -> int:
    """A loaded model: linear layers in NF4 with double quantization or plain, the rest plain."""
    linear = shape.linear_weights
    packed = linear // 2 + linear // BLOCK + linear // BLOCK // 256 * 4
    return (packed if four_bit else linear * itemsize) + shape.other_weights * itemsize


def adapter_weights(shape: Shape, ttt: TttSettings) -> int:
    """Trainable weights."""
    if ttt.adapter == "full":
        return shape.parameters
    once = [name for name in ttt.targets if name not in LINEAR_LAYERS]
    each = [name for name in ttt.targets if name in LINEAR_LAYERS]
    return ttt.rank * (
        shape.layers * sum(sum(shape.linear(name)) for name in each) + sum(sum(shape.linear(name)) for name in once)
    )


def cache_bytes(shape: Shape, rows: int, capacity: int, itemsize: int) -> int:
    """Keys and values of a batch."""
    return 2 * shape.layers * rows * shape.heads_kv * capacity * shape.head * itemsize


def layer_bytes(shape: Shape, ttt: TttSettings, device: Device, *, shared_inputs: bool) -> int:
    """Bytes that one decoder layer keeps for its gradients, for each token.

    shared_inputs: adapters of one input keep it once (4-bit layers on CUDA); others keep a copy each.
    """
    size, width = device.itemsize, shape.heads * shape.head
    repeated = shape.heads_kv if device.fused_groups else shape.heads
    norms = 2 * (4 * shape.hidden + 4)  # the input in float32, and its scale
    attention = (2 * width + 2 * repeated * shape.head) * size + 4 * shape.heads  # queries, keys, values, sums, output
    feed_forward = 3 * shape.feed_forward * size  # gate, its activation, up
    targets = [name for name in ttt.targets if name in LINEAR_LAYERS] if ttt.adapter == "lora" else list(LINEAR_LAYERS)
    groups = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "mlp", "up_proj": "mlp"}
    inputs = {groups.get(name, name) if shared_inputs else name: shape.linear(name)[0] for name in targets}
    low_rank = len(targets) * ttt.rank if ttt.adapter == "lora" else 0
    return norms + attention + feed_forward + (sum(inputs.values()) + low_rank) * size


def forward_bytes(shape: Shape, device: Device) -> int:
    """Bytes for each token that exist at once in a layer without gradients."""
    width = shape.heads * shape.head
    return (4 * shape.hidden + max(3 * shape.feed_forward, 4 * width)) * device.itemsize + 8 * shape.hidden


def activation_bytes(
    shape: Shape,
    ttt: TttSettings,
    device: Device,
    tokens: int,
    *,
    checkpointing: bool,
    four_bit: bool = False,
    targets: int | None = None,
) -> int:
    """Peak of what a forward and backward pass of `tokens` tokens allocates, beside weights, gradients and moments.

    The peak is either at the logits, of which a piece exists at once, or in the backward pass of the last layer. With
    checkpointing only the inputs of the layers are kept and one layer is computed anew. targets: all tokens if None.
    """
    size = device.itemsize
    layer = layer_bytes(shape, ttt, device, shared_inputs=four_bit)
    kept = shape.layers * (shape.hidden * size if checkpointing else layer)
    again = layer if checkpointing else 0
    wide = 4 if four_bit else 8  # gradients of the widest tensors; adapters with inputs of their own turn to float32
    in_layer = tokens * (kept + again + wide * (shape.feed_forward + shape.hidden))
    final = 6 * shape.hidden + 4 + 2 * shape.head * size  # the last norm, the angles of the positions
    count = tokens if targets is None else targets
    logits = min(count, max(1, PIECE // shape.vocabulary)) * shape.vocabulary * (18 if "lm_head" in ttt.targets else 12)
    copies = adapter_weights(shape, ttt) * size if ttt.adapter == "lora" else 0  # adapters in the compute type
    unpacked = shape.hidden * shape.feed_forward * size if four_bit else 0
    at_logits = tokens * (kept + final) + count * shape.hidden * size + logits
    return max(in_layer + unpacked + copies // (shape.layers if checkpointing else 1), at_logits + copies)


def plan(
    config: Mapping[str, Any],
    device: Device,
    ttt: TttSettings,
    *,
    four_bit: bool,
    checkpointing: bool,
    host_copies: bool = True,
) -> MemoryPlan:
    """The plan of a checkpoint on a device.

    host_copies: the adapter's fresh values are kept in host memory.
    """
    shape = Shape.of(config)
    count = adapter_weights(shape, ttt) if ttt.scope != "none" else 0
    weights = weight_bytes(shape, four_bit=four_bit, itemsize=device.itemsize)
    if ttt.adapter == "full" and count:
        weights = 0  # they are the adapter
    adapter = count * (4 if host_copies else 8)
    optimizer = count * (4 + 8)  # gradients, two moments
    left = device.usable - weights - adapter - optimizer
    fits = 0
    for bit in reversed(range(20)):  # the largest that fits, as activations only grow with the tokens
        tokens = fits + (1 << bit)
        if activation_bytes(shape, ttt, device, tokens, checkpointing=checkpointing, four_bit=four_bit) <= left:
            fits = tokens
    fused = 0 if four_bit else shape.linear_weights * device.itemsize
    fused = fused if fused <= MOST_FUSED * device.usable else 0
    return MemoryPlan(shape, device, weights, adapter, optimizer, fused, fits if fits >= SHORTEST else 0)


def fitted(settings: Settings, found: MemoryPlan) -> tuple[Settings, list[str]]:
    """Settings that fit, and a line for each that had to change.

    Micro-batches never change results, so those are cut in silence, and 0 takes what fits. Shorter training sequences
    and no training do change results.
    """
    ttt, tokens = settings.ttt, found.tokens
    if ttt.scope == "none":
        return settings, []
    if tokens == 0:
        need = (found.weights + found.adapter + found.optimizer) / 1024**3
        note = f"memory: {need:.1f} GiB before any activation; {NO_TRAINING}"
        return replace(settings, ttt=replace(ttt, scope="none")), [note]
    notes = []
    longest = min(ttt.max_sequence_tokens, tokens)
    if longest < ttt.max_sequence_tokens:
        notes.append(f"memory: training sequences of at most {longest} tokens instead of {ttt.max_sequence_tokens}")
    at_once = min(tokens, ttt.micro_batch_tokens or tokens)
    return replace(settings, ttt=replace(ttt, max_sequence_tokens=longest, micro_batch_tokens=at_once)), notes

"""Bytes of weights, adapters, activations and caches, by formula."""

from __future__ import annotations

from dataclasses import dataclass

from arc_ttt.checkpoints.shape import LlamaShape
from arc_ttt.presets import LINEAR_LAYERS
from arc_ttt.settings import TttSettings

CONTEXT = 450 * 1024**2
"""Bytes of the CUDA context, kernels and library workspaces of one process."""
MARGIN = 0.08
"""Part of the device that is lost to fragments of the allocator."""
BLOCK = 64
"""Weights of one NF4 block, which has a scale of one byte; 256 scales share a second scale of four bytes."""
PIECE = 1 << 24
"""Logits that exist at once in training."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan needs to know of a device.

    Args:
        total: bytes.
        fused_groups: its attention kernels take fewer key heads than query heads (compute capability 8 and above);
            elsewhere keys and values are repeated.
        itemsize: bytes of a number of the compute type.
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


def weight_bytes(shape: LlamaShape, *, four_bit: bool, itemsize: int = 2) -> int:
    """A loaded model: linear layers in NF4 with double quantization or plain, the rest plain."""
    linear = shape.linear_weights
    packed = linear // 2 + linear // BLOCK + linear // BLOCK // 256 * 4
    return (packed if four_bit else linear * itemsize) + shape.other_weights * itemsize


def adapter_weights(shape: LlamaShape, ttt: TttSettings) -> int:
    """Trainable weights."""
    if ttt.adapter == "full":
        return shape.parameters
    once = [name for name in ttt.targets if name not in LINEAR_LAYERS]
    each = [name for name in ttt.targets if name in LINEAR_LAYERS]
    return ttt.rank * (
        shape.layers * sum(sum(shape.linear(name)) for name in each) + sum(sum(shape.linear(name)) for name in once)
    )


def cache_bytes(shape: LlamaShape, rows: int, capacity: int, itemsize: int) -> int:
    """Keys and values of a batch."""
    return 2 * shape.layers * rows * shape.heads_kv * capacity * shape.head * itemsize


def layer_bytes(shape: LlamaShape, ttt: TttSettings, device: Device, *, shared_inputs: bool) -> int:
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


def forward_bytes(shape: LlamaShape, device: Device) -> int:
    """Bytes for each token that exist at once in a layer without gradients."""
    width = shape.heads * shape.head
    return (4 * shape.hidden + max(3 * shape.feed_forward, 4 * width)) * device.itemsize + 8 * shape.hidden


def activation_bytes(
    shape: LlamaShape,
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

"""The optimizer Muon: orthogonalized momentum for matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from arc_ttt.model.cuda import cpu_has_bfloat16


def matrices(llama: Any) -> list[torch.nn.Parameter]:
    """The weights of the linear layers inside the blocks, which Muon trains."""
    return [weight for name, weight in llama.named_parameters() if ".layers." in name and weight.ndim == 2]


def others(llama: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Embedding, head and norms by name, which AdamW trains."""
    return [(n, w) for n, w in llama.named_parameters() if not (".layers." in n and w.ndim == 2)]


def orthogonalized(update: torch.Tensor) -> torch.Tensor:
    """Bring the singular values of matrices (N, A, B) near 1, by five Newton-Schulz steps in the type of `update`.

    Source: Jordan's Muon; coefficients and steps as in torch.optim.Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon (momentum 0.95, Nesterov, decoupled decay) for all matrices of one shape at once.

    torch's class computes in bfloat16 everywhere. This one does so only where the device has bfloat16 in hardware,
    because a CPU that emulates it would spend most of a step on the optimizer.
    """

    MOMENTUM = 0.95

    def __init__(self, weights: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(list(weights), {"lr": lr, "weight_decay": weight_decay})
        self.shapes: dict[tuple[int, int], list[torch.Tensor]] = {}
        for weight in self.param_groups[0]["params"]:
            self.shapes.setdefault((weight.shape[0], weight.shape[1]), []).append(weight)
        self.momentum = {
            shape: torch.zeros((len(same), *shape), device=same[0].device) for shape, same in self.shapes.items()
        }
        fast = next(iter(self.momentum.values())).is_cuda or cpu_has_bfloat16()
        self.dtype = torch.bfloat16 if fast else torch.float32

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all matrices."""
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for shape, weights in self.shapes.items():
            gradients = torch.stack([w.grad for w in weights if w.grad is not None])
            momentum = self.momentum[shape].lerp_(gradients, 1 - self.MOMENTUM)
            update = orthogonalized(gradients.lerp_(momentum, self.MOMENTUM).to(self.dtype)).float()
            torch._foreach_mul_(weights, 1 - lr * decay)
            torch._foreach_add_(weights, list(update), alpha=-lr * max(1.0, shape[0] / shape[1]) ** 0.5)

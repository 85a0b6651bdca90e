"""The processes of a training, and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of a training, as one of them sees them. Each method has to be called by all of them.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        device: the device of this process.
        control: torch's group for what is exchanged on the CPU; None if this process is alone.
    """

    rank: int
    size: int
    device: torch.device
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that measures, prints and writes."""
        return self.rank == 0

    def agree(self, progress: float, stop: bool) -> tuple[float, bool]:
        """The progress of the first process, and whether any process was asked to stop."""
        if self.size == 1:
            return progress, stop
        sums = torch.tensor([progress if self.first else 0.0, float(stop)], dtype=torch.float64)
        dist.all_reduce(sums, group=self.control)
        return float(sums[0]), bool(sums[1] > 0)

    def sum_counts(self, counts: Sequence[int]) -> list[int]:
        """Each count, summed over the processes."""
        summed = torch.tensor(counts, dtype=torch.int64)
        if self.size > 1:
            dist.all_reduce(summed, group=self.control)
        return [int(number) for number in summed]

    def sum_in_place(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors of one type on the device by their sums over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


@contextmanager
def join_processes() -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started; a process that torchrun did not start is alone."""
    local, cuda = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup(0, 1, device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), device, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()

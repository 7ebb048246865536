"""Collectives on the CPU."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    """Returns the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Agreement:
    """The element-wise maximum of integers over all ranks, on the CPU: it does not wait for an accelerator."""

    def __init__(self) -> None:
        self._group: Any = None

    def __call__(self, values: Sequence[int]) -> list[int]:
        """Returns the maximum of each value over all ranks.

        Args:
            values: integers of this rank, as many on each rank.
        """
        if world_size() == 1:
            return list(values)
        if self._group is None and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        largest: list[int] = tensor.tolist()
        return largest

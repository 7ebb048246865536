"""How many processes train together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Agreement:
    """The largest of what each rank says, on the CPU: no accelerator has to be waited for."""

    def __init__(self) -> None:
        self._group: Any = None

    def __call__(self, values: Sequence[int]) -> list[int]:
        """What all ranks take for true; each has to call this with as many values.

        Args:
            values: one for each question.
        """
        if world_size() == 1:
            return list(values)
        if self._group is None and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")
        agreed = torch.tensor(values)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self._group)
        decided: list[int] = agreed.tolist()
        return decided

"""What a network says about each image of an evaluation, over all ranks and in the order of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Outputs:
    """Labels and probabilities of a set of images, on the CPU.

    Args:
        labels: int64 (n,).
        probabilities: float32 (n, num_classes).
    """

    labels: Tensor
    probabilities: Tensor


class OutputCollector:
    """Accumulates `Outputs` over batches and ranks, without bringing a value to Python in each batch."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._batches)

    def reset(self) -> None:
        """Forgets what was taken in."""
        self._batches.clear()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes in a batch: logits (n, num_classes), labels (n,)."""
        # labels may be a view of all labels, which would travel whole between ranks, or a buffer that is used again
        self._batches.append((labels.detach().clone(), logits.detach().float().softmax(dim=1)))

    def pop(self, trainer: pl.Trainer) -> Outputs:
        """What was taken in on all ranks, which all have to call it, with one batch or more each; starts anew."""
        mine = [(labels.cpu(), probabilities.cpu()) for labels, probabilities in self._batches]
        self.reset()
        labels, probabilities = zip(*in_data_order(trainer, mine), strict=True)
        with torch.inference_mode(False):  # under `validate` it would make tensors that nothing can be computed from
            return Outputs(torch.cat(labels).clone(), torch.cat(probabilities).clone())


def in_data_order(trainer: pl.Trainer, batches: list[T]) -> list[T]:
    """The batches of all ranks, as many on each, in the order of the data."""
    if trainer.world_size == 1:
        return batches
    gathered: list[list[T]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(gathered, batches)
    return [batch for turn in zip(*gathered, strict=True) for batch in turn]  # they take turns: see `EvalLoader.part`

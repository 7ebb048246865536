"""What a network says about each image of an evaluation, over all ranks and in the order of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed
from torch import Tensor

from cifar_resnets.data.loaders import EvalLoader
from cifar_resnets.evaluation.mistakes import Chosen, Samples, TopLosses, classified, joined

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


class SampleCollector:
    """Keeps some images while an evaluation runs, without bringing a value to Python in each batch.

    Args:
        keepers: each keeps images in its own way.
        global_step: of the weights that are evaluated.
    """

    def __init__(self, keepers: Sequence[TopLosses | Chosen], global_step: int) -> None:
        self.keepers, self.global_step = keepers, global_step
        self._num_images = 0

    def update(self, trainer: pl.Trainer, loader: Any, batch_idx: int, batch: Any, logits: Tensor) -> None:
        """Takes in a batch (images, labels) of a loader, and its logits (n, num_classes)."""
        images, labels = batch
        places, total = self._places(trainer, loader, batch_idx, len(labels))
        self._num_images += len(labels)
        index = torch.arange(places.start, places.stop, places.step, device=labels.device)
        # a DistributedSampler repeats the first images, so that all ranks get as many
        samples = classified(images, labels, logits, index if total is None else index % total)
        for keeper in self.keepers:
            keeper.update(samples, places)

    def pop(self, trainer: pl.Trainer) -> list[Samples | None]:
        """What each keeper kept on all ranks, which all have to call it, on the CPU; None if that is nothing."""
        mine = [None if keeper.kept is None else keeper.kept.cpu() for keeper in self.keepers]
        found = zip(*in_data_order(trainer, [mine]), strict=True)
        sets = [[part for part in parts if part is not None] for parts in found]
        return [joined(parts) if parts else None for parts in sets]

    def _places(self, trainer: pl.Trainer, loader: Any, batch_idx: int, num_images: int) -> tuple[range, int | None]:
        """Places in the data of a batch's images, and how many there are in all where that matters."""
        loader = loader[0] if isinstance(loader, (list, tuple)) else loader
        if isinstance(loader, EvalLoader):
            return loader.indices(batch_idx), None
        step = trainer.world_size
        first = self._num_images * step + trainer.global_rank
        dataset: Any = getattr(loader, "dataset", None)
        total = len(dataset) if hasattr(dataset, "__len__") else None
        return range(first, first + num_images * step, step), total

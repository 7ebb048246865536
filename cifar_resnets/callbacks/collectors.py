"""Collects images and predictions while an evaluation runs, over all ranks and in the order of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed
from torch import Tensor

from cifar_resnets.data.loaders import EvalLoader
from cifar_resnets.evaluation.mistakes import HighestLosses, Samples, SamplesAt, classify, concatenate

T = TypeVar("T")


@dataclass(frozen=True)
class Outputs:
    """Labels and probabilities of a set of images, on the CPU."""

    labels: Tensor  # int64 (n,)
    probabilities: Tensor  # float32 (n, num_classes)


class OutputCollector:
    """Accumulates `Outputs` over batches and ranks, without waiting for the device."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._batches)

    def reset(self) -> None:
        """Discards all batches."""
        self._batches.clear()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes in a batch: logits (n, num_classes), labels (n,)."""
        # labels may be a view of all labels, which would be sent whole between ranks, or a buffer that is used again
        self._batches.append((labels.detach().clone(), logits.detach().float().softmax(dim=1)))

    def pop(self, trainer: pl.Trainer) -> Outputs:
        """Returns the batches of all ranks and discards them; all ranks have to call it, with at least one batch."""
        mine = [(labels.cpu(), probabilities.cpu()) for labels, probabilities in self._batches]
        self.reset()
        labels, probabilities = zip(*in_data_order(trainer, mine), strict=True)
        with torch.inference_mode(False):  # `validate` makes inference tensors, which autograd refuses
            return Outputs(torch.cat(labels).clone(), torch.cat(probabilities).clone())


def in_data_order(trainer: pl.Trainer, batches: list[T]) -> list[T]:
    """Returns the batches of all ranks, as many on each, in the order of the data."""
    if trainer.world_size == 1:
        return batches
    gathered: list[list[T]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(gathered, batches)
    return [batch for turn in zip(*gathered, strict=True) for batch in turn]  # they take turns: see `EvalLoader.part`


def image_names(loaders: Any) -> Sequence[str] | None:
    """Returns the names of the images of a loader, or of the only one in a list, in the order of the data.

    Returns:
        None if the images have no names, or the loader does not know them.
    """
    loader = _only(loaders)
    return loader.names if isinstance(loader, EvalLoader) else None


def _only(loaders: Any) -> Any:
    return loaders[0] if isinstance(loaders, (list, tuple)) else loaders


class SampleCollector:
    """Keeps the images that each of `keepers` selects while an evaluation runs, without waiting for the device."""

    def __init__(self, keepers: Sequence[HighestLosses | SamplesAt], global_step: int) -> None:
        self.keepers, self.global_step = keepers, global_step
        self.names: Sequence[str] | None = None  # of all images, in the order of the data
        self._num_images = 0

    def update(self, trainer: pl.Trainer, loaders: Any, batch_idx: int, batch: Any, logits: Tensor) -> None:
        """Takes in a batch (images, labels) of a loader, or of the only one in a list, and its logits (n, classes)."""
        images, labels = batch
        self.names = image_names(loaders)
        places, total = self._places(trainer, loaders, batch_idx, len(labels))
        self._num_images += len(labels)
        index = torch.arange(places.start, places.stop, places.step, device=labels.device)
        # a DistributedSampler repeats the first images, so that all ranks get as many
        samples = classify(images, labels, logits, index if total is None else index % total)
        for keeper in self.keepers:
            keeper.update(samples, places)

    def pop(self, trainer: pl.Trainer) -> list[Samples | None]:
        """Returns what each keeper selects over all ranks, on the CPU, None if nothing; all ranks have to call it."""
        mine = [None if keeper.kept is None else keeper.kept.cpu() for keeper in self.keepers]
        gathered = zip(self.keepers, *in_data_order(trainer, [mine]), strict=True)
        found = [(keeper, [part for part in parts if part is not None]) for keeper, *parts in gathered]
        return [keeper.merge(concatenate(parts)) if parts else None for keeper, parts in found]

    def _places(self, trainer: pl.Trainer, loaders: Any, batch_idx: int, num_images: int) -> tuple[range, int | None]:
        """Returns the places in the data of a batch's images, and the number of all images if it is needed."""
        loader = _only(loaders)
        if isinstance(loader, EvalLoader):
            return loader.indices(batch_idx), None
        step = trainer.world_size
        first = self._num_images * step + trainer.global_rank
        dataset: Any = getattr(loader, "dataset", None)
        total = len(dataset) if hasattr(dataset, "__len__") else None
        return range(first, first + num_images * step, step), total

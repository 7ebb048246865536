"""The images of an evaluation that a gallery shows, over all ranks, by their places in the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from cifar_resnets.analysis.mistakes import Chosen, Samples, TopLosses, classified, joined
from cifar_resnets.callbacks.outputs import in_data_order
from cifar_resnets.data.resident import EvalLoader


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

"""A callback that keeps what an evaluation computes: the probabilities of each batch on each rank, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from cifar_resnets.evaluation.tta import average_views


class KeepsProbabilities(pl.Callback):
    """Writes the probabilities, without and with the views of `model.tta`, to a file for each rank.

    Args:
        path: of the files, without the number of the rank.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        averaged = average_views(pl_module, batch[0], outputs, pl_module.tta)
        self.batches.append((outputs.float().softmax(dim=1), averaged.float().softmax(dim=1)))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save([(one.clone(), other.clone()) for one, other in self.batches], f"{self.path}{trainer.global_rank}")


def kept(path: Path, num_ranks: int, tta: bool) -> Tensor:
    """Returns what was written (n, num_classes) in the order of the data: the ranks take turns."""
    ranks = [torch.load(f"{path}{rank}") for rank in range(num_ranks)]
    return torch.cat([both[tta] for turn in zip(*ranks, strict=True) for both in turn])

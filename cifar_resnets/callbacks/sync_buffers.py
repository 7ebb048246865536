"""Copies the buffers of rank 0 to all ranks before each evaluation and each checkpoint."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import nn

from cifar_resnets.distributed.collectives import world_size


class AgreeingBuffers(pl.Callback):
    """Copies the buffers of rank 0 to all ranks before each evaluation and each checkpoint.

    Without synchronised batch norm, each rank averages the statistics of its own images, until DistributedDataParallel
    broadcasts those of rank 0 in the next forward. Broadcasting them earlier changes no bit of the training. Averages
    over the ranks would: a run would depend on when it was saved and evaluated.
    """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the buffers, also for a validation within a fit and for the sanity check."""
        share_buffers(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the buffers."""
        share_buffers(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the buffers."""
        share_buffers(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Copies the buffers; Lightning does not call this hook for a checkpoint of weights alone."""
        share_buffers(pl_module)


def share_buffers(module: nn.Module) -> None:
    """Copies the buffers of rank 0 to all ranks, in one message of bytes, whatever their types."""
    buffers = [buffer for buffer in module.buffers() if buffer.numel()]
    if world_size() == 1 or not buffers:
        return
    parts = [buffer.detach().contiguous().view(-1).view(torch.uint8) for buffer in buffers]
    message = torch.cat(parts)
    dist.broadcast(message, src=0)
    received = torch.split(message, [len(part) for part in parts])
    with torch.no_grad():
        for buffer, part in zip(buffers, received, strict=True):
            # a clone, because its offset in the message may be no multiple of the type's size
            buffer.copy_(part.clone().view(buffer.dtype).view(buffer.shape))

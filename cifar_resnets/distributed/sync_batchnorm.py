"""Batch normalisation with the statistics of the whole batch on several ranks."""

import functools
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import TorchSyncBatchNorm
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_resnets.distributed.collectives import world_size
from cifar_resnets.errors import ConfigurationError


class BatchNormSync(TorchSyncBatchNorm):
    """Computes batch statistics over all ranks in training (`--trainer.sync_batchnorm true`).

    Lightning's plugin refuses the CPU, and drops the activation of timm's layers that have one. Here a layer stays the
    same object, with its parameters, buffers and hooks, and changes its class, as with `torch.nn.utils.parametrize`:
    `torch.nn.SyncBatchNorm` on a GPU, the same computation in plain torch on the CPU.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronises the batch-norm layers of a LightningModule.

        Args:
            model: LightningModule of a Trainer that sets it up.

        Returns:
            The same module.

        Raises:
            ConfigurationError: if a layer has a forward of its own, which would not be called.
        """
        device = cast(pl.LightningModule, model).trainer.strategy.root_device
        how = _OnCPU if device.type == "cpu" else nn.SyncBatchNorm
        for name, layer in model.named_modules():
            if isinstance(layer, _BatchNorm) and not isinstance(layer, (nn.SyncBatchNorm, _Synchronised)):
                _check(name, type(layer))
                layer.__class__ = _synchronised(type(layer), how)  # type: ignore[arg-type]  # a class has a hash
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Restores the classes of the layers."""
        for layer in model.modules():
            if isinstance(layer, _Synchronised):
                layer.__class__ = layer.own_class  # type: ignore[assignment]  # of what is no longer one of these
        return model


def _check(name: str, kind: type[_BatchNorm]) -> None:
    if kind.forward not in (_BatchNorm.forward, BatchNormAct2d.forward):
        what = f"{name} is a {kind.__name__}, which cannot be synchronised"
        raise ConfigurationError(f"trainer.sync_batchnorm: {what}, give false")


class _Synchronised(nn.Module):
    """The first base class of a synchronised layer; the second is `nn.SyncBatchNorm` or `_OnCPU`."""

    own_class: type[_BatchNorm]  # the third
    process_group = None  # of nn.SyncBatchNorm: all ranks

    def forward(self, images: Tensor) -> Tensor:
        normalised: Tensor = super().forward(images)
        if isinstance(self, BatchNormAct2d):  # its own forward is not called
            normalised = self.act(self.drop(normalised))
        return normalised


@functools.cache
def _synchronised(own_class: type[_BatchNorm], how: type[_BatchNorm]) -> type[_BatchNorm]:
    bases = (_Synchronised, how, own_class)
    return type(f"Synchronised{own_class.__name__}", bases, {"own_class": own_class})


class _OnCPU(_BatchNorm):
    """Does for CPU tensors what `nn.SyncBatchNorm` does on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return _BatchNorm.forward(self, input)  # not super(): a timm layer would apply its activation
        self._check_input_dim(input)  # type: ignore[no-untyped-call]  # of torch
        normalised, mean, variance = _normalise(input, self.eps)
        if self.track_running_stats:
            self._follow(mean, variance)
        if self.weight is not None:
            normalised = normalised * _along(self.weight, input)
        if self.bias is not None:
            normalised = normalised + _along(self.bias, input)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(new.to(running.dtype), momentum)


def _normalise(images: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises images (n, c, ...) of this rank with the statistics of all ranks, which may differ in n.

    The squares are summed around the mean: a difference of sums loses a small variance beside a large mean.

    Returns:
        The images in float32 or float64; mean and unbiased variance of each channel (c,) in float64.
    """
    dims = [0, *range(2, images.ndim)]
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    sums, num = images.sum(dims, dtype=torch.float64), images.numel() // images.shape[1]
    total = _sum_over_ranks(torch.cat([sums, sums.new_tensor([num])]))
    count = total[-1]
    mean = total[:-1] / count
    centred = images - _along(mean, images)
    squares = _sum_over_ranks(centred.square().sum(dims, dtype=torch.float64))
    scale = (squares / count + eps).rsqrt()
    return centred * _along(scale, images), mean, squares / (count - 1)


def _along(values: Tensor, images: Tensor) -> Tensor:
    """Reshapes one value a channel to broadcast with images (n, c, ...), in their dtype."""
    return values.to(images.dtype).view(1, -1, *[1] * (images.ndim - 2))


class _SumOverRanks(torch.autograd.Function):
    """Sums over ranks, with a gradient; the function of torch.distributed.nn is deprecated."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # the loss of each rank depends on the values of all ranks
        return _sum_over_ranks(gradients[0])


def _sum_over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)
    return total

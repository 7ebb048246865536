"""A network that gradients can flow through without a trace, whatever mode it and PyTorch are in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from cifar_resnets.analysis.isolation import evaluating, exchanged

__all__ = ["like_network", "plain_network", "sandboxed"]


def plain_network(network: nn.Module) -> nn.Module:
    """The network that `torch.compile` wrapped, or the network itself."""
    return getattr(network, "_orig_mod", network)


@contextmanager
def sandboxed(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Makes a network one of constants, uncompiled, in evaluation mode; gradients are on, autocast is off.

    Since no parameter requires a gradient within, a graph begins where a tensor is made to require one, frozen
    parameters make no difference, and no parameter ever gets a gradient. Afterwards everything is as before: modes,
    parameters, buffers, what modules remember, the random numbers of PyTorch's CPU, NumPy and Python, and the caller's
    gradient, inference and autocast modes.

    Args:
        network: without its compiling wrapper.
        images: that it is to run on.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
        _random_numbers_kept(),
        evaluating(network),
        exchanged(network, _constant),
    ):
        yield


def like_network(network: nn.Module, images: Tensor) -> Tensor:
    """A copy of images on the device and in the precision of a network, which gradients can be taken of."""
    tensors = chain(network.parameters(), network.buffers(), [images])
    place = next(tensor for tensor in tensors if tensor.is_floating_point())
    # detached first, cloned second: a view of an inference tensor stays one
    return images.detach().to(place.device, place.dtype, copy=True)


def _constant(tensor: Tensor) -> Tensor:
    """Parameters without a copy; buffers with one, because a forward pass may write into them."""
    shares = isinstance(tensor, nn.Parameter) and not tensor.is_inference()
    return tensor.detach() if shares else tensor.detach().clone()


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Those of NumPy and Python; `evaluating` keeps PyTorch's."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)

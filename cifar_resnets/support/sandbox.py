"""A network that gradients can flow through without a trace, whatever mode it and PyTorch are in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["like_network", "plain_network", "random_numbers_kept", "sandboxed"]


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
        random_numbers_kept(),
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
def random_numbers_kept() -> Iterator[None]:
    """Restores the random numbers of NumPy and Python at the end of the block, also after an exception."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


MODULE = frozenset(vars(nn.Module()))  # what every module has, and PyTorch looks after


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Runs a network in evaluation mode; restores its modes, what its modules remember, and the random numbers."""
    modes = {each: each.training for each in module.modules()}
    memories = {each: _memory(each) for each in module.modules()}
    with torch.random.fork_rng(devices=[]):
        module.eval()
        try:
            yield
        finally:
            for each, mode in modes.items():
                each.training = mode
            for each, memory in memories.items():
                _restore(each, memory)


@contextmanager
def exchanged(module: nn.Module, exchange: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Runs a network with other parameters and buffers.

    Not by `torch.func.functional_call`, which leaves the others in a module that has two names.
    """
    places: list[Any] = [place for each in module.modules() for place in (each._parameters, each._buffers)]
    contents = [dict(place) for place in places]
    made: dict[int, Tensor] = {}  # so that what was shared still is
    try:
        for place, content in zip(places, contents, strict=True):
            for name, tensor in content.items():
                if tensor is not None:
                    made[id(tensor)] = place[name] = made[id(tensor)] if id(tensor) in made else exchange(tensor)
        yield
    finally:
        for place, content in zip(places, contents, strict=True):
            place.clear()
            place.update(content)


def _memory(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """A module's own attributes, and the contents of those that hold others, such as a cache."""
    own = {name: value for name, value in vars(module).items() if name not in MODULE}
    return {name: (value, value.copy() if type(value) in (dict, list, set) else None) for name, value in own.items()}


def _restore(module: nn.Module, memory: Mapping[str, tuple[Any, Any]]) -> None:
    for name in [name for name in vars(module) if name not in MODULE and name not in memory]:
        del vars(module)[name]
    for name, (value, content) in memory.items():
        vars(module)[name] = value
        if content is None:
            continue
        value.clear()
        (value.extend if isinstance(value, list) else value.update)(content)

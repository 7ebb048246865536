"""Runs a network, with or without gradients, in any mode of PyTorch, and restores it afterwards."""

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
    """Returns the network that `torch.compile` has wrapped, or the network itself."""
    return getattr(network, "_orig_mod", network)


@contextmanager
def sandboxed(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Turns parameters into constants and compilation off, in evaluation mode; gradients are on, autocast is off.

    Since no parameter requires a gradient within, a graph begins where a tensor is made to require one, frozen
    parameters make no difference, and no parameter gets a gradient. At the end, everything is restored: modes,
    parameters, buffers, attributes of modules, the random numbers of PyTorch's CPU, NumPy and Python, and the caller's
    gradient, inference and autocast modes.

    Args:
        network: without the wrapper of `torch.compile`.
        images: the images that it will run on.
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
    """Copies images to the device and precision of a network, so that gradients can be taken with respect to them."""
    tensors = chain(network.parameters(), network.buffers(), [images])
    like = next(tensor for tensor in tensors if tensor.is_floating_point())
    # detached before the copy, because a view of an inference tensor is one, too
    return images.detach().to(like.device, like.dtype, copy=True)


def _constant(tensor: Tensor) -> Tensor:
    """Detaches a tensor; copies a buffer, because a forward pass may write into it."""
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


MODULE = frozenset(vars(nn.Module()))  # attributes of every module, which PyTorch manages


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a network in evaluation mode; restores its modes, attributes and PyTorch's random numbers at the end."""
    modes = {each: each.training for each in module.modules()}
    attributes = {each: _attributes(each) for each in module.modules()}
    with torch.random.fork_rng(devices=[]):
        module.eval()
        try:
            yield
        finally:
            for each, mode in modes.items():
                each.training = mode
            for each, saved in attributes.items():
                _restore(each, saved)


@contextmanager
def exchanged(module: nn.Module, exchange: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replaces the parameters and buffers of a network, and restores them at the end.

    `torch.func.functional_call` does not restore those of a module that is registered under two names.
    """
    places: list[Any] = [place for each in module.modules() for place in (each._parameters, each._buffers)]
    contents = [dict(place) for place in places]
    made: dict[int, Tensor] = {}  # by the id of the original, so that shared tensors stay shared
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


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Returns a module's own attributes, each with a copy if it is a container, such as a cache."""
    own = {name: value for name, value in vars(module).items() if name not in MODULE}
    return {name: (value, value.copy() if type(value) in (dict, list, set) else None) for name, value in own.items()}


def _restore(module: nn.Module, attributes: Mapping[str, tuple[Any, Any]]) -> None:
    for name in [name for name in vars(module) if name not in MODULE and name not in attributes]:
        del vars(module)[name]
    for name, (value, content) in attributes.items():
        vars(module)[name] = value
        if content is None:
            continue
        value.clear()
        (value.extend if isinstance(value, list) else value.update)(content)

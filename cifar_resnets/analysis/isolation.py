"""Running a network without a trace: nothing of it changes, and no value leaves PyTorch's sight unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Escapes", "evaluating", "exchanged"]

MODULE = frozenset(vars(nn.Module()))  # what every module has, and PyTorch looks after
ESCAPES = {
    Tensor.numpy: "numpy",
    Tensor.__array__: "numpy",
    Tensor.tolist: "tolist",
    Tensor.untyped_storage: "untyped_storage",
    Tensor.__dlpack__: "dlpack",
    Tensor.data.__get__: "data",  # type: ignore[attr-defined]
    Tensor.data.__set__: "data",  # type: ignore[attr-defined]
}


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


class Escapes(TorchFunctionMode):
    """Notices where values of a tensor leave PyTorch's sight, by which they could come back as if from nowhere.

    Args:
        escaped: is called with the tensor and the name of the attribute.
    """

    def __init__(self, escaped: Callable[[Tensor, str], None]) -> None:
        super().__init__()
        self.escaped = escaped

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ESCAPES:
            for tensor in args:
                if isinstance(tensor, Tensor):
                    self.escaped(tensor, ESCAPES[func])
        return func(*args, **(kwargs or {}))

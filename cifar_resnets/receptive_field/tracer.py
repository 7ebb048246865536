"""Runs a network once, on tensors without content, and follows what each operation does to an image's pixels.

No list of architectures is needed, and control flow of any kind is no obstacle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.escapes import Escapes
from cifar_resnets.receptive_field.features import Features, image_features, plain_layout
from cifar_resnets.receptive_field.rules.registry import (
    Pair,
    Step,
    by_name,
    common_name,
    features_in,
    follow,
    shapes_of,
)
from cifar_resnets.support.sandbox import evaluating, exchanged

__all__ = ["InputSize", "Record", "Tracer", "evaluating", "name_of", "trace"]

InputSize = int | Sequence[int]


@dataclass(frozen=True)
class Record:
    """A layer, or an operation outside of any, that a network came to.

    Args:
        layer: name of the module.
        type: class of the module, or name of the operation.
        inputs: what it works on, as far as it depends on the image.
        step: what it does.
        parameters: of the module, where it is called for the first time.
    """

    layer: str
    type: str
    inputs: list[Features]
    step: Step
    parameters: int

    @property
    def output(self) -> Features:
        """The features that it returns; the first of several."""
        outputs = (self.step.output,) if isinstance(self.step.output, Features) else self.step.output
        return next((features for features in outputs if features.axes), outputs[0])


def trace(module: nn.Module, input_size: InputSize) -> tuple[Tracer, list[str]]:
    """Follows an image through a network; returns what was found, and what a reader should know of how.

    Raises:
        ConfigurationError: see `summarize`.
    """
    if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
        raise ConfigurationError(
            f"{name_of(module)}: TorchScript cannot be followed, give the network it was made from"
        )
    tracer = Tracer(module, full_size(module, input_size))
    notes = []
    with torch.inference_mode(False), torch.no_grad(), tracer.watching():
        try:
            with evaluating(module):
                _run_without_content(module, tracer)
        except ConfigurationError:
            raise
        except Exception as error:  # whatever a network does that tensors without content cannot
            notes.append(f"followed on real tensors, because it cannot run without: {_first_line(error)}")
            tracer.restart()
            with evaluating(module):
                _run(module, tracer)
    return tracer, notes + [f"{place}: goes on as for an image of zeros" for place in tracer.decisions]


def full_size(module: nn.Module, input_size: InputSize) -> tuple[int, int, int]:
    """Channels, height and width of an image for a network.

    Raises:
        ConfigurationError: when these are not one, two or three positive numbers.
    """
    sizes = [input_size] if isinstance(input_size, int) else list(input_size)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ConfigurationError(f"input_size: {input_size} is not allowed, give a side, height and width, or c, h, w")
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    return getattr(module, "in_chans", 3), sizes[0], sizes[-1]


def name_of(module: nn.Module) -> str:
    """The name of a network in timm's registry, or its class."""
    return str(getattr(module, "pretrained_cfg", {}).get("architecture") or type(module).__name__)


def _run_without_content(module: nn.Module, tracer: Tracer) -> None:
    images = torch.empty(1, *tracer.size, device="meta", dtype=_dtype(module))
    with exchanged(module, lambda tensor: tensor.detach().to("meta")), tracer.following(images):
        module(images)


def _run(module: nn.Module, tracer: Tracer) -> None:
    device = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0)).device
    images = torch.zeros(1, *tracer.size, device=device, dtype=_dtype(module))
    try:
        with exchanged(module, lambda tensor: tensor.detach().clone()), tracer.following(images):
            module(images)
    except ConfigurationError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        channels, height, width = tracer.size
        raise ConfigurationError(
            f"input_size: at {tracer.place}, the network does not take images of {height}x{width} pixels "
            f"and {channels} channels: {_first_line(error)}"
        ) from error


def _dtype(module: nn.Module) -> torch.dtype:
    floating = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return next(floating, torch.get_default_dtype())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass
class _Call:
    """A module that is running."""

    name: str
    module: nn.Module
    steps: list[tuple[str, list[Features], Step]] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        return next(self.module.children(), None) is None


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which module is running, follows each operation, and makes rows of them."""

    def __init__(self, module: nn.Module, size: tuple[int, int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.module, self.size = module, size
        self.restart()

    def restart(self) -> None:
        """Forgets what was followed."""
        self.decisions: dict[str, None] = {}  # modules that branch by what they see, in order
        self.records: list[Record] = []
        self.outputs: list[tuple[str, Features]] = []
        self.calls = [_Call("", self.module)]
        self.seen: Any = WeakTensorKeyDictionary()
        self.newest: list[Tensor] = []
        self.uncounted = {id(p): p.numel() for p in self.module.parameters()}
        self.owned = {
            name: [id(parameter) for parameter in each.parameters(recurse=False)]
            for name, each in self.module.named_modules()
        }

    @property
    def place(self) -> str:
        """The module that is running."""
        return self.calls[-1].name or type(self.module).__name__

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes which module is running."""
        handles = []
        for name, module in self.module.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True))
                handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        return lambda module, _: self.calls.append(_Call(name, module))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        call = self.calls.pop()
        self._emit(call)
        if isinstance(output, Tensor) and output in self.seen:
            self.outputs.append((call.name, self.seen[output][0]))

    @contextmanager
    def following(self, images: Tensor) -> Iterator[None]:
        """Follows the operations on images."""
        self._note(images, image_features(images.shape))
        with Escapes(self._escaped), self:
            yield
        self._emit(self.calls[0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in self.newest:  # PyTorch counts changes in place only after the call below has returned
            self.seen[tensor] = (self.seen[tensor][0], tensor._version)
        arguments = by_name(func, args, kwargs or {})
        inputs = tree_map(self._features, arguments)
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not isinstance(output, (Tensor, list, tuple)):
            return self._told(name, args[0], output) if output is not None else output
        try:
            step = follow(name, torch.Tag.pointwise in func.tags, inputs, shapes_of(output))
        except ValueError as error:
            raise ConfigurationError(f"{self.place}: the operation {name} {error}") from error
        self._note(output, step.output)
        self._took(name, features_in(inputs), step)
        return output

    def _told(self, name: str, value: Any, output: Any) -> Any:
        """A value becomes a number outside of PyTorch: followed on if it only decides something."""
        if isinstance(value, Tensor) and self._features(value).axes:
            if name != "_local_scalar_dense" or value.dtype != torch.bool:
                raise ConfigurationError(
                    f"{self.place}: the operation {name} makes a number of what depends on the image"
                )
            self.decisions[self.place] = None
        return output

    def _escaped(self, tensor: Tensor, name: str) -> None:
        if tensor in self.seen and self.seen[tensor][0].axes:
            raise ConfigurationError(f"{self.place}: {name} gives access to values that cannot be followed")

    def _features(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value not in self.seen:  # a parameter, a buffer
            self.seen[value] = (Features(plain_layout(value.shape)), value._version)
        features, version = self.seen[value]
        if value._version != version:
            raise ConfigurationError(f"{self.place}: a tensor was changed in place through a view of it")
        return features

    def _note(self, output: Any, features: Any) -> None:
        outputs = [output] if isinstance(output, Tensor) else output
        features = [features] if isinstance(features, Features) else features
        found = [(tensor, each) for tensor, each in zip(outputs or (), features, strict=True) if tensor is not None]
        for tensor, each in found:
            self.seen[tensor] = (each, tensor._version)
        self.newest = [tensor for tensor, _ in found]

    def _took(self, name: str, inputs: list[Features], step: Step) -> None:
        inputs = [features for features in inputs if features.axes]
        if not step.kind or not inputs:
            return
        call = self.calls[-1]
        call.steps.append((name, inputs, step))
        if not call.is_leaf:
            self._emit(call)

    def _emit(self, call: _Call) -> None:
        """Makes rows of what a module did itself: one for a leaf such as a convolution, else one for each step."""
        steps, call.steps = call.steps, []
        windows = [step for _, _, step in steps if step.kind in ("conv", "pool", "linear")]
        if call.is_leaf and steps and len(windows) <= 1 and all(step.kind != "merge" for _, _, step in steps):
            (_, inputs, first), (_, _, last) = steps[0], steps[-1]
            main = windows[0] if windows else first
            step = replace(
                main,
                output=last.output,
                stride=_pairwise(math.prod, [step.stride for _, _, step in steps]),
                padding=_pairwise(sum, [step.padding for _, _, step in steps]),
                note=" ".join(step.note for _, _, step in steps if step.note),
            )
            self._add(call, type(call.module).__name__, inputs, step)
            return
        for name, inputs, step in steps:
            owns = any(key in self.uncounted for key in self.owned.get(call.name, ()))
            if step.kind != "point" or owns:
                own_type = step.kind in ("conv", "linear", "norm") and owns
                self._add(call, type(call.module).__name__ if own_type else common_name(name), inputs, step)

    def _add(self, call: _Call, kind: str, inputs: list[Features], step: Step) -> None:
        parameters = sum(self.uncounted.pop(key, 0) for key in self.owned.get(call.name, ()))
        self.records.append(Record(call.name or type(self.module).__name__, kind, inputs, step, parameters))


def _pairwise(combine: Any, pairs: Sequence[Pair]) -> Pair:
    heights, widths = zip(*pairs, strict=True)
    return combine(heights), combine(widths)

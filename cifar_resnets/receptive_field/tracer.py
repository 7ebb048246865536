"""Traces a network: runs it once on tensors without content, and applies a rule to each operation.

The tracer needs no list of architectures, and follows any control flow.
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
from cifar_resnets.receptive_field.rules.base import Operation, Pair, features_in
from cifar_resnets.receptive_field.rules.registry import by_name, common_name, follow, shapes_of
from cifar_resnets.support.sandbox import evaluating, exchanged

InputSize = int | Sequence[int]


@dataclass(frozen=True)
class Record:
    """A module that a network has called, or an operation outside of one.

    Args:
        layer: name of the module.
        type: class of the module, or name of the operation.
        inputs: those that depend on the image.
        operation: the operation that it applies.
        parameters: number of the module's parameters at its first call; 0 at later calls.
    """

    layer: str
    type: str
    inputs: list[Features]
    operation: Operation
    parameters: int

    @property
    def output(self) -> Features:
        """The first of its outputs that depends on the image."""
        outputs = self.operation.output
        outputs = (outputs,) if isinstance(outputs, Features) else outputs
        return next((features for features in outputs if features.axes), outputs[0])


def trace(module: nn.Module, input_size: InputSize) -> tuple[Tracer, list[str]]:
    """Traces an image through a network.

    Returns:
        The tracer with its records, and notes for the reader on how they were obtained.

    Raises:
        ConfigurationError: see `summarize`.
    """
    if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
        raise ConfigurationError(
            f"{name_of(module)}: TorchScript cannot be followed, give the network it was made from"
        )
    tracer = Tracer(module, full_size(module, input_size))
    notes = []
    with torch.inference_mode(False), torch.no_grad(), tracer.watching_modules():
        try:
            with evaluating(module):
                _run_without_content(module, tracer)
        except ConfigurationError:
            raise
        except Exception as error:  # a network may raise anything on tensors without content
            notes.append(f"followed on real tensors, because it cannot run without: {_first_line(error)}")
            tracer.reset()
            with evaluating(module):
                _run(module, tracer)
    return tracer, notes + [f"{place}: goes on as for an image of zeros" for place in tracer.decisions]


def full_size(module: nn.Module, input_size: InputSize) -> tuple[int, int, int]:
    """Returns channels, height and width of the images of a network.

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
    """Returns the name of a network in timm's registry, or that of its class."""
    return str(getattr(module, "pretrained_cfg", {}).get("architecture") or type(module).__name__)


def _run_without_content(module: nn.Module, tracer: Tracer) -> None:
    images = torch.empty(1, *tracer.size, device="meta", dtype=_dtype(module))
    with exchanged(module, lambda tensor: tensor.detach().to("meta")), tracer.following_operations(images):
        module(images)


def _run(module: nn.Module, tracer: Tracer) -> None:
    device = next(iter([*module.parameters(), *module.buffers()]), torch.empty(0)).device
    images = torch.zeros(1, *tracer.size, device=device, dtype=_dtype(module))
    try:
        with exchanged(module, lambda tensor: tensor.detach().clone()), tracer.following_operations(images):
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
    """A call of a module that has not returned."""

    name: str
    module: nn.Module
    operations: list[tuple[str, list[Features], Operation]] = field(default_factory=list)

    @property
    def is_leaf(self) -> bool:
        return next(self.module.children(), None) is None


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies a rule to each operation of a network, and records those of each module.

    Attributes:
        size: channels, height and width of the image.
        records: of the modules and operations that depend on the image, in their order.
        outputs: name and features of each module that has returned, in their order.
        decisions: names of modules whose control flow depends on the image.
    """

    def __init__(self, module: nn.Module, size: tuple[int, int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.module, self.size = module, size
        self.reset()

    def reset(self) -> None:
        """Discards all records."""
        self.decisions: dict[str, None] = {}  # an ordered set
        self.records: list[Record] = []
        self.outputs: list[tuple[str, Features]] = []
        self.calls = [_Call("", self.module)]
        self.known: Any = WeakTensorKeyDictionary()  # features and version of each tensor
        self.newest: list[Tensor] = []
        self.uncounted = {id(p): p.numel() for p in self.module.parameters()}
        self.owned = {
            name: [id(parameter) for parameter in each.parameters(recurse=False)]
            for name, each in self.module.named_modules()
        }

    @property
    def place(self) -> str:
        """Name of the module that is running."""
        return self.calls[-1].name or type(self.module).__name__

    @contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Keeps track of the module that is running."""
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
        if isinstance(output, Tensor) and output in self.known:
            self.outputs.append((call.name, self.known[output][0]))

    @contextmanager
    def following_operations(self, images: Tensor) -> Iterator[None]:
        """Applies rules to the operations on images."""
        self._set_features(images, image_features(images.shape))
        with Escapes(self._check_escape), self:
            yield
        self._emit(self.calls[0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in self.newest:  # PyTorch counts a change in place only after `__torch_dispatch__` has returned
            self.known[tensor] = (self.known[tensor][0], tensor._version)
        arguments = by_name(func, args, kwargs or {})
        inputs = tree_map(self._features, arguments)
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not isinstance(output, (Tensor, list, tuple)):
            return self._check_number(name, args[0], output) if output is not None else output
        try:
            operation = follow(name, torch.Tag.pointwise in func.tags, inputs, shapes_of(output))
        except ValueError as error:
            raise ConfigurationError(f"{self.place}: the operation {name} {error}") from error
        self._set_features(output, operation.output)
        self._add_operation(name, features_in(inputs), operation)
        return output

    def _check_number(self, name: str, value: Any, output: Any) -> Any:
        """Refuses a Python number that depends on the image, unless it is a bool, which decides a branch."""
        if isinstance(value, Tensor) and self._features(value).axes:
            if name != "_local_scalar_dense" or value.dtype != torch.bool:
                raise ConfigurationError(
                    f"{self.place}: the operation {name} makes a number of what depends on the image"
                )
            self.decisions[self.place] = None
        return output

    def _check_escape(self, tensor: Tensor, name: str) -> None:
        if tensor in self.known and self.known[tensor][0].axes:
            raise ConfigurationError(f"{self.place}: {name} gives access to values that cannot be followed")

    def _features(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value not in self.known:  # a parameter, a buffer
            self.known[value] = (Features(plain_layout(value.shape)), value._version)
        features, version = self.known[value]
        if value._version != version:
            raise ConfigurationError(f"{self.place}: a tensor was changed in place through a view of it")
        return features

    def _set_features(self, output: Any, features: Any) -> None:
        outputs = [output] if isinstance(output, Tensor) else output
        features = [features] if isinstance(features, Features) else features
        found = [(tensor, each) for tensor, each in zip(outputs or (), features, strict=True) if tensor is not None]
        for tensor, each in found:
            self.known[tensor] = (each, tensor._version)
        self.newest = [tensor for tensor, _ in found]

    def _add_operation(self, name: str, inputs: list[Features], operation: Operation) -> None:
        inputs = [features for features in inputs if features.axes]
        if not operation.kind or not inputs:
            return
        call = self.calls[-1]
        call.operations.append((name, inputs, operation))
        if not call.is_leaf:
            self._emit(call)

    def _emit(self, call: _Call) -> None:
        """Records a module's own operations: all in one for a leaf such as a convolution, else one by one."""
        pending, call.operations = call.operations, []
        operations = [operation for _, _, operation in pending]
        windows = [each for each in operations if each.kind in ("conv", "pool", "linear")]
        if call.is_leaf and operations and len(windows) <= 1 and all(each.kind != "merge" for each in operations):
            joined = replace(
                windows[0] if windows else operations[0],
                output=operations[-1].output,
                stride=_pairwise(math.prod, [each.stride for each in operations]),
                padding=_pairwise(sum, [each.padding for each in operations]),
                note=" ".join(each.note for each in operations if each.note),
            )
            self._record(call, type(call.module).__name__, pending[0][1], joined)
            return
        for name, inputs, operation in pending:
            owns = any(key in self.uncounted for key in self.owned.get(call.name, ()))
            if operation.kind != "point" or owns:
                own_type = operation.kind in ("conv", "linear", "norm") and owns
                self._record(call, type(call.module).__name__ if own_type else common_name(name), inputs, operation)

    def _record(self, call: _Call, kind: str, inputs: list[Features], operation: Operation) -> None:
        parameters = sum(self.uncounted.pop(key, 0) for key in self.owned.get(call.name, ()))
        self.records.append(Record(call.name or type(self.module).__name__, kind, inputs, operation, parameters))


def _pairwise(combine: Any, pairs: Sequence[Pair]) -> Pair:
    heights, widths = zip(*pairs, strict=True)
    return combine(heights), combine(widths)

"""The theoretical receptive field of every layer, from the operations that a network runs.

The network is traced once on tensors without content, see `tracer.py`.

Source: Araujo, Norris and Sim (2019), "Computing receptive fields of convolutional neural networks", Distill, sections
2 to 4; here also for the path with the smallest field, and through every operation in `rules.registry.RULES`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features
from cifar_resnets.receptive_field.rules.base import Pair
from cifar_resnets.receptive_field.tracer import InputSize, Record, name_of, trace


@dataclass(frozen=True)
class Layer:
    """A row of the table: a module, or an operation outside of one. Pairs are height and width.

    Args:
        layer: name of the module.
        type: class of the module, or name of the operation.
        kernel_size, padding, stride, dilation: in units of the layer before.
        groups: of a convolution.
        image_size_in, image_size_out: number of units.
        jump_in, jump_out: pixels of the image from one unit to the next.
        receptive_field_in, receptive_field_out: pixels, over all paths; infinite if each unit sees the whole image.
        min_receptive_field_in, min_receptive_field_out: pixels, through the path with the smallest field.
        start: centre of the first unit's field in pixels from the image's border; NaN if it sees the whole image.
        in_channels, out_channels: of the features.
        parameters: number of the module's parameters at its first call; 0 at later calls.
        multiply_adds: for one image.
        exceeds_image: whether the field is larger than the image, along either axis.
        note: a remark for the reader.
    """

    layer: str
    type: str
    kernel_size: Pair
    padding: Pair
    stride: Pair
    dilation: Pair
    groups: int
    image_size_in: Pair
    image_size_out: Pair
    jump_in: tuple[float, float]
    jump_out: tuple[float, float]
    receptive_field_in: tuple[float, float]
    receptive_field_out: tuple[float, float]
    min_receptive_field_in: tuple[float, float]
    min_receptive_field_out: tuple[float, float]
    start: tuple[float, float]
    in_channels: int
    out_channels: int
    parameters: int
    multiply_adds: int
    exceeds_image: bool
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """All layers of a network in the order in which they run.

    Args:
        network: name in timm's registry, or class.
        input_size: channels, height and width of an image.
        layers: a row for each.
        parameters: number of parameters of the whole network, including modules that were not called.
        notes: remarks for the reader.
    """

    network: str
    input_size: tuple[int, int, int]
    layers: list[Layer]
    parameters: int
    notes: list[str] = field(default_factory=list)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one image."""
        return sum(layer.multiply_adds for layer in self.layers)


def summarize(module: nn.Module, input_size: InputSize = 32) -> Summary:
    """Computes the receptive fields of all layers of a network.

    Args:
        module: any network that takes a batch of images (n, c, h, w). It is not changed.
        input_size: of an image: one side, (height, width), or (channels, height, width), in pixels.

    Raises:
        ConfigurationError: for an operation that cannot be followed, with the layer's name; or when the network does
            not take such images.
    """
    tracer, notes = trace(module, input_size)
    layers = [_layer(record, tracer.size[1:]) for record in tracer.records]
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if unused := parameters - sum(layer.parameters for layer in layers):
        notes.append(f"{unused:,} parameters stand in no row: not called, or only looked up")
    notes += [f"{layer.layer}: {layer.note}" for layer in layers if layer.note]
    return Summary(name_of(module), tracer.size, layers, parameters, notes)


def _layer(record: Record, size: Sequence[int]) -> Layer:
    operation, output = record.operation, record.output
    in_channels, out_channels = operation.channels or (_channels(record.inputs[0]), _channels(output))
    receptive_field = _values(output, "receptive_field")
    return Layer(
        layer=record.layer,
        type=record.type,
        kernel_size=operation.kernel,
        padding=operation.padding,
        stride=operation.stride,
        dilation=operation.dilation,
        groups=operation.groups,
        image_size_in=_sizes(record.inputs[0]),
        image_size_out=_sizes(output),
        jump_in=_values(record.inputs[0], "jump"),
        jump_out=_values(output, "jump"),
        receptive_field_in=_over(max, record.inputs, "receptive_field"),
        receptive_field_out=receptive_field,
        min_receptive_field_in=_over(min, record.inputs, "min_receptive_field"),
        min_receptive_field_out=_values(output, "min_receptive_field"),
        start=_values(output, "start"),
        in_channels=in_channels,
        out_channels=out_channels,
        parameters=record.parameters,
        multiply_adds=operation.macs,
        exceeds_image=any(field > side for field, side in zip(receptive_field, size, strict=True)),
        note=operation.note,
    )


def _values(features: Features, name: str) -> tuple[float, float]:
    height, width = (float(getattr(features.axes[axis], name)) for axis in (HEIGHT, WIDTH))
    return height, width


def _over(choose: Callable[[Iterable[float]], float], inputs: Sequence[Features], name: str) -> tuple[float, float]:
    heights, widths = zip(*(_values(features, name) for features in inputs), strict=True)
    return choose(heights), choose(widths)


def _sizes(features: Features) -> Pair:
    height, width = (1 if features.is_fixed(name) else features.axes[name].size for name in (HEIGHT, WIDTH))
    return height, width


def _channels(features: Features) -> int:
    """Returns the number of values for each unit of the image."""
    return math.prod(part.size for dimension in features.layout[1:] for part in dimension if not part.axis)

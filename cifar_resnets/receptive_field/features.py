"""Features: a tensor's dimensions, and the receptive fields along the axes of the image in them.

A dimension is a product of parts: channels, heads or batch (plain parts), and units along the image's height and
width. `flatten(2)` makes one dimension of two parts, a channel shuffle splits a plain part, windows split an axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from cifar_resnets.receptive_field.fields import Axis, image_axis, merge_axes

HEIGHT, WIDTH = "height", "width"
TOKENS = "tokens"  # a row of units along both axes, and of tokens without a field, such as class tokens


@dataclass(frozen=True)
class Part:
    """A factor of a dimension's size.

    Args:
        size: of the factor.
        axis: HEIGHT, WIDTH or TOKENS; empty for a plain part.
        stride: units of the axis from one index to the next.
        rows: the concatenated dimensions of a part of TOKENS.
    """

    size: int
    axis: str = ""
    stride: int = 1
    rows: tuple[tuple[Part, ...], ...] = ()


Dimension = tuple[Part, ...]


@dataclass(frozen=True)
class Features:
    """The layout and the receptive fields of a tensor.

    Args:
        layout: the parts of each dimension.
        axes: of the image, by name; empty if the tensor does not depend on the image. If the layout has no part of an
            axis, all elements have the same field along it, as after a global pooling.
    """

    layout: tuple[Dimension, ...]
    axes: dict[str, Axis] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(math.prod(part.size for part in dimension) for dimension in self.layout)

    @property
    def sees_all(self) -> bool:
        """Whether each element sees the whole image."""
        return all(axis.sees_all for axis in self.axes.values())

    def parts(self, name: str) -> list[Part]:
        """Returns the parts of an axis, including TOKENS."""
        return [part for dimension in self.layout for part in dimension if part.axis in (name, TOKENS)]

    def is_fixed(self, name: str) -> bool:
        """Returns whether all elements have the same field along an axis of the image."""
        return not self.parts(name)

    def reshaped(self, shape: Sequence[int]) -> Features:
        """Returns the features after a view; unchanged dimensions at either end keep their parts.

        Raises:
            ValueError: when the view splits units of the image in a way that cannot be followed.
        """
        old = self.shape
        if math.prod(old) != math.prod(shape):
            raise ValueError("looks at a tensor as one of another type")
        head = _common(old, shape)
        tail = _common(old[head:][::-1], shape[head:][::-1])
        middle = [part for dimension in self.layout[head : len(old) - tail] for part in dimension]
        dimensions = _regrouped(middle, shape[head : len(shape) - tail])
        return replace(self, layout=(*self.layout[:head], *dimensions, *self.layout[len(old) - tail :]))

    def permuted(self, order: Sequence[int]) -> Features:
        """Returns the features after a permutation of the dimensions."""
        return replace(self, layout=tuple(self.layout[dimension] for dimension in order))

    def with_dimension(self, index: int, dimension: Dimension) -> Features:
        """Returns the features with one dimension replaced."""
        return replace(self, layout=(*self.layout[:index], dimension, *self.layout[index:][1:]))

    def collapsed(self, indices: Iterable[int]) -> Features:
        """Returns the features after a reduction over some dimensions, which then have size 1.

        Raises:
            ValueError: when a dimension holds only a part of an axis, unless it holds whole blocks of neighbours.
        """
        features = self
        reduced = {part for index in indices for part in self.layout[index] if part.axis}
        for name, axis in self.axes.items():
            if removed := [part for part in reduced if part.axis in (name, TOKENS)]:
                rest = [part for part in self.parts(name) if part not in removed]
                features = features._coarser(name, removed, axis) if rest else features._without(name, axis)
        for index in indices:
            features = features.with_dimension(index, ())
        return features

    def _without(self, name: str, axis: Axis) -> Features:
        return replace(self, axes={**self.axes, name: axis.joined()})

    def _coarser(self, name: str, removed: list[Part], axis: Axis) -> Features:
        [block, *others] = removed
        if others or block.stride != 1 or block.axis == TOKENS:
            raise ValueError(f"mixes units that are no neighbours along the {name}")
        coarse = axis.window(axis.size // block.size, kernel=block.size, stride=block.size)
        layout = tuple(tuple(_rescaled(part, name, block.size) for part in dimension) for dimension in self.layout)
        return Features(layout, {**self.axes, name: coarse})

    def full_axis(self, index: int) -> str:
        """Returns the name of the axis that a dimension holds; empty if it is plain.

        Raises:
            ValueError: when it holds more than one axis, or only a part of one.
        """
        names = [part.axis for part in self.layout[index] if part.axis]
        if not names:
            return ""
        [part, *others] = self.layout[index]
        if others or part.axis == TOKENS or part.size != self.axes[part.axis].size:
            raise ValueError("works along a dimension in which units of the image are mixed with others")
        return part.axis


def image_features(shape: Sequence[int]) -> Features:
    """Returns the features of a batch of images (n, c, h, w)."""
    n, channels, height, width = shape
    layout = ((Part(n),), (Part(channels),), (Part(height, HEIGHT),), (Part(width, WIDTH),))
    return Features(layout, {HEIGHT: image_axis(height), WIDTH: image_axis(width)})


def plain_layout(shape: Iterable[int]) -> tuple[Dimension, ...]:
    """Returns dimensions without units of the image."""
    return tuple(_canonical([Part(size)]) for size in shape)


def merge_features(inputs: Sequence[Features], shape: Sequence[int]) -> Features:
    """Returns the features after an elementwise operation on branches, broadcast to a shape.

    Raises:
        ValueError: when their layouts or their shapes do not match.
    """
    inputs = [_stretched(features, shape) for features in inputs]
    layout = tuple(_same([features.layout[index] for features in inputs], size) for index, size in enumerate(shape))
    names = [name for name in (HEIGHT, WIDTH) if any(name in features.axes for features in inputs)]
    return Features(layout, {name: _merged_axis(inputs, name) for name in names})


def _merged_axis(inputs: Sequence[Features], name: str) -> Axis:
    inputs = [features for features in inputs if name in features.axes]
    moving = [features.axes[name] for features in inputs if not features.is_fixed(name)]
    fixed = [features.axes[name] for features in inputs if features.is_fixed(name)]
    if not moving:
        return merge_axes(fixed)
    # relative to a single unit, the common field of all units may lie anywhere
    return merge_axes(moving).seeing_all() if fixed else merge_axes(moving)


def _stretched(features: Features, shape: Sequence[int]) -> Features:
    """Broadcasts features to a shape: adds missing dimensions in front, and removes the parts of stretched ones."""
    layout = ((),) * (len(shape) - len(features.layout)) + features.layout
    sizes = ((1,) * (len(shape) - len(features.layout))) + features.shape
    if any(have not in (1, want) for have, want in zip(sizes, shape, strict=True)):
        raise ValueError(f"makes a tensor of shape {tuple(shape)} of one of {features.shape}")
    kept = (dimension if have == want else () for dimension, have, want in zip(layout, sizes, shape, strict=True))
    return replace(features, layout=tuple(kept))


def _same(dimensions: Sequence[Dimension], size: int) -> Dimension:
    found = {dimension for dimension in dimensions if any(part.axis for part in dimension)}
    if len(found) > 1:
        raise ValueError("merges features whose units lie in different orders")
    return found.pop() if found else _canonical([Part(size)])


def _rescaled(part: Part, name: str, block: int) -> Part:
    return replace(part, stride=part.stride // block) if part.axis == name and part.stride > 1 else part


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def _regrouped(parts: Sequence[Part], sizes: Sequence[int]) -> list[Dimension]:
    """Distributes parts, outermost first, over dimensions of the given sizes, splitting them where needed."""
    rest = [part for part in _canonical(parts) if part.size > 1][::-1]
    dimensions = []
    for size in sizes:
        dimension: list[Part] = []
        while (missing := size // math.prod(part.size for part in dimension)) > 1:
            part = rest.pop()
            if missing % part.size:
                part, inner = _split(part, math.gcd(missing, part.size))
                rest.append(inner)
            dimension.append(part)
        dimensions.append(_canonical(dimension))
    return dimensions


def _split(part: Part, outer: int) -> tuple[Part, Part]:
    if part.axis == TOKENS or outer == 1:
        raise ValueError("splits units of the image in a way that cannot be followed")
    inner = part.size // outer
    return replace(part, size=outer, stride=part.stride * inner), replace(part, size=inner)


def _canonical(parts: Sequence[Part]) -> Dimension:
    """Joins neighbouring parts that belong together, and removes plain parts of size 1."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if part.size == 1 and not part.axis:
            continue
        if (
            last
            and last.axis == part.axis
            and part.axis != TOKENS
            and (not part.axis or last.stride == part.stride * part.size)
        ):
            joined[-1] = Part(last.size * part.size, part.axis, part.stride)
        else:
            joined.append(part)
    return tuple(joined)

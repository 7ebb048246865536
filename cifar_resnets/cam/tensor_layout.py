"""Finds the layout of feature maps: which dimensions of a module's output are height, width and channels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnets.receptive_field.effective import stages


@dataclass(frozen=True)
class Layout:
    """The place of a feature map in a tensor."""

    kind: str  # `nchw`, `nhwc`, or `tokens` (n, tokens, channels)
    height: int  # of the map, in units
    width: int
    num_prefix: int = 0  # tokens that come before those of the map, such as a class token

    def take(self, tensor: Tensor) -> Tensor:
        """Returns the map (n, channels, height, width) of a tensor."""
        if self.kind == "tokens":
            tensor = tensor[:, self.num_prefix :].reshape(len(tensor), self.height, self.width, -1)
        return tensor if self.kind == "nchw" else tensor.movedim(-1, 1)

    def put(self, tensor: Tensor, features: Tensor) -> Tensor:
        """Returns a copy of the tensor with another map (n, channels, height, width)."""
        if self.kind == "nchw":
            return features
        features = features.movedim(1, -1)
        if self.kind == "nhwc":
            return features
        return torch.cat([tensor[:, : self.num_prefix], features.flatten(1, 2)], dim=1)


class LayoutFinder:
    """Finds the layout of what the modules of a network return for images of a size.

    A map has the shape of the image, up to rounding. Where that leaves a choice, timm's attributes of the network
    decide: the channels of its stages (`feature_info`) and the tokens that are not of the image (`num_prefix_tokens`).
    `see` has to be called with the images that it runs on.
    """

    def __init__(self, network: nn.Module) -> None:
        self.num_images = self.image_height = self.image_width = 0
        self.channels = stages(network)
        self.in_order = not hasattr(network, "reroll")  # Hiera's tokens come window by window
        declared = getattr(network, "num_prefix_tokens", 0)
        self.prefixes = (declared if isinstance(declared, int) else 0, 0, 1, 2)  # none, a class token, two of DeiT

    def see(self, images: Tensor) -> None:
        """Notes the size of the images (n, c, h, w) that the network runs on next."""
        self.num_images, (self.image_height, self.image_width) = len(images), images.shape[-2:]

    def of(self, name: str, tensor: Any) -> Layout | None:
        """Returns the layout of a tensor that a module returns; None if it is no map of two units or more."""
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim not in (3, 4):
            return None
        if len(tensor) != self.num_images:  # windows, or tokens first
            return None
        layouts = self._of_grid(tensor.shape) if tensor.ndim == 4 else self._of_tokens(tensor.shape[1])
        layouts = [each for each in layouts if self._has_channels(name, tensor, each)]
        return min(layouts, key=self._mismatch, default=None)  # the first of equals

    def _of_grid(self, shape: Sequence[int]) -> list[Layout]:
        layouts = [Layout("nchw", shape[2], shape[3]), Layout("nhwc", shape[1], shape[2])]
        return [each for each in layouts if each.height * each.width > 1 and self._mismatch(each) <= 1]

    def _of_tokens(self, num_tokens: int) -> list[Layout]:
        for num_prefix in self.prefixes if self.in_order else ():
            num_units = num_tokens - num_prefix
            if num_units > 1:
                height = max(1, round(math.sqrt(num_units * self.image_height / self.image_width)))
                layout = Layout("tokens", height, num_units // height, num_prefix)
                if height * layout.width == num_units and self._mismatch(layout) < 0.5:
                    return [layout]
        return []

    def _has_channels(self, name: str, tensor: Tensor, layout: Layout) -> bool:
        found = tensor.shape[1 if layout.kind == "nchw" else -1]
        return self.channels.get(name, found) == found

    def _mismatch(self, layout: Layout) -> float:
        """Returns how far the map's shape is from the image's, as a share of what rounding up both sides can add."""
        if layout.height > self.image_height or layout.width > self.image_width:
            return math.inf
        difference = layout.height / self.image_height - layout.width / self.image_width
        return abs(difference) / (1 / self.image_height + 1 / self.image_width)

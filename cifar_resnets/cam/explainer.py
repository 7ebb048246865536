"""Where a network looks: heatmaps by one method at chosen layers, and what the hottest unit sees of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_resnets.cam.feature_maps import Layout, check_found, check_layers, choose_layer, tapped
from cifar_resnets.cam.gradcam import heatmaps
from cifar_resnets.evaluation.mistakes import Samples, classified
from cifar_resnets.receptive_field.effective import follow_layers
from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features
from cifar_resnets.support.sandbox import like_network, plain_network, sandboxed

__all__ = ["Attention", "hottest_fields", "map_size", "reclassified"]

CHUNK = 32  # images at once


class Attention:
    """How heatmaps of a network are made.

    Args:
        network: a classifier; it is left as it was.
        images: normalised images (n, c, h, w) of the size of those that the heatmaps will be of.
        method: a name of `METHODS`.
        layers: names of the network's modules; the last that still shows where something is, if not given.
        receptive_field: whether the field of the hottest unit is wanted, in the last of the layers.

    Raises:
        ConfigurationError: when there is no such layer, it returns no feature map, or its field cannot be followed.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        method: str = "gradcam",
        layers: Sequence[str] | None = None,
        receptive_field: bool = False,
    ) -> None:
        self.method = method
        names = [choose_layer(network, images)] if layers is None else layers
        self.layers = check_layers(plain_network(network), names)
        self.sizes = {name: map_size(network, images[:1], name) for name in self.layers}
        self.features: Features | None = None
        if receptive_field:
            last = self.layers[-1]
            with torch.compiler.set_stance("force_eager"):
                self.features = follow_layers(plain_network(network), images.shape[1:], [last])[last]

    def __str__(self) -> str:
        layers = ", ".join(f"{name} ({height}x{width})" for name, (height, width) in self.sizes.items())
        return f"{self.method} at {layers}"

    def heat(self, network: nn.Module, images: Tensor, classes: Tensor) -> NDArray[np.float32]:
        """Heatmaps from 0 to 1 (n, k, h, w) of images (n, c, h, w) for k classes each, int64 (n, k)."""
        parts = [(images[i : i + CHUNK], classes[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        maps = [heatmaps(network, *part, method=self.method, layers=self.layers) for part in parts]
        heat: NDArray[np.float32] = torch.cat(maps).numpy()
        return heat

    def fields(self, heat: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """What the hottest unit of each heatmap (n, h, w) sees, see `hottest_fields`; None if it is not wanted."""
        return None if self.features is None else hottest_fields(heat, self.features)


def map_size(network: nn.Module, images: Tensor, layer: str) -> tuple[int, int]:
    """Height and width, in units, of a layer's feature map of images (n, c, h, w).

    Raises:
        ConfigurationError: when it returns none.
    """
    network = plain_network(network)
    sizes: dict[str, tuple[int, int]] = {}

    def visit(name: str, tensor: Tensor, layout: Layout) -> Tensor:
        sizes[name] = layout.height, layout.width
        return tensor

    with sandboxed(network, images), tapped(network, [layer], visit):
        network(like_network(network, images))
        check_found(network, [layer], sizes)
    return sizes[layer]


def reclassified(network: nn.Module, samples: Samples) -> Samples:
    """What a network says of samples on the CPU now; it is left as it was."""
    network = plain_network(network)
    with sandboxed(network, samples.images), torch.no_grad():
        parts = [samples.images[i : i + CHUNK] for i in range(0, len(samples), CHUNK)]
        logits = [network(like_network(network, images)).cpu() for images in parts]
    return classified(samples.images, samples.labels, torch.cat(logits), samples.index)


def hottest_fields(heat: NDArray[np.float32], features: Features) -> NDArray[np.float64]:
    """The receptive field of the unit below the hottest pixel of each heatmap.

    Args:
        heat: (n, h, w), as large as the images.
        features: of the layer, see `follow_layers`.

    Returns:
        First row, first column, last row and last column (n, 4) in pixels; a field may reach beyond the image.
    """
    num, *sides = heat.shape
    pixels = np.unravel_index(heat.reshape(num, -1).argmax(axis=1), sides)
    axes = [features.axes[name] for name in (HEIGHT, WIDTH)]
    fields = []
    for axis, side, hottest in zip(axes, sides, pixels, strict=True):
        units = ((hottest + 0.5) * axis.size / side).astype(int)
        fields.append([axis.at(unit) for unit in units.tolist()])
    rows, columns = fields
    boxes = [(row.low, column.low, row.high, column.high) for row, column in zip(rows, columns, strict=True)]
    return np.array(boxes, np.float64).reshape(num, 4)

"""Explains predictions: heatmaps at chosen layers, and the part of an image that the hottest unit sees."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cifar_resnets.cam.feature_maps import check_layers, choose_layer, map_sizes
from cifar_resnets.cam.gradcam import heatmaps
from cifar_resnets.errors import ConfigurationError, one_line
from cifar_resnets.evaluation.mistakes import CHUNK, Samples
from cifar_resnets.receptive_field.effective import follow_layers
from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features
from cifar_resnets.support.sandbox import like_network, plain_network

Floats = NDArray[np.float32]


class Explainer:
    """Computes where a network looked for the predicted and for the true class of images.

    Args:
        method: a name in `METHODS`.
        layers: names of the network's modules, over which heatmaps are averaged; `choose_layer` chooses if not given.
        receptive_field: whether to find what the hottest unit sees, in the last of the layers.

    Attributes:
        sizes: height and width of each layer's feature map, by its name; empty until layers are chosen.
        problem: why there are no heatmaps; empty if nothing is wrong.
    """

    def __init__(
        self, method: str = "gradcam", layers: Sequence[str] | None = None, receptive_field: bool = False
    ) -> None:
        self.method, self.layers, self.receptive_field = method, layers, receptive_field
        self.sizes: dict[str, tuple[int, int]] = {}
        self.problem = ""
        self._features: Features | None = None

    @property
    def note(self) -> str:
        """The method, and the layers with the sizes of their feature maps; empty until layers are chosen."""
        layers = [f"{name} ({height}x{width})" for name, (height, width) in self.sizes.items()]
        return f"{self.method} at {', '.join(layers)}" if layers else ""

    def prepare(self, network: nn.Module, size: Sequence[int]) -> None:
        """Chooses the layers for images of a size (c, h, w) before there are samples; the network is left as it was.

        Raises:
            ConfigurationError: when a layer that was asked for is not there or returns no feature map, or when its
                receptive field was asked for and cannot be followed.
        """
        try:
            self._choose(network, size)
        except ConfigurationError as error:
            if self.layers is not None or self.receptive_field:
                raise
            self.problem = one_line(error)

    def explain(self, network: nn.Module, samples: Samples) -> tuple[Floats | None, NDArray[np.float64] | None]:
        """Computes heatmaps for the predicted and for the true class of each sample; the network is left as it was.

        Nothing is raised for a network or a device that fails: `problem` says why there are no heatmaps, and no more
        are tried.

        Returns:
            Heatmaps (n, 2, h, w) from 0 to 1, and `hottest_fields` (n, 4) for the predicted class if they are wanted;
            None where there are none.
        """
        if self.problem or not len(samples):
            return None, None
        try:
            if not self.sizes:
                self._choose(network, samples.images.shape[1:])
            heat = self._heat(network, samples)
        except (ValueError, RuntimeError) as error:
            self.problem = one_line(error)
            return None, None
        return heat, None if self._features is None else hottest_fields(heat[:, 0], self._features)

    def _choose(self, network: nn.Module, size: Sequence[int]) -> None:
        network = plain_network(network)
        # not zeros, on which units may be dead; from a generator of its own
        images = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
        images = like_network(network, images)
        layers = check_layers(network, [choose_layer(network, images)] if self.layers is None else self.layers)
        sizes = map_sizes(network, images, layers)
        if self.receptive_field:
            with torch.compiler.set_stance("force_eager"):
                self._features = follow_layers(network, size, layers[-1:])[layers[-1]]
        self.sizes = sizes

    def _heat(self, network: nn.Module, samples: Samples) -> Floats:
        images = like_network(plain_network(network), samples.images)
        classes = torch.stack([samples.predicted, samples.labels], dim=1)
        parts = zip(torch.split(images, CHUNK), torch.split(classes, CHUNK), strict=True)
        maps = [heatmaps(network, *part, method=self.method, layers=list(self.sizes)) for part in parts]
        heat: Floats = torch.cat(maps).numpy()
        return heat


def hottest_fields(heat: Floats, features: Features) -> NDArray[np.float64]:
    """Finds the receptive field of the unit below the hottest pixel of each heatmap (n, h, w).

    Returns:
        First row, first column, last row and last column (n, 4) in pixels; a field may reach beyond the image.
    """
    num, *sides = heat.shape
    pixels = np.unravel_index(heat.reshape(num, -1).argmax(axis=1), sides)
    fields = []
    for name, side, hottest in zip((HEIGHT, WIDTH), sides, pixels, strict=True):
        axis = features.axes[name]
        fields.append([axis.at(unit) for unit in ((hottest + 0.5) * axis.size / side).astype(int).tolist()])
    boxes = [(row.low, column.low, row.high, column.high) for row, column in zip(*fields, strict=True)]
    return np.array(boxes, np.float64).reshape(num, 4)

"""The figure of receptive fields: both fields of each layer, with a box where they lie in the image."""

from __future__ import annotations

import timm
import torch
from matplotlib.patches import Rectangle

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.figures.receptive_fields import plot_fields


def test_figure_shows_both_fields() -> None:
    figure = plot_fields(timm.create_model("cifar_resnet20"), torch.randn(2, 3, 32, 32), ["layer1", "layer3"])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["layer1\ntheory: 15 pixels", "layer3\ntheory: 81 pixels, beyond the image"]
    assert all(title.startswith("effective: ") for title in titles[2:])
    [box] = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    # the central unit, 16, sees the pixels 9 to 23
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (8.5, 8.5, 15, 15)
    assert figure._suptitle.get_text() == "Receptive fields of cifar_resnet20"

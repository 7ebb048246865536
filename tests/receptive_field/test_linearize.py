"""A linearised network against torch's own pooling; skipped layers return their input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnets.receptive_field.linearize import Linearized


def images(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.PReLU(), nn.BatchNorm2d(3), nn.Dropout(0.5)])
def test_activations_and_norms_are_left_out(layer: nn.Module) -> None:
    given = images(4, 4)
    with Linearized():
        assert torch.equal(layer(given), given)
    assert not torch.equal(layer(given), given)


def test_what_is_linear_stays_as_it_is() -> None:
    given, convolution = images(5, 5), nn.Conv2d(3, 4, 3, padding=1)
    with Linearized():
        found = convolution(given), F.avg_pool2d(given, 2), given + 1
    assert all(map(torch.equal, found, (convolution(given), F.avg_pool2d(given, 2), given + 1)))


POOLINGS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 3, "dilation": 2},
]


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (9, 6)], ids=str)
@pytest.mark.parametrize("options", POOLINGS, ids=str)
def test_max_pooling_adds_up_the_pixels_of_its_window(size: tuple[int, int], options: dict) -> None:
    """Each pixel alone in an image that is 0 elsewhere: there, the greatest of a window is its sum."""
    one_each = torch.eye(size[0] * size[1]).reshape(-1, 1, *size)
    with Linearized():
        found = F.max_pool2d(one_each, **options)
    assert torch.equal(found, F.max_pool2d(one_each, **options))


def test_the_other_maxima_are_means_of_all_they_see() -> None:
    given = images(6, 6)
    with Linearized():
        pooled, greatest = F.adaptive_max_pool2d(given, 2), given.amax((2, 3))
    assert torch.equal(pooled, F.adaptive_avg_pool2d(given, 2))
    assert torch.equal(greatest, given.mean((2, 3)))

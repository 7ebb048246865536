"""Layouts: which of a tensor's dimensions are height, width and channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cifar_resnets.cam.tensor_layout import Layout, LayoutFinder
from cifar_resnets.receptive_field.effective import stages


class Described(nn.Module):
    feature_info = [{"module": "stage", "num_chs": 8, "reduction": 4}]
    num_prefix_tokens = 5


def finder(height: int = 32, width: int = 32, network: nn.Module | None = None) -> LayoutFinder:
    made = LayoutFinder(network or nn.Identity())
    made.see(torch.zeros(2, 3, height, width))
    return made


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 64, 8, 8), Layout("nchw", 8, 8)),
        ((2, 8, 8, 64), Layout("nhwc", 8, 8)),
        ((2, 10, 8, 8), Layout("nchw", 8, 8)),
        ((2, 8, 8, 10), Layout("nhwc", 8, 8)),
        ((2, 8, 8, 8), Layout("nchw", 8, 8)),
        ((2, 64, 2, 2), Layout("nchw", 2, 2)),
        ((2, 64, 1, 1), None),
        ((2, 64, 64, 64), None),  # larger than the image
        ((2, 64, 16, 4), None),  # of another shape
        ((8, 64, 8, 8), None),  # windows
        ((2, 64, 12), Layout("tokens", 8, 8)),
        ((2, 65, 12), Layout("tokens", 8, 8, 1)),
        ((2, 66, 12), Layout("tokens", 8, 8, 2)),
        ((2, 67, 12), None),
        ((2, 2, 12), None),
        ((65, 2, 12), None),  # tokens first
        ((2, 64), None),
        ((2, 3, 4, 8, 8), None),
    ],
)
def test_shapes(shape: tuple[int, ...], expected: Layout | None) -> None:
    assert finder().of("layer", torch.zeros(shape)) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 64, 6, 10), Layout("nchw", 6, 10)),
        ((2, 6, 10, 64), Layout("nhwc", 6, 10)),
        ((2, 64, 10, 6), None),
        ((2, 60, 7), Layout("tokens", 6, 10)),
        ((2, 61, 7), Layout("tokens", 6, 10, 1)),
        ((2, 64, 7), None),
    ],
)
def test_images_that_are_not_square(shape: tuple[int, ...], expected: Layout | None) -> None:
    assert finder(48, 80).of("layer", torch.zeros(shape)) == expected


def test_the_network_decides_what_the_shape_leaves_open() -> None:
    described = finder(network=Described())
    assert described.of("stage", torch.zeros(2, 8, 8, 8)) == Layout("nchw", 8, 8)
    assert described.of("stage", torch.zeros(2, 9, 9, 8)) == Layout("nhwc", 9, 9)
    assert described.of("stage", torch.zeros(2, 9, 8, 8)) == Layout("nhwc", 9, 8)  # the nearer shape has 9 channels
    assert described.of("stage", torch.zeros(2, 64, 8, 9)) is None
    assert described.of("other", torch.zeros(2, 9, 8, 8)) == Layout("nchw", 8, 8)
    assert described.of("other", torch.zeros(2, 69, 8)) == Layout("tokens", 8, 8, 5)
    assert described.of("other", torch.zeros(2, 64, 8)) == Layout("tokens", 8, 8)  # before they are added
    assert stages(Described()) == {"stage": 8}
    assert stages(nn.Identity()) == {}


def test_what_is_no_tensor_of_features() -> None:
    for value in (None, "text", [torch.zeros(2, 64, 8, 8)], torch.zeros(2, 64, 8, 8, dtype=torch.int64)):
        assert finder().of("layer", value) is None


def test_tokens_in_another_order_are_no_map() -> None:
    network = nn.Identity()
    network.reroll = None
    assert finder(network=network).of("layer", torch.zeros(2, 64, 8)) is None


def test_take_and_put() -> None:
    features = torch.arange(2 * 5 * 3 * 4.0).reshape(2, 5, 3, 4)  # (n, c, h, w)
    by_layout = {
        Layout("nchw", 3, 4): features,
        Layout("nhwc", 3, 4): features.permute(0, 2, 3, 1).contiguous(),
        Layout("tokens", 3, 4): features.flatten(2).transpose(1, 2),
        Layout("tokens", 3, 4, 2): torch.cat([torch.full((2, 2, 5), -1.0), features.flatten(2).transpose(1, 2)], 1),
    }
    for layout, tensor in by_layout.items():
        assert torch.equal(layout.take(tensor), features)
        changed = layout.put(tensor, features + 1)
        assert torch.equal(layout.take(changed), features + 1)
        assert torch.equal(changed[:, : layout.num_prefix], tensor[:, : layout.num_prefix])

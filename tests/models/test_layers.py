import math

import numpy as np
import pytest
import torch
from torch import nn

from cifar_resnets.models.layers import ZeroPadShortcut, conv3x3, init_he, make_shortcut


def pad_with_numpy(x: np.ndarray, out_channels: int, stride: int) -> np.ndarray:
    n, channels, height, width = x.shape
    before = (out_channels - channels) // 2
    rows, columns = range(0, height, stride), range(0, width, stride)
    padded = np.zeros((n, out_channels, len(rows), len(columns)), x.dtype)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            padded[:, before : before + channels, i, j] = x[:, :, row, column]
    return padded


@pytest.mark.parametrize("in_channels, out_channels, stride", [(16, 32, 2), (3, 8, 2), (4, 4, 2), (2, 6, 1), (1, 2, 3)])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_option_a_matches_numpy(in_channels, out_channels, stride, size):
    x = torch.randn(2, in_channels, *size)
    expected = pad_with_numpy(x.numpy(), out_channels, stride)
    np.testing.assert_array_equal(ZeroPadShortcut(in_channels, out_channels, stride)(x).numpy(), expected)


def test_option_a_has_no_parameters_and_passes_gradients_only_where_it_looked():
    shortcut = ZeroPadShortcut(2, 4, 2)
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    shortcut(x).sum().backward()
    assert not list(shortcut.parameters())
    expected = torch.zeros(1, 2, 4, 4)
    expected[:, :, ::2, ::2] = 1
    assert torch.equal(x.grad, expected)


def test_option_a_refuses_to_drop_channels():
    with pytest.raises(ValueError, match="from 32 to 16.*shortcut='B'"):
        ZeroPadShortcut(32, 16, 2)


@pytest.mark.parametrize(
    "option, where_equal, where_changed",
    [
        ("A", nn.Identity, ZeroPadShortcut),
        ("B", nn.Identity, nn.Sequential),
        ("C", nn.Sequential, nn.Sequential),
    ],
)
def test_shortcut_options(option, where_equal, where_changed):
    assert type(make_shortcut(option, 16, 16, stride=1)) is where_equal
    assert type(make_shortcut(option, 16, 32, stride=1)) is where_changed
    assert type(make_shortcut(option, 16, 16, stride=2)) is where_changed


@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize("size", [8, 9, 1])
def test_shortcut_fits_the_convolution_beside_it(option, size):
    x = torch.randn(2, 4, size, size)
    assert make_shortcut(option, 4, 8, stride=2)(x).shape == conv3x3(4, 8, stride=2)(x).shape


@pytest.mark.parametrize("option", ["D", "a", "", None])
def test_unknown_shortcut_says_what_is_allowed(option):
    with pytest.raises(ValueError) as error:
        make_shortcut(option, 16, 16, stride=1)
    message = str(error.value)
    assert f"shortcut={option!r}" in message
    assert all(repr(allowed) in message for allowed in "ABC")


@pytest.mark.parametrize("kernel_size", [3, 1])
def test_init_he_matches_the_formula(kernel_size):
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 256, kernel_size)
    init_he(conv)
    expected = math.sqrt(2 / (kernel_size**2 * 256))
    # The estimate's own relative error is 1 / sqrt(2 * weights): 0.4 % for the smaller of these.
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(conv.weight.mean().item()) < 0.02 * expected


def test_init_he_resets_batch_norm_and_leaves_linear_alone():
    norm, linear = nn.BatchNorm2d(4), nn.Linear(4, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    before = linear.weight.clone()
    norm.apply(init_he)
    linear.apply(init_he)
    assert torch.equal(norm.weight, torch.ones(4))
    assert torch.equal(norm.bias, torch.zeros(4))
    assert torch.equal(linear.weight, before)

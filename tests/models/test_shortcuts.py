import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import count_parameters, randomise
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.layers import conv3x3, init_he
from cifar_resnets.models.shortcuts import (
    SHORTCUTS,
    DropoutShortcut,
    NoShortcut,
    Projection,
    Shortcut,
    ZeroPad,
    make_shortcut,
)

SHAPES = [(4, 4, 1), (4, 8, 2), (4, 4, 2), (4, 9, 1)]  # channels in, channels out, stride


def pad_with_numpy(x, out_channels, stride):
    n, channels, height, width = x.shape
    before = (out_channels - channels) // 2
    rows, columns = range(0, height, stride), range(0, width, stride)
    padded = np.zeros((n, out_channels, len(rows), len(columns)), x.dtype)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            padded[:, before : before + channels, i, j] = x[:, :, row, column]
    return padded


def gate_with_numpy(shortcut, shaped):
    weight, bias = shortcut.gate.weight.detach().numpy()[:, :, 0, 0], shortcut.gate.bias.detach().numpy()
    looked = np.einsum("oi,nihw->nohw", weight, shaped) + bias[:, None, None]
    return 1 / (1 + np.exp(-looked))


def project(shortcut, x, stride, norm):
    x = F.conv2d(x, shortcut[0].weight, stride=stride)
    if norm:
        bn = shortcut[1]
        x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    return x.detach().numpy()


EXPECTED = {
    "A": lambda shortcut, shaped, residual: residual + shaped,
    "none": lambda shortcut, shaped, residual: residual,
    "constant_scaling": lambda shortcut, shaped, residual: (shaped + residual) / 2,
    "dropout": lambda shortcut, shaped, residual: residual + shaped,  # in evaluation
    "exclusive_gating": lambda shortcut, shaped, residual: (
        residual * (g := gate_with_numpy(shortcut, shaped)) + shaped * (1 - g)
    ),
    "shortcut_only_gating": lambda shortcut, shaped, residual: (
        residual + shaped * (1 - gate_with_numpy(shortcut, shaped))
    ),
}


def inputs(in_channels, out_channels, stride, size=(8, 8)):
    torch.manual_seed(0)
    height, width = (math.ceil(side / stride) for side in size)
    x = torch.randn(2, in_channels, *size, dtype=torch.double)
    return x, torch.randn(2, out_channels, height, width, dtype=torch.double)


def test_every_shortcut_is_tested():
    assert {*EXPECTED, "B", "C", "conv1x1"} == set(SHORTCUTS)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", EXPECTED)
def test_equals_numpy(option, shape, size):
    x, residual = inputs(*shape, size)
    shortcut = randomise(make_shortcut(option, *shape)).double().eval()
    expected = EXPECTED[option](shortcut, pad_with_numpy(x.numpy(), *shape[1:]), residual.numpy())
    np.testing.assert_allclose(shortcut(x, residual).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", ["B", "C", "conv1x1"])
def test_projection_equals_plain_functions(option, shape, norm):
    x, residual = inputs(*shape, size=(7, 8))
    shortcut = randomise(make_shortcut(option, *shape, norm=norm)).double().eval()
    projects = option != "B" or shape != (4, 4, 1)
    assert isinstance(shortcut, Projection) == projects
    assert len(shortcut) == (1 + norm if projects else 0)
    expected = residual.numpy() + (project(shortcut, x, shape[2], norm) if projects else x.numpy())
    np.testing.assert_allclose(shortcut(x, residual).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("option", SHORTCUTS)
@pytest.mark.parametrize("size", [8, 9, 1])
def test_fits_the_convolution_beside_it(option, size):
    x = torch.randn(2, 4, size, size)
    residual = conv3x3(4, 8, stride=2)(x)
    assert make_shortcut(option, 4, 8, stride=2)(x, residual).shape == residual.shape


@pytest.mark.parametrize(
    ("option", "parameters"),
    [
        *((option, 0) for option in ("A", "none", "constant_scaling", "dropout")),
        *((option, 4 * 8 + 2 * 8) for option in ("B", "C", "conv1x1")),
        *((option, 8 * 8 + 8) for option in ("exclusive_gating", "shortcut_only_gating")),
    ],
)
def test_parameters(option, parameters):
    assert count_parameters(make_shortcut(option, 4, 8, stride=2)) == parameters


def test_option_a_passes_gradients_only_where_it_looked():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    make_shortcut("A", 2, 4, 2)(x, torch.zeros(1, 4, 2, 2)).sum().backward()
    expected = torch.zeros(1, 2, 4, 4)
    expected[:, :, ::2, ::2] = 1
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("option", [option for option in SHORTCUTS if SHORTCUTS[option][0] is not Projection])
def test_what_cannot_drop_channels_refuses_to(option):
    if option == "none":
        assert isinstance(make_shortcut(option, 32, 16, 2), NoShortcut)
        return
    with pytest.raises(ConfigurationError, match="from 32 to 16.*shortcut='B'"):
        make_shortcut(option, 32, 16, 2)


@pytest.mark.parametrize(
    ("option", "where_equal", "where_changed"),
    [("A", Shortcut, Shortcut), ("B", Shortcut, Projection), ("C", Projection, Projection)],
)
def test_options(option, where_equal, where_changed):
    same = make_shortcut(option, 16, 16, stride=1)
    wider, smaller = make_shortcut(option, 16, 32, stride=1), make_shortcut(option, 16, 16, stride=2)
    assert (type(same), type(wider), type(smaller)) == (where_equal, where_changed, where_changed)
    if option == "A":
        assert [type(layer) for layer in (*same, *wider, *smaller)] == [ZeroPad, ZeroPad]


@pytest.mark.parametrize("option", ["exclusive_gating", "shortcut_only_gating"])
def test_gates_start_closed(option):
    shortcut = make_shortcut(option, 4, 8, 2).apply(init_he)
    assert (shortcut.gate.bias == -6).all()
    nn.init.zeros_(shortcut.gate.weight)
    x, residual = torch.zeros(1, 4, 2, 2), torch.ones(1, 8, 1, 1)
    gate = 1 / (1 + math.exp(6))
    assert gate == pytest.approx(0.0025, abs=5e-5)
    expected = gate if option == "exclusive_gating" else 1.0
    torch.testing.assert_close(shortcut(x, residual), torch.full_like(residual, expected))
    x, residual = torch.ones(1, 4, 2, 2), torch.zeros(1, 8, 1, 1)
    assert shortcut(x, residual).unique().tolist() == pytest.approx([0, 1 - gate])


def test_dropout_leaves_out_half_of_the_shortcut_in_training():
    torch.manual_seed(0)
    shortcut = make_shortcut("dropout", 16, 16, 1)
    assert isinstance(shortcut, DropoutShortcut)
    x, residual = torch.ones(4, 16, 32, 32), torch.full((4, 16, 32, 32), 3.0)
    summed = shortcut.train()(x, residual)
    assert set(summed.unique().tolist()) == {3.0, 5.0}  # what is kept counts twice, so that the mean stays
    # five standard deviations of 65,536 throws
    assert (summed == 3).float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 256)
    assert (shortcut.eval()(x, residual) == 4).all()


@pytest.mark.parametrize("option", ["D", "a", "", None])
def test_unknown_shortcut_says_what_is_allowed(option):
    with pytest.raises(ConfigurationError) as error:
        make_shortcut(option, 16, 16, stride=1)
    message = str(error.value)
    assert f"shortcut={option!r}" in message
    assert "\n" not in message
    assert all(repr(allowed) in message for allowed in SHORTCUTS)

"""The sandbox: gradients flow through a network of constants, in any mode, and it is left as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from torch import nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.support.sandbox import like_network, plain_network, sandboxed


def test_parameters_are_constants_and_buffers_are_copies() -> None:
    network = timm.create_model("cifar_resnet20", depths=(1,), widths=(4,), stem_width=4).train()
    parameters, mean = list(network.parameters()), network.bn1.running_mean
    with sandboxed(network, torch.zeros(1, 3, 8, 8)):
        assert not network.training
        for inside, outside in zip(network.parameters(), parameters, strict=True):
            assert not inside.requires_grad
            assert inside.data_ptr() == outside.data_ptr()
        network.bn1.running_mean.add_(1)
        images = torch.randn(1, 3, 8, 8, requires_grad=True)
        network(images).sum().backward()
        assert images.grad.any()
    assert network.training
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)
    assert network.bn1.running_mean is mean
    assert not mean.any()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes_of_the_caller(mode) -> None:
    with mode():
        images = torch.randn(2, 3, 8, 8)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))  # made in inference mode, too
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        with sandboxed(network, images):
            copied = like_network(network, images)
            assert not copied.is_inference()
            output = network(copied.requires_grad_())
            assert output.dtype == torch.float32
            (gradient,) = torch.autograd.grad(output.sum(), copied)
            assert gradient.shape == images.shape
        assert modes == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))


def test_random_numbers_and_modes_after_an_error() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    network[1].eval()
    states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on purpose"), sandboxed(network, torch.zeros(1)):
        np.random.rand(), random.random(), torch.rand(1)
        raise RuntimeError("on purpose")
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])
    assert random.getstate() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert (network.training, network[1].training) == (True, False)


def test_images_like_the_network() -> None:
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    copied = like_network(nn.Conv2d(3, 4, 3).bfloat16(), images)
    assert (copied.dtype, copied.requires_grad) == (torch.bfloat16, False)
    same = like_network(nn.ReLU(), images)
    assert torch.equal(same, images)
    assert same.data_ptr() != images.data_ptr()


def test_the_network_within_a_compiled_one() -> None:
    network = nn.Conv2d(3, 4, 3)
    assert plain_network(torch.compile(network)) is network
    assert plain_network(network) is network

import numpy as np
import pytest
import timm
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

import cifar_resnets.models  # noqa: F401  # registers the networks
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.init import init_dirac, initial_network, whiten_first_layer, whitening_filters


def correlated_images(num: int = 250) -> torch.Tensor:
    """Images whose pixels resemble their neighbours, as those of photographs do."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num, 3, 12, 12, generator=generator, dtype=torch.float64)
    return nn.functional.avg_pool2d(noise, 3, stride=1) + 0.3 * noise[:, [1, 1, 2], 1:-1, 1:-1]


# Weights of timm.


def test_a_network_of_this_project_has_no_pretrained_weights():
    with pytest.raises(
        ConfigurationError, match=r"^model\.pretrained: timm has no weights of cifar_resnet20: leave it out, or give"
    ):
        initial_network("cifar_resnet20", 3, {}, pretrained=True)


# Whitening.


def moments_by_numpy(images: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    windows = sliding_window_view(images.numpy(), size, axis=(2, 3))  # (n, c, rows, columns, height, width)
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * size[0] * size[1])
    return patches.T @ patches / len(patches)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (2, 3)])
def test_filters_are_the_eigenvectors_of_the_patches_moments(size):
    images = correlated_images()
    moments = moments_by_numpy(images, size)
    count = len(moments)
    filters = whitening_filters(images, size, count, eps=0.0).reshape(count, -1).numpy()
    np.testing.assert_allclose(filters @ moments @ filters.T, np.eye(count), atol=1e-9)
    variances = np.linalg.eigvalsh(moments)[::-1]
    np.testing.assert_allclose((filters**2).sum(axis=1), 1 / variances, rtol=1e-9)  # the largest variance first
    few = whitening_filters(images, size, 5, eps=0.0).reshape(5, -1).numpy()
    np.testing.assert_array_equal(few, filters[:5])


def test_eps_keeps_what_hardly_varies_small():
    images = torch.ones(3, 3, 4, 4, dtype=torch.float64)  # one direction alone varies
    filters = whitening_filters(images, (2, 2), 12, eps=0.01).reshape(12, -1)
    assert filters.norm(dim=1)[1:].tolist() == pytest.approx([10.0] * 11)
    assert filters.norm(dim=1)[0].item() == pytest.approx((12.01) ** -0.5)


def test_the_first_layer_makes_white_features_of_both_signs():
    torch.manual_seed(0)
    network = timm.create_model("cifar_speednet", widths=(8, 8, 8)).double()
    images = correlated_images()
    whiten_first_layer(network, images, eps=0.0)
    assert not network.conv1.weight.requires_grad and network.conv1.bias.requires_grad
    assert not network.conv1.bias.any()
    features = nn.functional.conv2d(images, network.conv1.weight).transpose(0, 1).flatten(1)
    one, other = features.chunk(2)
    torch.testing.assert_close(one, -other)
    torch.testing.assert_close(one @ one.T / one.shape[1], torch.eye(12, dtype=torch.float64), atol=1e-9, rtol=0)


def test_filters_beyond_the_directions_stay_as_they_were():
    network = nn.Sequential(nn.Conv2d(3, 31, 2), nn.Conv2d(31, 4, 2))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    whiten_first_layer(network, correlated_images())
    assert torch.equal(network[0].weight[24:], before[0][24:])
    assert not torch.equal(network[0].weight[23], before[0][23])
    assert torch.equal(network[0].bias[24:], before[1][24:])
    for parameter, old in zip(list(network.parameters())[2:], before[2:], strict=True):
        assert torch.equal(parameter, old) and parameter.requires_grad


def test_a_network_with_fewer_filters_has_the_most_important_directions():
    network = timm.create_model("cifar_resnet20", depths=(1,), widths=(16,), stem_width=16).double()
    images = correlated_images()
    whiten_first_layer(network, images)
    expected = whitening_filters(images, (3, 3), 8, eps=5e-4)
    torch.testing.assert_close(network.conv1.weight.detach(), torch.cat([expected, -expected]))


@pytest.mark.parametrize(
    "network", [nn.Linear(3, 3), nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(3, 1, 3)], ids=["none", "groups", "one"]
)
def test_a_layer_that_cannot_whiten_is_refused(network):
    with pytest.raises(ConfigurationError, match=r"^model\.init: the network's first layer"):
        whiten_first_layer(network, correlated_images(3))


# Identities.


@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 4), (4, 9), (9, 4)])
def test_a_convolution_hands_on_its_channels(in_channels, out_channels):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, in_channels, 3), nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    )
    first, before = network[0].weight.detach().clone(), network[1].weight.detach().clone()
    init_dirac(network)
    x = torch.randn(2, in_channels, 5, 5)
    num = min(in_channels, out_channels)
    torch.testing.assert_close(network[1](x)[:, :num], x[:, :num])
    assert torch.equal(network[1].weight[num:], before[num:])
    assert torch.equal(network[0].weight, first)  # images have no channels that could be handed on


def test_other_convolutions_are_left_alone():
    others = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2), nn.Conv2d(4, 4, 3, groups=4)]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *others)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    init_dirac(network)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))

"""Initial weights: convolutions that are identities, and a first layer that whitens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError

CHUNK = 100  # number of images whose patches are in memory at once


def init_dirac(network: nn.Module) -> None:
    """Makes each convolution but the first an identity, as far as it has filters for its input channels.

    Further filters are not changed, nor are convolutions of 1x1 pixels, with groups, or with an even kernel size.

    Source: Zagoruyko and Komodakis (2017), "DiracNets", section 3; Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a
    Single GPU", section 3.3.

    Args:
        network: changed in place.
    """
    for conv in _convolutions(network)[1:]:
        odd = all(size % 2 for size in conv.kernel_size) and max(conv.kernel_size) > 1
        if conv.groups == 1 and odd:
            num = min(conv.in_channels, conv.out_channels)
            nn.init.dirac_(conv.weight.data[:num])


def whiten_first_layer(network: nn.Module, images: Tensor, eps: float = 5e-4) -> None:
    """Sets the first convolution's filters to whiten the images, and freezes them; its bias, then 0, is trained.

    Half of the filters are the directions in which patches of the images vary most, scaled to unit variance; the other
    half are their negatives, so that an activation loses nothing.

    Source: Page (2018), "How to train your ResNet", part 8, "Patch whitening"; Jordan (2024), "94% on CIFAR-10 in 3.29
    Seconds on a Single GPU", section 3.2.

    Args:
        network: changed in place.
        images: normalised images (n, c, h, w).
        eps: added to the variances, so that noise is not amplified.

    Raises:
        ConfigurationError: when the network has no convolution, or its first one has groups or a single filter.
    """
    convolutions = _convolutions(network)
    if not convolutions or convolutions[0].groups > 1 or convolutions[0].out_channels < 2:
        raise ConfigurationError("model.init: the network's first layer is no convolution that could whiten images")
    weight = convolutions[0].weight
    filters = whitening_filters(images, (weight.shape[2], weight.shape[3]), weight.shape[0] // 2, eps)
    with torch.no_grad():
        weight[: 2 * len(filters)] = torch.cat([filters, -filters]).to(weight)
        if convolutions[0].bias is not None:
            convolutions[0].bias[: 2 * len(filters)] = 0
    weight.requires_grad = False


def whitening_filters(images: Tensor, size: tuple[int, int], num: int, eps: float) -> Tensor:
    """Returns the directions in which patches of images vary most, scaled to unit variance, largest variance first.

    Args:
        images: (n, c, h, w).
        size: height and width of a patch in pixels.
        num: number of directions, at most; a patch has c * height * width.
        eps: added to the variances.

    Returns:
        Filters (num, c, height, width), float64 on the CPU.
    """
    channels = images.shape[1]
    moments = torch.zeros(channels * size[0] * size[1], channels * size[0] * size[1], dtype=torch.float64)
    total = 0
    for chunk in torch.split(images.cpu().double(), CHUNK):
        patches = F.unfold(chunk, size).transpose(0, 1).flatten(1)  # (c * height * width, patches)
        moments += patches @ patches.T
        total += patches.shape[1]
    variances, directions = torch.linalg.eigh(moments / total)  # in ascending order
    filters: Tensor = (directions / (variances + eps).sqrt()).T.flip(0)[:num]
    return filters.reshape(-1, channels, *size)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]

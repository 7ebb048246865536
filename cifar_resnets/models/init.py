"""Initial weights: those of a file or of timm, convolutions that are identities, and a first layer that whitens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.registry import create_network, line_of_pretrained
from cifar_resnets.models.weights import load_weights

NUM_WHITENED = 2000  # images that determine the whitening filters
CHUNK = 100  # number of images whose patches are in memory at once


def initial_network(
    name: str,
    num_classes: int,
    network_args: Mapping[str, Any],
    init: Sequence[str] = (),
    weights: str | None = None,
    weights_strict: bool = False,
    pretrained: bool = False,
) -> tuple[nn.Module, str | None]:
    """Builds a network with its initial weights, but for `whiten`, which takes images.

    Args:
        name: see `create_network`, as for the next two.
        num_classes: length of the logits.
        network_args: more keywords of the network.
        init: `dirac`, see `init_dirac`; `whiten`, see `whiten_first_layer`.
        weights: a file, see `load_weights`.
        weights_strict: refuse a file with a head of another number of classes, which is left out otherwise.
        pretrained: take the weights that timm has for this name.

    Returns:
        The network, and a line that says if the head of `weights` or `pretrained` was left out.

    Raises:
        ConfigurationError: for an unknown network, wrong arguments of it, or a contradiction.
        CheckpointError: for weights that cannot be had, or are not the network's.
    """
    source = "model.weights" if weights is not None else "model.pretrained"
    if pretrained and weights is not None:
        raise ConfigurationError(f"model.pretrained: {source} would replace these weights, leave one of them out")
    if init and (pretrained or weights is not None):
        raise ConfigurationError(f"model.init: {', '.join(init)} would change {source}, leave one of them out")
    if pretrained and name.startswith("cifar_"):
        remedy = "leave it out, or give a checkpoint or a state dict as model.weights"
        raise ConfigurationError(f"model.pretrained: timm has no weights of {name}: {remedy}")
    network = create_network(name, num_classes, {**network_args, **({"pretrained": True} if pretrained else {})})
    if "dirac" in init:
        init_dirac(network)
    if weights is not None:
        return network, load_weights(network, weights, weights_strict)
    return network, line_of_pretrained(network, num_classes) if pretrained else None


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

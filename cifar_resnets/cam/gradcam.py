"""Heatmaps: where in an image a network sees a class.

Source: Selvaraju et al. (2017), "Grad-CAM: Visual explanations from deep networks via gradient-based localization",
section 3. The other methods come from the package pytorch-grad-cam, and so does the scale of the maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnets.cam.feature_maps import (
    check_classes,
    check_found,
    check_layers,
    choose_layer,
    gradients_of,
    logits_of,
    tapped,
)
from cifar_resnets.cam.pytorch_grad_cam import LIBRARY_METHODS, library_maps
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.support.sandbox import like_network, plain_network, sandboxed
from cifar_resnets.support.tensor_layout import Layout

__all__ = ["METHODS", "choose_layer", "heatmaps"]

METHODS: tuple[str, ...] = ("gradcam", *LIBRARY_METHODS)
EPSILON = 1e-7  # as in pytorch-grad-cam: it decides how much a layer whose maps are all but flat counts


def heatmaps(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    method: str = "gradcam",
    layers: Sequence[str] | None = None,
) -> Tensor:
    """How much each place in each image speaks for some classes.

    Nothing of the network changes: neither its mode, nor its gradients, nor its buffers.

    Args:
        network: a classifier, compiled or not, in any precision.
        images: normalised images (n, 3, h, w), on any device.
        classes: int64 (n, k): k classes of each image, for example the predicted one and the true one.
        method: a name in `METHODS`; some, such as `eigencam`, give the same map for each class.
        layers: names of modules that return feature maps, over which the heatmaps are averaged; if not given, the one
            that `choose_layer` chooses.

    Returns:
        Heatmaps (n, k, h, w) in float32 on the CPU. Each goes from 0 to 1; if nothing speaks for the class, or the
        network's numbers are not finite, it is all 0.

    Raises:
        ConfigurationError: for an unknown method, a class that the network does not have, a layer that is not there or
            returns no feature map, or a network without logits.
    """
    if method not in METHODS:
        raise ConfigurationError(f"method: {method} is not allowed, give one of {', '.join(METHODS)}")
    if len(classes) != len(images) or classes.ndim != 2 or classes.is_floating_point():
        raise ConfigurationError(
            f"classes: {tuple(classes.shape)} {classes.dtype} is not allowed, give int64 ({len(images)}, k)"
        )
    if not classes.numel():
        return torch.zeros(*classes.shape, *images.shape[-2:])
    network = plain_network(network)
    names = check_layers(network, [choose_layer(network, images)] if layers is None else layers)
    with sandboxed(network, images):
        images, classes = like_network(network, images), classes.to(images.device, torch.int64, copy=True)
        if method == "gradcam":
            maps = gradcam(network, images, classes, names)
        else:
            maps = library_maps(method, network, images, classes, names)
        return torch.where(maps.isfinite().all(dim=(-2, -1), keepdim=True), maps, 0)


def gradcam(network: nn.Module, images: Tensor, classes: Tensor, layers: Sequence[str]) -> Tensor:
    """Grad-CAM in one forward pass for the batch, and a backward pass from the logits to the layer for each column.

    Args:
        network: a classifier, sandboxed.
        images: (n, 3, h, w), on its device.
        classes: int64 (n, k).
        layers: names of its modules, over which the maps are averaged.

    Returns:
        Heatmaps (n, k, h, w) from 0 to 1 in float32 on the CPU.

    Raises:
        ConfigurationError: see `heatmaps`.
    """
    features: dict[str, Tensor] = {}
    layouts: dict[str, Layout] = {}

    def visit(name: str, tensor: Tensor, layout: Layout) -> Tensor:
        # nothing before the first layer requires a gradient: the graph begins here
        features[name] = tensor.clone() if tensor.requires_grad else tensor.detach().requires_grad_()
        layouts[name] = layout
        return features[name].clone()  # what comes next may work in place

    with tapped(network, layers, visit):
        logits = logits_of(network, images)
        check_classes(classes, logits)
        check_found(network, layers, features)
        scores = logits.gather(1, classes).sum(dim=0)  # (n, classes) -> (k,): no image has a part in another's
        gradients = [gradients_of(score, features) for score in scores]  # k times (layers,)
    maps = []
    for index, (name, layout) in enumerate(layouts.items()):
        taken = layout.take(features[name])
        sums = torch.stack([_weighted_sum(taken, layout.take(each[index])) for each in gradients], dim=1)
        maps.append(_resized(scaled(sums), images.shape[-2:]))  # (n, k, h', w') -> (n, k, h, w)
    return scaled(torch.stack(maps).mean(dim=0)).cpu()


def scaled(maps: Tensor) -> Tensor:
    """Maps (..., h, w) from 0 to 1: less their minimum, divided by their maximum; a flat one is 0."""
    maps = maps - maps.amin(dim=(-2, -1), keepdim=True)
    return maps / (maps.amax(dim=(-2, -1), keepdim=True) + EPSILON)


def _weighted_sum(features: Tensor, gradients: Tensor) -> Tensor:
    """Equations 1 and 2 of Grad-CAM: (n, c, h', w') and the same -> (n, h', w')."""
    weights = gradients.detach().float().mean(dim=(2, 3))  # (n, c)
    return torch.einsum("nc,nchw->nhw", weights, features.detach().float()).relu()


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)

"""Computes heatmaps: which parts of an image increase the logit of a class.

Source: Selvaraju et al. (2017), "Grad-CAM: Visual explanations from deep networks via gradient-based localization",
section 3. The other methods come from the package pytorch-grad-cam, and so does the scale of the maps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnets.cam import feature_maps
from cifar_resnets.cam.pytorch_grad_cam import LIBRARY_METHODS, library_maps
from cifar_resnets.cam.tensor_layout import Layout
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.support.sandbox import like_network, plain_network, sandboxed

METHODS: tuple[str, ...] = ("gradcam", *LIBRARY_METHODS)
EPSILON = 1e-7  # as in pytorch-grad-cam: it sets the weight of a layer whose maps are nearly flat


def heatmaps(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    method: str = "gradcam",
    layers: Sequence[str] | None = None,
) -> Tensor:
    """Computes how much each part of each image speaks for given classes.

    The network is left as it was, with its mode, gradients and buffers.

    Args:
        network: a classifier, compiled or not, in any precision.
        images: normalised images (n, 3, h, w), on any device.
        classes: int64 (n, k): k classes of each image, for example the predicted one and the true one.
        method: a name in `METHODS`; some, such as `eigencam`, give the same map for each class.
        layers: names of modules that return feature maps, over which the heatmaps are averaged; `choose_layer` chooses
            one if not given.

    Returns:
        Heatmaps (n, k, h, w) in float32 on the CPU. Each goes from 0 to 1; it is all 0 if nothing speaks for the class,
        or the network's outputs are not finite.

    Raises:
        ConfigurationError: for an unknown method, a class that the network does not have, a layer that is not there or
            returns no feature map, or a network that returns no logits.
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
    chosen = [feature_maps.choose_layer(network, images)] if layers is None else layers
    names = feature_maps.check_layers(network, chosen)
    with sandboxed(network, images):
        images, classes = like_network(network, images), classes.to(images.device, torch.int64, copy=True)
        if method == "gradcam":
            maps = gradcam(network, images, classes, names)
        else:
            maps = library_maps(method, network, images, classes, names)
        return torch.where(maps.isfinite().all(dim=(-2, -1), keepdim=True), maps, 0)


def gradcam(network: nn.Module, images: Tensor, classes: Tensor, layers: Sequence[str]) -> Tensor:
    """Computes Grad-CAM with one forward pass of the batch, and a backward pass down to the layers for each column.

    The network is sandboxed, and the images are on its device; see `heatmaps` for the rest.
    """
    features: dict[str, Tensor] = {}
    layouts: dict[str, Layout] = {}

    def visit(name: str, tensor: Tensor, layout: Layout) -> Tensor:
        # nothing before the first layer requires a gradient: the graph starts here
        features[name] = tensor.clone() if tensor.requires_grad else tensor.detach().requires_grad_()
        layouts[name] = layout
        return features[name].clone()  # what comes next may work in place

    with feature_maps.tapped(network, layers, visit):
        logits = feature_maps.logits_of(network, images)
        feature_maps.check_classes(classes, logits)
        feature_maps.check_found(network, layers, features)
        scores = logits.gather(1, classes).sum(dim=0)  # (n, k) -> (k,): no image depends on another
        gradients = [feature_maps.gradients_of(score, features) for score in scores]  # k times (layers,)
    maps = []
    for index, (name, layout) in enumerate(layouts.items()):
        taken = layout.take(features[name])
        sums = torch.stack([_weighted_sum(taken, layout.take(each[index])) for each in gradients], dim=1)
        maps.append(F.interpolate(scaled(sums), images.shape[-2:], mode="bilinear"))  # (n, k, h', w') -> (n, k, h, w)
    return scaled(torch.stack(maps).mean(dim=0)).cpu()


def scaled(maps: Tensor) -> Tensor:
    """Scales maps (..., h, w) to the range from 0 to 1; a flat one becomes 0."""
    maps = maps - maps.amin(dim=(-2, -1), keepdim=True)
    return maps / (maps.amax(dim=(-2, -1), keepdim=True) + EPSILON)


def _weighted_sum(features: Tensor, gradients: Tensor) -> Tensor:
    """Computes equations 1 and 2 of Grad-CAM: (n, c, h', w') and the same -> (n, h', w')."""
    weights = gradients.detach().float().mean(dim=(2, 3))  # (n, c)
    return torch.einsum("nc,nchw->nhw", weights, features.detach().float()).relu()

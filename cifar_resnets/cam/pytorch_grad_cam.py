"""Computes heatmaps by the methods of the package pytorch-grad-cam, without its side effects.

The package switches a network to evaluation for good, gives every parameter a gradient, fails on frozen layers and in
bfloat16, and its progress bars cannot be turned off. Here it works on a copy that is discarded, without the bars.
"""

import contextlib
import copy
import io
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_resnets.cam.feature_maps import check_classes, check_found, gradients_of, logits_of, tapped
from cifar_resnets.cam.tensor_layout import Layout
from cifar_resnets.errors import ConfigurationError

# its usual names, and its classes; not those that take no layer, draw random weights, or combine other methods
LIBRARY_METHODS = {
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "gradcamelementwise": "GradCAMElementWise",
    "layercam": "LayerCAM",
    "xgradcam": "XGradCAM",
    "shapleycam": "ShapleyCAM",
    "finercam": "FinerCAM",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "kpcacam": "KPCA_CAM",
    "fem": "FEM",
}


class TappedCopy(nn.Module):
    """A copy of a network in float32 that passes feature maps, as (n, c, h, w), through extra modules.

    The library hooks these modules: it handles neither other layouts, nor tuples, nor modules that run twice (here the
    last run counts), nor maps that are changed in place.

    Raises:
        ConfigurationError: when the network cannot be copied.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = _float32_copy(network)
        self.names = list(names)
        self.taps = nn.ModuleList(nn.Identity() for _ in names)
        self.num_runs: Counter[str] = Counter()
        self.features: dict[str, Tensor] = {}  # of the first forward pass

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, num_classes)."""
        runs: Counter[str] = Counter()

        def visit(name: str, tensor: Tensor, layout: Layout) -> Tensor:
            runs[name] += 1
            if runs[name] < self.num_runs[name]:  # counted in the first forward pass
                return tensor
            features = self.taps[self.names.index(name)](layout.take(tensor.clone()))
            if not self.num_runs:
                self.features.pop(name, None)
                self.features[name] = features  # in the order in which they run
            return layout.put(tensor, features).clone()

        with tapped(self.network, self.names, visit):
            logits = logits_of(self.network, images)
        self.num_runs = runs
        return logits


def library_maps(method: str, network: nn.Module, images: Tensor, classes: Tensor, layers: Sequence[str]) -> Tensor:
    """Computes heatmaps by one of the library's methods; zeros for images whose logits are not finite.

    The network is sandboxed, and the images are on its device; see `heatmaps` for the rest.
    """
    images = images.float()
    twin = TappedCopy(network, layers)
    logits = twin(images)
    check_found(network, layers, twin.features)
    check_classes(classes, logits)
    gradients_of(logits.sum(), twin.features)
    in_order = [twin.taps[twin.names.index(name)] for name in twin.features]  # the order that the library expects
    twin.features.clear()  # frees the graph
    maps = torch.zeros(*classes.shape, *images.shape[-2:])
    finite = logits.detach().isfinite().all(dim=1)
    if finite.any():
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            cam = _cam(method, twin, in_order)
            columns = [_run(cam, method, images[finite], column, logits.shape[1]) for column in classes[finite].T]
        maps[finite.cpu()] = torch.stack(columns, dim=1)
    return maps


def _float32_copy(network: nn.Module) -> nn.Module:
    try:
        twin = copy.deepcopy(network).float()
    except (RuntimeError, TypeError) as error:  # for example it holds a lock, or a tensor with a graph
        reason = str(error).partition("\n")[0]
        message = f"network: cannot be copied, give the method gradcam, which needs no copy: {reason}"
        raise ConfigurationError(message) from error
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return twin


def _cam(method: str, twin: TappedCopy, taps: list[nn.Module]) -> Any:
    import pytorch_grad_cam as library  # type: ignore[import-untyped]  # seconds of import

    # the default is a shared object, which would keep the activations
    options = {"ablation_layer": library.AblationLayer()} if method == "ablationcam" else {}
    return getattr(library, LIBRARY_METHODS[method])(twin, taps, **options)


def _run(cam: Any, method: str, images: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Computes heatmaps (n, h, w) of a class (n,) for each image."""
    if method != "finercam":
        return torch.from_numpy(cam(images, [itemgetter(label) for label in classes.tolist()]))
    others = list(range(1, min(4, num_classes)))  # ranks of the most similar classes
    pairs = zip(images, classes.tolist(), strict=True)
    maps = [cam(image[None], comparison_categories=others, target_idx=label)[0] for image, label in pairs]
    return torch.from_numpy(np.stack(maps))

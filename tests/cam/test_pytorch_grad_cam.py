"""The library's methods, on a copy: equal to the library itself, where that works."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
from networks import randomise
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.cam.gradcam import heatmaps
from cifar_resnets.cam.pytorch_grad_cam import LIBRARY_METHODS

pytestmark = pytest.mark.usefixtures("one_thread")


def network_and_batch() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1), widths=(8, 8, 8), stem_width=8)
    return randomise(network).eval(), torch.randn(2, 3, 32, 32), torch.tensor([[1, 2], [3, 9]])


@pytest.mark.parametrize("method", sorted(set(LIBRARY_METHODS) - {"finercam"}))
@pytest.mark.parametrize("layers", [["layer3"], ["layer3", "layer2"]], ids=["one", "two"])
def test_equals_the_library(method: str, layers: list[str]) -> None:
    network, images, classes = network_and_batch()
    twin = copy.deepcopy(network)
    in_order = sorted(layers)  # it takes activations in the order in which layers run
    cam = getattr(pytorch_grad_cam, LIBRARY_METHODS[method])(twin, [twin.get_submodule(name) for name in in_order])
    columns = [cam(images.clone(), [ClassifierOutputTarget(int(label)) for label in column]) for column in classes.T]
    maps = heatmaps(network, images, classes, method, layers)
    assert maps.amax() > 0.99
    np.testing.assert_allclose(maps.numpy(), np.stack(columns, axis=1), atol=1e-4)


def test_finercam_equals_the_library() -> None:
    network, images, classes = network_and_batch()
    twin = copy.deepcopy(network)
    cam = pytorch_grad_cam.FinerCAM(twin, [twin.layer3])
    maps = heatmaps(network, images, classes, "finercam", ["layer3"])
    for image, labels, found in zip(images, classes, maps, strict=True):
        for label, each in zip(labels.tolist(), found, strict=True):
            np.testing.assert_allclose(each.numpy(), cam(image[None].clone(), target_idx=label)[0], atol=1e-4)


def small_vit() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4}
    network = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    return network, torch.randn(2, 3, 32, 32), torch.tensor([[0, 1], [2, 3]])


@pytest.mark.parametrize("method", ["scorecam", "layercam", "gradcam++"])
def test_tokens_equal_the_library(method: str) -> None:
    network, images, classes = small_vit()
    twin = copy.deepcopy(network)
    cam = getattr(pytorch_grad_cam, LIBRARY_METHODS[method])(
        twin, [twin.blocks[0]], lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    )
    columns = [cam(images.clone(), [ClassifierOutputTarget(int(label)) for label in column]) for column in classes.T]
    maps = heatmaps(network, images, classes, method, ["blocks.0"])
    assert maps.amax() > 0.99
    np.testing.assert_allclose(maps.numpy(), np.stack(columns, axis=1), atol=1e-4)


def test_channels_of_tokens_are_ablated() -> None:
    """In passes of 24 images, one a channel, for a batch of 2."""
    network, images, classes = small_vit()
    maps = heatmaps(network, images, classes, "ablationcam", ["blocks.0"])
    assert maps.amax() > 0.99
    assert not torch.allclose(maps[:, 0], maps[:, 1], atol=0.01)


def test_a_network_that_cannot_be_copied() -> None:
    network, images, classes = network_and_batch()
    network.lock = threading.Lock()
    assert heatmaps(network, images, classes).any()
    with pytest.raises(ValueError, match="network: cannot be copied, give the method gradcam") as caught:
        heatmaps(network, images, classes, "layercam")
    assert "\n" not in str(caught.value)

"""The effective field: against convolutions that can be worked out by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.receptive_field.effective import effective_field, effective_size, stage_names


class TwoConvolutions(nn.Module):
    """Two box filters: the field of the second is their convolution, a triangle along each axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(2))
        nn.init.ones_(self.first.weight)
        nn.init.ones_(self.second.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images))


def test_two_box_filters_make_a_triangle() -> None:
    field = effective_field(TwoConvolutions(), torch.randn(3, 1, 9, 11), "second")
    triangle = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    expected = torch.zeros(9, 11)
    expected[2:7, 3:8] = triangle[:, None] * triangle / 9
    torch.testing.assert_close(field, expected)


def test_it_is_the_mean_over_images_of_the_magnitude() -> None:
    torch.manual_seed(0)
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1)).eval()
    images = torch.randn(3, 3, 16, 16)
    features: list[Tensor] = []
    network.layer2.register_forward_hook(lambda *args: features.append(args[2]))
    total = torch.zeros(16, 16)
    for image in images:
        image = image[None].requires_grad_()
        network(image)
        features[-1][0, :, 4, 4].sum().backward()
        total += image.grad[0].abs().sum(0)
    torch.testing.assert_close(effective_field(network, images, "layer2"), total / total.max(), rtol=1e-4, atol=1e-6)


def test_size_of_a_square() -> None:
    field = torch.zeros(20, 20)
    field[3:10, 5:12] = 0.5
    field[0, 0] = 0.5 * (1 - 0.9545) * 0.99  # does not count
    assert effective_size(field) == 7


def test_leaves_no_trace() -> None:
    network = timm.create_model("cifar_resnet20").train()
    network.layer1.eval()
    network.conv1.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    with torch.inference_mode():
        effective_field(network, torch.randn(2, 3, 32, 32), "layer3")
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("layer", ["layer9", "fc", "head_drop.x"])
def test_layers_that_have_no_field(layer: str) -> None:
    with pytest.raises(ValueError, match=f"layers: .*{layer}"):
        effective_field(timm.create_model("cifar_resnet20"), torch.randn(1, 3, 32, 32), layer)


def test_stages() -> None:
    assert stage_names(timm.create_model("cifar_resnet18")) == ["layer1", "layer2", "layer3", "layer4"]
    assert stage_names(timm.create_model("cifar_preact_resnet110")) == ["layer1", "layer2", "act1"]
    assert stage_names(timm.create_model("resnet18", features_only=True))[-1] == "layer4"
    assert stage_names(nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.ReLU())) == ["0"]

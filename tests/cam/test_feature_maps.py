"""Which layer is chosen for heatmaps, in all our networks, in many of timm's and in some without any description."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from networks import NAMES, SLOW_NAMES, shared_network
from torch import Tensor, nn

from cifar_resnets.cam.feature_maps import choose_layer, tapped
from cifar_resnets.models.resnet import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("one_thread")

# images of 32 x 32: the last stage of 8 x 8 units; after pre-activated blocks, the activation that the head sees
EXPECTED = {name: "layer3" for name in NAMES} | {
    **{name: "act1" for name in NAMES if "preact" in name or "wide" in name},
    "cifar_resnet34_imagenet_stem": "layer1",
    "cifar_custom_resnet": "layer2",
    "cifar_speednet": "layer1",
}

SMALL_SWIN = {"img_size": 64, "embed_dim": 12, "depths": (1, 1, 1), "num_heads": (1, 2, 4), "window_size": 4}
SMALL_VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
# side of the images, keywords, the layer, and its layout: kind, height, tokens before those of the map
FAMILIES = {
    "test_byobnet": (160, {}, "stages.2", ("nchw", 10, 0)),
    "test_coatnet": (160, {}, "stages.2", ("nchw", 10, 0)),
    "test_convnext": (160, {}, "stages.2", ("nchw", 10, 0)),
    "test_efficientnet": (160, {}, "blocks.3", ("nchw", 10, 0)),
    "test_mambaout": (160, {}, "stages.2", ("nhwc", 10, 0)),
    "test_maxvit": (160, {}, "stages.2", ("nchw", 10, 0)),
    "test_nfnet": (160, {}, "stages.2", ("nchw", 10, 0)),
    "test_resnet": (160, {}, "layer3", ("nchw", 10, 0)),
    "resnet18": (32, {}, "layer1", ("nchw", 8, 0)),
    "mobilenetv3_small_050": (64, {}, "blocks.1", ("nchw", 8, 0)),
    "densenet121": (64, {"growth_rate": 4, "block_config": (1, 1, 1, 1)}, "features.denseblock2", ("nchw", 8, 0)),
    "swin_tiny_patch4_window7_224": (64, SMALL_SWIN, "layers.1", ("nhwc", 8, 0)),
    # the last block passes on nothing but the class token, where that is what the head sees
    "vit_tiny_patch16_224": (64, SMALL_VIT, "blocks.1", ("tokens", 8, 1)),
    "deit_tiny_distilled_patch16_224": (64, SMALL_VIT, "blocks.1", ("tokens", 8, 2)),
    "vit_base_patch16_reg4_gap_256": (64, SMALL_VIT, "blocks.2", ("tokens", 8, 4)),
    "mixer_s16_224": (64, {"img_size": 64}, "blocks.7", ("tokens", 4, 0)),
    "pit_ti_224": (64, {"img_size": 64}, "transformers.0", ("nchw", 7, 0)),  # a tuple with the class token
    "levit_128s": (224, {}, "stages.0", ("tokens", 14, 0)),
}


@pytest.mark.parametrize("name", sorted(set(NAMES) - SLOW_NAMES))
def test_our_networks(name: str) -> None:
    network = shared_network(name)
    assert choose_layer(network, torch.randn(2, 3, 32, 32)) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(SLOW_NAMES))
def test_our_deepest_networks_with_fewer_blocks(name: str) -> None:
    network = timm.create_model(name, depths=(1,) * len(ARCHITECTURES[name]["depths"]))
    assert choose_layer(network, torch.randn(1, 3, 32, 32)) == EXPECTED[name]


@pytest.mark.parametrize(
    ("size", "min_size", "layer"),
    [(32, 8, "layer3"), (32, 16, "layer2"), (32, 9, "layer2"), (32, 1, "layer4"), (16, 8, "layer2"), (96, 8, "layer4")],
)
def test_it_is_the_last_that_is_large_enough(size: int, min_size: int, layer: str) -> None:
    network = timm.create_model("cifar_resnet18", depths=(1, 1, 1, 1), widths=(4, 4, 4, 4), stem_width=4)
    assert choose_layer(network, torch.randn(1, 3, size, size), min_size) == layer


def test_both_sides_count() -> None:
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1))
    assert choose_layer(network, torch.randn(1, 3, 16, 64)) == "layer2"


def test_without_a_large_one_it_is_the_largest_and_of_equals_the_last() -> None:
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1))
    assert choose_layer(network, torch.randn(1, 3, 8, 8), min_size=9) == "layer1"
    vit = timm.create_model("vit_tiny_patch16_224", **SMALL_VIT | {"patch_size": 16}, global_pool="avg")
    assert choose_layer(vit, torch.randn(1, 3, 64, 64)) == "blocks.2"


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_timm(name: str) -> None:
    size, arguments, layer, layout = FAMILIES[name]
    network = timm.create_model(name, num_classes=5, **arguments).eval()
    images, found = torch.randn(2, 3, size, size), []
    chosen = choose_layer(network, images)
    assert chosen == layer

    def visit(name, tensor, layout):
        found.append((layout.kind, layout.height, layout.num_prefix))
        assert layout.height == layout.width
        features = layout.take(tensor)
        assert features.shape[2:] == (layout.height, layout.width)
        assert torch.equal(layout.put(tensor, features), tensor)
        return tensor

    with tapped(network, [chosen], visit), torch.no_grad():
        network(images)
    assert found == [layout]


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "levit_128s", "test_mambaout"])
def test_the_map_has_the_order_of_the_image(name: str) -> None:
    """What changes in a quarter of the image changes the map most there."""
    size, arguments, *_ = FAMILIES.get(name, (160, {}))
    torch.manual_seed(0)
    network = timm.create_model(name, **arguments).eval()
    images = torch.randn(1, 3, size, size).repeat(5, 1, 1, 1)
    quarter, part = size // 2, size // 6
    for index in range(4):
        row, column = (quarter * side + part for side in divmod(index, 2))
        images[index + 1, :, row : row + part, column : column + part] += 3
    maps = []
    with tapped(network, [choose_layer(network, images)], lambda name, tensor, layout: keep(maps, tensor, layout)):
        network(images)
    change = (maps[0][1:] - maps[0][0]).abs().sum(dim=1).detach()
    for index in range(4):
        row, column = divmod(int(change[index].argmax()), change.shape[2])
        assert (2 * row // change.shape[1], 2 * column // change.shape[2]) == divmod(index, 2)


def keep(maps: list[Tensor], tensor: Tensor, layout) -> Tensor:
    maps.append(layout.take(tensor))
    return tensor


# Networks that say nothing about themselves.


@pytest.mark.parametrize("name", sorted(set(NAMES) - SLOW_NAMES))
def test_our_networks_without_their_description(name: str) -> None:
    network = copy.copy(shared_network(name))
    network.feature_info = None
    before_pooling = {"cifar_custom_resnet": "layer3.0.conv1", "cifar_speednet": "layer2.conv1"}
    expected = before_pooling.get(name, EXPECTED[name])
    assert choose_layer(network, torch.randn(1, 3, 32, 32)) == expected


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (torchvision.models.resnet18(), "layer2"),
        (torchvision.models.mobilenet_v3_small(), "features.4.block.0"),  # widens, in a block without a shortcut
        (torchvision.models.SwinTransformer([4, 4], 12, [1, 1, 1], [1, 2, 4], [4, 4]), "features.3"),
        (torchvision.models.VisionTransformer(64, 8, 3, 3, 24, 48), "encoder.layers.encoder_layer_1"),
    ],
    ids=["resnet", "mobilenet", "swin", "vit"],
)
def test_networks_of_torchvision(network: nn.Module, layer: str) -> None:
    for head in ("fc", "classifier", "head", "heads"):
        for parameter in getattr(network, head, nn.Identity()).parameters():
            nn.init.normal_(parameter)  # the ViT's is zero, and passes no gradient on
    assert choose_layer(network, torch.randn(1, 3, 64, 64)) == layer


class Residual(nn.Module):
    """Two branches that meet again, and a network whose description names what is no module."""

    feature_info = [{"module": "gone", "num_chs": 4, "reduction": 1}]

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem, self.branch, self.unused = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.act(self.stem(images))
        self.unused(features)
        features = features + self.branch(features)
        return self.fc(features.mean(dim=(2, 3)))


def test_nothing_of_the_image_goes_round_the_layer() -> None:
    assert choose_layer(Residual(), torch.randn(1, 3, 8, 8)) == "act"


def test_a_head_of_zeros() -> None:
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1))
    nn.init.zeros_(network.fc.weight)
    assert choose_layer(network, torch.randn(1, 3, 32, 32)) == "layer3"


def test_a_backbone_that_passes_on_something_else_than_its_map() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.down = nn.Conv2d(4, 4, 2, stride=2)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.conv(images)
            return features, self.down(features).mean(dim=(2, 3))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone()

        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images)[1]

    assert choose_layer(Network(), torch.randn(1, 3, 16, 16)) == "backbone.down"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_leaves_no_trace(mode) -> None:
    network = Residual().train()
    network.stem.eval()
    network.requires_grad_(False)
    with mode():
        images = torch.randn(2, 3, 16, 16)
        before = images.clone()
        assert choose_layer(network, images) == "act"
    assert torch.equal(images, before)
    assert (network.training, network.stem.training, network.fc.training) == (True, False, True)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("network", "images", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), torch.randn(1, 3, 8, 8), "no feature map"),
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), torch.randn(1, 3, 8, 8), "no feature map"),
        (nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), "returns \\(1, 4, 6, 6\\), not logits"),
        (timm.create_model("cifar_resnet20", features_only=True), torch.randn(1, 3, 8, 8), "returns list, not logits"),
        (Residual(), torch.randn(0, 3, 8, 8), "images: there is none"),
    ],
)
def test_networks_without(network: nn.Module, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        choose_layer(network, images)
    assert type(caught.value).__name__ == "ConfigurationError"
    assert "\n" not in str(caught.value)

"""Residual networks for CIFAR: the class `ResidualNetwork`, and all its variants in the table `ARCHITECTURES`.

Every network takes timm's keywords (`num_classes`, `in_chans`, `drop_rate`, `features_only`) and those
of `ResidualNetwork`, which replace the entries of the table:
`timm.create_model("cifar_resnet20", num_classes=7, shortcut="B")`.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.blocks import BasicBlock, Bottleneck, PreActBlock, PreActBottleneck, ResidualBlock
from cifar_resnets.models.layers import TimmNetwork, build_network, cifar_cfg, conv3x3, init_he

__all__ = ["ARCHITECTURES", "ResidualNetwork"]

STEMS = ("cifar", "imagenet")


class ResidualNetwork(TimmNetwork):
    """A stem, stages of residual blocks that each but the first halve height and width, and a head.

    Modules are registered in the order in which they run: `forward_features` and timm's `features_only`
    both rely on it.

    Source: He et al. (2015), "Deep residual learning for image recognition", section 4.2; with
    pre-activated blocks He et al. (2016), "Identity mappings in deep residual networks". Departure: the
    network takes images of any size from 8 by 8 pixels, because it pools whatever the last stage returns.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        stem_width: int,
        shortcut: str,
        block: type[ResidualBlock] = BasicBlock,
        stem: str = "cifar",
        convolution: str = "regular",
        drop_path_rate: float = 0.0,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        """Builds the network.

        Args:
            depths: Blocks in each stage.
            widths: Channels of the 3x3 convolutions in each stage.
            stem_width: Channels of the stem.
            shortcut: A name in `shortcuts.SHORTCUTS`: "A" (zero channels), "B" (projection where the shape
                changes), "C" (projection everywhere), "none" (a plain network), ...
            block: Class of the blocks.
            stem: "cifar" (3x3, keeps height and width) or "imagenet" (7x7 and max pooling, a quarter of both).
            convolution: A name in `layers.CONVOLUTIONS`, the kind of the 3x3 convolutions in the blocks.
            drop_path_rate: Probability with which the last block's residual is left out in training;
                stochastic depth of Huang et al. (2016), linear from 0 in the first block.
            num_classes: Length of the logits; 0 makes the network return its pooled features.
            in_chans: Channels of the images.
            drop_rate: Probability of the dropout before the classifier.
            global_pool: "avg", "max", or "" for none, which needs num_classes=0.

        Raises:
            ConfigurationError: If an argument does not make sense.
        """
        super().__init__()
        _check_layers(block, depths, widths, stem_width, in_chans)
        _check_choices(stem, drop_path_rate)
        self.in_chans = in_chans
        self.add_stem(stem, stem_width)
        if not block.pre_activated:
            self.add_norm(stem_width)
        if stem == "imagenet":
            self.pool1 = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

        self.feature_info = []
        in_channels, reduction = stem_width, 4 if stem == "imagenet" else 1
        drop_paths = iter(_linear(drop_path_rate, sum(depths)))
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                is_first = index == position == 0
                blocks.append(block(in_channels, width, stride, shortcut, convolution, next(drop_paths), is_first))
                in_channels = width * block.expansion
            name = f"layer{index + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": in_channels, "reduction": reduction * 2**index, "module": name})

        if block.pre_activated:
            self.add_norm(in_channels)
            self.feature_info[-1]["module"] = "act1"  # the input of the head
        self.trunk = [name for name, _ in self.named_children()]
        self.add_head(global_pool, in_channels, num_classes, drop_rate)
        self.apply(init_he)

    def add_stem(self, stem: str, width: int) -> None:
        """Appends the first convolution; for the arguments see `__init__`."""
        self.conv1 = conv3x3(self.in_chans, width)
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(self.in_chans, width, kernel_size=7, stride=2, padding=3, bias=False)

    def add_norm(self, channels: int) -> None:
        """Appends batch norm and ReLU: after the stem, or after the last pre-activated block."""
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns features (n, num_features, h', w'): each stage but the first halves h and w, rounding up."""
        features = images  # (n, 3, 32, 32)
        for name in self.trunk:
            features = self.get_submodule(name)(features)  # (n, 16, 32, 32), (n, 32, 16, 16), (n, 64, 8, 8)
        return features


def _check_layers(
    block: type[ResidualBlock], depths: Sequence[int], widths: Sequence[int], stem_width: int, in_chans: int
) -> None:
    if not (isinstance(block, type) and issubclass(block, ResidualBlock)):
        raise ConfigurationError(f"block={block!r} is no class of blocks: choose a network that is made of them")
    if len(depths) != len(widths) or not depths or not all(map(_is_count, (*depths, *widths))):
        raise ConfigurationError(
            f"depths={depths} and widths={widths} must have one entry for each stage, each a whole number from 1"
        )
    for name, count in (("stem_width", stem_width), ("in_chans", in_chans)):
        if not _is_count(count):
            raise ConfigurationError(f"{name}={count!r} is no number of channels: use a whole number from 1")


def _check_choices(stem: str, drop_path_rate: float) -> None:
    if stem not in STEMS:
        raise ConfigurationError(f"stem={stem!r} is unknown: use {' or '.join(map(repr, STEMS))}")
    if not (isinstance(drop_path_rate, int | float) and 0 <= drop_path_rate < 1):
        raise ConfigurationError(f"drop_path_rate={drop_path_rate!r} is no probability: use 0 to below 1")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def _linear(last: float, num: int) -> list[float]:
    """Returns `num` rates from 0 to `last`."""
    return [last * index / max(1, num - 1) for index in range(num)]


def _thin(blocks: int, **other: Any) -> dict[str, Any]:
    """Returns the arguments of a network of He et al. (2015), section 4.2: n blocks in each of three stages."""
    return {"depths": (blocks,) * 3, "widths": (16, 32, 64), "stem_width": 16, "shortcut": "A"} | other


def _full(*depths: int, **other: Any) -> dict[str, Any]:
    """Returns the arguments of an ImageNet ResNet of He et al. (2015), table 1, with a 3x3 stem of stride 1."""
    return {"depths": depths, "widths": (64, 128, 256, 512), "stem_width": 64, "shortcut": "B"} | other


def _wide(blocks: int, factor: int) -> dict[str, Any]:
    """Returns the arguments of a wide ResNet of Zagoruyko and Komodakis (2016), table 1."""
    widths = (16 * factor, 32 * factor, 64 * factor)
    return _thin(blocks, widths=widths, block=PreActBlock, shortcut="B")


# The arguments of `ResidualNetwork` for each registered name. To add a network, add a line here, and a row with its
# published parameter count and its receptive field to tests/reference/architectures.csv.
ARCHITECTURES = {
    # He et al. (2015), section 4.2: 6n + 2 layers; plain networks without shortcuts
    "cifar_resnet20": _thin(3),
    "cifar_resnet32": _thin(5),
    "cifar_resnet44": _thin(7),
    "cifar_resnet56": _thin(9),
    "cifar_resnet110": _thin(18),
    "cifar_resnet1202": _thin(200),
    "cifar_plain20": _thin(3, shortcut="none"),
    "cifar_plain32": _thin(5, shortcut="none"),
    "cifar_plain44": _thin(7, shortcut="none"),
    "cifar_plain56": _thin(9, shortcut="none"),
    "cifar_resnet56_depthwise": _thin(9, convolution="separable_downsampling"),
    # He et al. (2015), table 1, for ImageNet
    "cifar_resnet18": _full(2, 2, 2, 2),
    "cifar_resnet34": _full(3, 4, 6, 3),
    "cifar_resnet50": _full(3, 4, 6, 3, block=Bottleneck),
    "cifar_resnet101": _full(3, 4, 23, 3, block=Bottleneck),
    "cifar_resnet152": _full(3, 8, 36, 3, block=Bottleneck),
    "cifar_resnet34_imagenet_stem": _full(3, 4, 6, 3, stem="imagenet", convolution="biased"),
    # He et al. (2016), table 2: 6n + 2 layers, or 9n + 2 with bottlenecks
    "cifar_preact_resnet110": _thin(18, block=PreActBlock),
    "cifar_preact_resnet164": _thin(18, block=PreActBottleneck, shortcut="B"),
    "cifar_preact_resnet1001": _thin(111, block=PreActBottleneck, shortcut="B"),
    # Zagoruyko and Komodakis (2016), "Wide residual networks", table 1: 6n + 4 layers
    "cifar_wide_resnet16_8": _wide(2, 8),
    "cifar_wide_resnet28_10": _wide(4, 10),
}

# `register_model` reads this variable of the module.
default_cfgs = generate_default_cfgs({name: cifar_cfg() for name in ARCHITECTURES})


def _register(name: str) -> None:
    """Registers a network of the table in timm, and makes it a function of this module."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        arguments = ARCHITECTURES[name] | kwargs
        if not isinstance(depths := arguments["depths"], Sequence):
            raise ConfigurationError(f"depths={depths!r} must have one entry for each stage")
        return build_network(ResidualNetwork, name, pretrained, num_stages=len(depths), **arguments)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Builds {name} as in `ARCHITECTURES`, with the caller's keywords in place of the table's."
    globals()[name] = register_model(create)


for _name in ARCHITECTURES:
    _register(_name)

"""Residual networks for CIFAR: one class, and the family's depths and widths in one table.

Every network takes timm's keywords (`num_classes`, `in_chans`, `drop_rate`, `features_only`) and those
of `ResidualNetwork`, which replace the entries of the table:
`timm.create_model("cifar_resnet20", num_classes=7, shortcut="B")`.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.layers import TimmNetwork, build_network, cifar_cfg, conv3x3, init_he, make_shortcut

__all__ = ["BasicBlock", "ResidualNetwork"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm, and a shortcut around both.

    Source: He et al. (2015), "Deep residual learning for image recognition", figure 5, left.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        """Build the block.

        Args:
            in_channels: Channels coming in.
            out_channels: Channels going out.
            stride: Step of the first convolution in pixels.
            shortcut: "A", "B" or "C"; see `layers.make_shortcut`.

        Raises:
            ConfigurationError: If `shortcut` is unknown.
        """
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        # No ReLU works in place: it would change what a hook on the batch norm before it has seen.
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the two convolutions.

        Args:
            x: Features (n, in_channels, h, w).

        Returns:
            Features (n, out_channels, ceil(h / stride), ceil(w / stride)).
        """
        residual = self.act1(self.bn1(self.conv1(x)))  # (n, 16, 32, 32) -> (n, 32, 16, 16)
        residual = self.bn2(self.conv2(residual))  # (n, 32, 16, 16)
        features: Tensor = self.act2(residual + self.shortcut(x))  # (n, 32, 16, 16)
        return features


class ResidualNetwork(TimmNetwork):
    """A stem, stages of residual blocks that each but the first halve height and width, and a head.

    Source: He et al. (2015), "Deep residual learning for image recognition", section 4.2. Departure: the
    network takes images of any size from 8 by 8 pixels, because it pools whatever the last stage returns.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        stem_width: int,
        shortcut: str,
        block: type[BasicBlock] = BasicBlock,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        """Build the network.

        Args:
            depths: Blocks in each stage.
            widths: Channels of each stage.
            stem_width: Channels of the stem, a 3x3 convolution that keeps height and width.
            shortcut: "A" (zero channels), "B" (projection where the shape changes) or "C" (projection
                everywhere).
            block: Class of the blocks, called with channels in, channels out, stride and shortcut.
            num_classes: Length of the logits; 0 makes the network return its pooled features.
            in_chans: Channels of the images.
            drop_rate: Probability of the dropout before the classifier.

        Raises:
            ConfigurationError: If `depths` and `widths` differ in length, or `shortcut` is unknown.
        """
        super().__init__()
        if len(depths) != len(widths):
            raise ConfigurationError(f"depths={depths} and widths={widths} must have one entry for each stage")
        self.in_chans = in_chans
        self.conv1 = conv3x3(in_chans, stem_width)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.act1 = nn.ReLU()

        self.feature_info = []
        in_channels = stem_width
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(block(in_channels, width, stride, shortcut))
                in_channels = width
            name = f"layer{index + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**index, "module": name})

        self.add_head(nn.AdaptiveAvgPool2d(1), in_channels, num_classes, drop_rate)
        self.apply(init_he)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return what the last stage sees in the images.

        Args:
            images: Normalised images (n, in_chans, h, w).

        Returns:
            Features (n, num_features, h', w'), where each stage but the first halves h and w, rounding up.
        """
        features: Tensor = self.act1(self.bn1(self.conv1(images)))  # (n, 3, 32, 32) -> (n, 16, 32, 32)
        for stage in self.feature_info:
            features = self.get_submodule(stage["module"])(features)  # (n, 32, 16, 16), then (n, 64, 8, 8)
        return features


def _thin(blocks: int) -> dict[str, Any]:
    """Describe the 6n + 2 layers of He et al. (2015), section 4.2, with n blocks in each stage."""
    return {"depths": (blocks,) * 3, "widths": (16, 32, 64), "stem_width": 16, "shortcut": "A"}


def _full(*depths: int) -> dict[str, Any]:
    """Describe an ImageNet ResNet of He et al. (2015), table 1, whose stem does not reduce."""
    return {"depths": depths, "widths": (64, 128, 256, 512), "stem_width": 64, "shortcut": "B"}


ARCHITECTURES = {
    "cifar_resnet20": _thin(3),
    "cifar_resnet32": _thin(5),
    "cifar_resnet44": _thin(7),
    "cifar_resnet56": _thin(9),
    "cifar_resnet110": _thin(18),
    "cifar_resnet1202": _thin(200),
    "cifar_resnet18": _full(2, 2, 2, 2),
    "cifar_resnet34": _full(3, 4, 6, 3),
}

# timm looks for this very name when a network of this module is registered.
default_cfgs = generate_default_cfgs({name: cifar_cfg() for name in ARCHITECTURES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build the network of the table, with the caller's keywords in place of the table's."""
    arguments = ARCHITECTURES[name] | kwargs
    return build_network(ResidualNetwork, name, pretrained, num_stages=len(arguments["depths"]), **arguments)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 of He et al. (2015), table 6: 269,722 parameters, 91.25 % on CIFAR-10."""
    return _create("cifar_resnet20", pretrained, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-32 of He et al. (2015), table 6: 464,154 parameters, 92.49 % on CIFAR-10."""
    return _create("cifar_resnet32", pretrained, **kwargs)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-44 of He et al. (2015), table 6: 658,586 parameters, 92.83 % on CIFAR-10."""
    return _create("cifar_resnet44", pretrained, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56 of He et al. (2015), table 6: 853,018 parameters, 93.03 % on CIFAR-10."""
    return _create("cifar_resnet56", pretrained, **kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-110 of He et al. (2015), table 6: 1,727,962 parameters, 93.57 % on CIFAR-10 (best of 5, mean 93.39)."""
    return _create("cifar_resnet110", pretrained, **kwargs)


@register_model
def cifar_resnet1202(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-1202 of He et al. (2015), table 6: 19,421,274 parameters, 92.07 % on CIFAR-10."""
    return _create("cifar_resnet1202", pretrained, **kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 of He et al. (2015), table 1, with a 3x3 stem of stride 1 and no pooling: 11,173,962 parameters."""
    return _create("cifar_resnet18", pretrained, **kwargs)


@register_model
def cifar_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 of He et al. (2015), table 1, with a 3x3 stem of stride 1 and no pooling: 21,282,122 parameters."""
    return _create("cifar_resnet34", pretrained, **kwargs)

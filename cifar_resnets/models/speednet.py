"""SpeedNet: few, wide layers that reach 94 % in ten epochs; the network of airbench."""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.layers import TimmNetwork, build_network, cifar_cfg, conv3x3

__all__ = ["SpeedNet"]


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Builds a batch norm with a fast running average and a frozen scale of 1.

    Args:
        channels: Channels coming in and going out.
    """
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad = False
    return norm


class ConvGroup(nn.Module):
    """3x3 convolutions with batch norm and GELU; the output of the first is max-pooled."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, residual: bool) -> None:
        """Builds the group.

        Args:
            in_channels: Channels coming in.
            out_channels: Channels going out.
            depth: Number of convolutions.
            residual: Whether the output of the first convolution is added to that of the last one.
        """
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.pool1 = nn.MaxPool2d(2)
        self.bn1 = batch_norm(out_channels)
        self.act1 = nn.GELU()
        self.more = nn.Sequential()
        for _ in range(depth - 1):
            self.more.extend([conv3x3(out_channels, out_channels), batch_norm(out_channels), nn.GELU()])
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Convolves, halves height and width, and convolves again: (n, out_channels, h // 2, w // 2)."""
        first: Tensor = self.act1(self.bn1(self.pool1(self.conv1(x))))  # (n, 24, 31, 31) -> (n, 64, 15, 15)
        features: Tensor = self.more(first)  # (n, 64, 15, 15)
        return features + first if self.residual else features


class SpeedNet(TimmNetwork):
    """A 2x2 convolution, three groups of 3x3 convolutions, max pooling over all pixels, linear without bias.

    Source: Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.1. The first layer
    has two filters for each direction of a patch of 2x2 pixels of 3 channels: `model.init: [whiten, dirac]`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        widths: Sequence[int] = (64, 256, 256),
        depth: int = 2,
        residual: bool = False,
        logit_scale: float = 1 / 9,
        drop_rate: float = 0.0,
        global_pool: str = "max",
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Length of the logits; 0 makes the network return its pooled features.
            in_chans: Channels of the images.
            widths: Channels of each group.
            depth: Convolutions in each group.
            residual: Whether each group adds the output of its first convolution to that of its last one.
            logit_scale: Factor of the logits, above 0.
            drop_rate: Probability of the dropout before the classifier.
            global_pool: "max", "avg", or "" for none, which needs num_classes=0.

        Raises:
            ConfigurationError: If an argument does not make sense.
        """
        super().__init__()
        if not widths or min(widths) < 1 or depth < 1:
            raise ConfigurationError(f"widths={list(widths)}, depth={depth}: use numbers from 1, one width or more")
        self.in_chans = in_chans
        self.logit_scale = logit_scale
        stem = 2 * 2 * 2 * in_chans
        self.conv1 = nn.Conv2d(in_chans, stem, kernel_size=2)
        self.act1 = nn.GELU()
        self.groups = [f"layer{number}" for number in range(1, len(widths) + 1)]
        for name, in_channels, out_channels in zip(self.groups, (stem, *widths), widths, strict=False):
            self.add_module(name, ConvGroup(in_channels, out_channels, depth, residual))
        self.feature_info = [
            {"num_chs": width, "reduction": 2**number, "module": name}
            for number, (name, width) in enumerate(zip(self.groups, widths, strict=True), start=1)
        ]
        self.add_head(global_pool, widths[-1], num_classes, drop_rate, bias=False)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns features (n, widths[-1], h', w'); 3x3 pixels for images of 32x32, which have to be 9x9 or larger."""
        features: Tensor = self.act1(self.conv1(images))  # (n, 3, 32, 32) -> (n, 24, 31, 31)
        for name in self.groups:
            features = self.get_submodule(name)(features)  # (n, 64, 15, 15), (n, 256, 7, 7), (n, 256, 3, 3)
        return features

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `TimmNetwork.group_matcher`: a group of layers is a block."""
        return super().group_matcher(coarse=True)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools and classifies features, scaled by `logit_scale`; see `TimmNetwork.forward_head`."""
        # Scaled before pooling, so that the classifier maps pooled features to logits, as timm expects.
        return super().forward_head(features * self.logit_scale, pre_logits)


# `register_model` reads this variable of the module.
default_cfgs = generate_default_cfgs({"cifar_speednet": cifar_cfg()})


@register_model
def cifar_speednet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Builds SpeedNet: 1,972,792 parameters."""
    num_stages = len(kwargs.get("widths", (64, 256, 256)))
    return build_network(SpeedNet, "cifar_speednet", pretrained, num_stages=num_stages, **kwargs)

"""The custom ResNet: nine layers that train fast, after David Page's ResNet-9."""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from cifar_resnets.models.layers import TimmNetwork, build_network, cifar_cfg, conv3x3, init_he

__all__ = ["CustomResNet"]


class PoolingBlock(nn.Module):
    """A 3x3 convolution, max pooling, batch norm and ReLU; pooling first makes the last two cost a quarter."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Builds the block; it changes the number of channels."""
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.pool1 = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Convolves, and halves height and width: (n, in_channels, h, w) to (n, out_channels, h // 2, w // 2)."""
        features: Tensor = self.pool1(self.conv1(x))  # (n, 64, 32, 32) -> (n, 128, 16, 16)
        features = self.act1(self.bn1(features))  # (n, 128, 16, 16)
        return features


class ResidualPair(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU, added to their input with no ReLU after the sum."""

    def __init__(self, channels: int) -> None:
        """Builds the pair of convolutions, which keep the number of channels."""
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Adds the residual of two convolutions to the input (n, channels, h, w)."""
        residual: Tensor = self.act1(self.bn1(self.conv1(x)))  # (n, 128, 16, 16)
        residual = self.act2(self.bn2(self.conv2(residual)))  # (n, 128, 16, 16)
        return x + residual


class CustomResNet(TimmNetwork):
    """A stem of 64 channels, stages of 128, 256 and 512, max pooling over all pixels, linear without bias.

    Source: David Page (2018), "How to train your ResNet". Departures: the max pooling comes before the
    batch norm, the logits are not scaled by 0.125, and the last max pooling covers the whole output of the
    last stage (4 by 4 pixels for images of 32 by 32).
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0, global_pool: str = "max"
    ) -> None:
        """Builds the network.

        Args:
            num_classes: Length of the logits; 0 makes the network return its pooled features.
            in_chans: Channels of the images.
            drop_rate: Probability of the dropout before the classifier.
            global_pool: "max", "avg", or "" for none, which needs num_classes=0.

        Raises:
            ConfigurationError: If an argument does not make sense.
        """
        super().__init__()
        self.in_chans = in_chans
        self.conv1 = conv3x3(in_chans, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU()
        self.layer1 = nn.Sequential(PoolingBlock(64, 128), ResidualPair(128))
        self.layer2 = nn.Sequential(PoolingBlock(128, 256))
        self.layer3 = nn.Sequential(PoolingBlock(256, 512), ResidualPair(512))
        self.feature_info = [
            {"num_chs": 128, "reduction": 2, "module": "layer1"},
            {"num_chs": 256, "reduction": 4, "module": "layer2"},
            {"num_chs": 512, "reduction": 8, "module": "layer3"},
        ]
        self.add_head(global_pool, 512, num_classes, drop_rate, bias=False)
        self.apply(init_he)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the features (n, 512, h // 8, w // 8) of the last stage for images (n, in_chans, h, w)."""
        features: Tensor = self.act1(self.bn1(self.conv1(images)))  # (n, 3, 32, 32) -> (n, 64, 32, 32)
        features = self.layer1(features)  # (n, 128, 16, 16)
        features = self.layer2(features)  # (n, 256, 8, 8)
        features = self.layer3(features)  # (n, 512, 4, 4)
        return features


# `register_model` reads this variable of the module.
default_cfgs = generate_default_cfgs({"cifar_custom_resnet": cifar_cfg()})


@register_model
def cifar_custom_resnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Builds the custom ResNet: 6,573,120 parameters, 92.30 % on CIFAR-10 after 24 epochs (published log)."""
    return build_network(CustomResNet, "cifar_custom_resnet", pretrained, num_stages=3, **kwargs)

"""Residual blocks, with the activation after the sum (2015) or before the convolutions (2016).

The modules are named as in the common public CIFAR trainers. No ReLU works in place: it would change the output
that a hook on the batch norm before it has recorded.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from timm.layers import DropPath
from torch import Tensor, nn

from cifar_resnets.models.layers import make_conv3x3
from cifar_resnets.models.shortcuts import Projection, make_shortcut

__all__ = ["BasicBlock", "Bottleneck", "PreActBlock", "PreActBottleneck", "ResidualBlock"]


class ResidualBlock(nn.Module, ABC):
    """Base class of the blocks: builds the residual branch and the shortcut.

    Attributes:
        expansion: Channels going out for each channel of width.
        pre_activated: Whether batch norm and ReLU come before each convolution.
    """

    expansion: ClassVar[int] = 1
    pre_activated: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: str,
        convolution: str = "regular",
        drop_path: float = 0.0,
        is_first: bool = False,
    ) -> None:
        """Builds the block.

        Args:
            in_channels: Channels coming in.
            width: Channels of the 3x3 convolutions; `expansion` times as many go out.
            stride: Step of the first 3x3 convolution in pixels.
            shortcut: A name in `shortcuts.SHORTCUTS`.
            convolution: A name in `layers.CONVOLUTIONS`, the kind of the 3x3 convolutions.
            drop_path: Probability with which the residual of an image is left out in training.
            is_first: Whether the block follows the stem; matters to pre-activated blocks.

        Raises:
            ConfigurationError: If `shortcut` or `convolution` is unknown.
        """
        super().__init__()
        self.build(in_channels, width, stride, convolution)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        out_channels = width * self.expansion
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride, norm=not self.pre_activated)
        # In the first block, and where it is a projection, the shortcut starts after the first activation.
        self.shares_activation = is_first or isinstance(self.shortcut, Projection)

    @abstractmethod
    def build(self, in_channels: int, width: int, stride: int, convolution: str) -> None:
        """Builds the layers of the residual; for the arguments see `__init__`."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Adds shortcut and residual of x (n, in_channels, h, w): (n, expansion * width, h / stride, w / stride)."""


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, each with batch norm, and a ReLU after the sum.

    Source: He et al. (2015), "Deep residual learning for image recognition", figure 5, left.
    """

    def build(self, in_channels: int, width: int, stride: int, convolution: str) -> None:
        """Builds the layers of the residual."""
        self.conv1 = make_conv3x3(convolution, in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = make_conv3x3(convolution, width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Adds the shortcut to the residual."""
        residual = self.act1(self.bn1(self.conv1(x)))  # (n, 16, 32, 32) -> (n, 32, 16, 16)
        residual = self.bn2(self.conv2(residual))  # (n, 32, 16, 16)
        features: Tensor = self.act2(self.shortcut(x, self.drop_path(residual)))  # (n, 32, 16, 16)
        return features


class Bottleneck(ResidualBlock):
    """A 1x1 convolution that narrows, a 3x3 one, and a 1x1 one that widens fourfold.

    Source: He et al. (2015), figure 5, right. Departure: the stride is on the 3x3 convolution, as in most
    implementations since.
    """

    expansion = 4

    def build(self, in_channels: int, width: int, stride: int, convolution: str) -> None:
        """Builds the layers of the residual."""
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = make_conv3x3(convolution, width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Adds the shortcut to the residual."""
        residual = self.act1(self.bn1(self.conv1(x)))  # (n, 256, 32, 32) -> (n, 128, 32, 32)
        residual = self.act2(self.bn2(self.conv2(residual)))  # (n, 128, 16, 16)
        residual = self.bn3(self.conv3(residual))  # (n, 512, 16, 16)
        features: Tensor = self.act3(self.shortcut(x, self.drop_path(residual)))  # (n, 512, 16, 16)
        return features


class PreActBlock(ResidualBlock):
    """Batch norm and ReLU before each of two 3x3 convolutions, and nothing after the sum.

    Source: He et al. (2016), "Identity mappings in deep residual networks", figure 1 (b) and section 4.2;
    the shared activation is in its appendix. It is also the block of Zagoruyko and Komodakis (2016).
    """

    pre_activated = True

    def build(self, in_channels: int, width: int, stride: int, convolution: str) -> None:
        """Builds the layers of the residual."""
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv1 = make_conv3x3(convolution, in_channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.conv2 = make_conv3x3(convolution, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the shortcut to the residual."""
        activated = self.act1(self.bn1(x))  # (n, 16, 32, 32)
        residual = self.conv1(activated)  # (n, 32, 16, 16)
        residual = self.conv2(self.act2(self.bn2(residual)))  # (n, 32, 16, 16)
        features: Tensor = self.shortcut(activated if self.shares_activation else x, self.drop_path(residual))
        return features


class PreActBottleneck(ResidualBlock):
    """The bottleneck with batch norm and ReLU before each convolution.

    Source: He et al. (2016), section 5, "Comparisons on CIFAR-10/100".
    """

    expansion = 4
    pre_activated = True

    def build(self, in_channels: int, width: int, stride: int, convolution: str) -> None:
        """Builds the layers of the residual."""
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.conv2 = make_conv3x3(convolution, width, width, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.act3 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the shortcut to the residual."""
        activated = self.act1(self.bn1(x))  # (n, 64, 32, 32)
        residual = self.conv1(activated)  # (n, 32, 32, 32)
        residual = self.conv2(self.act2(self.bn2(residual)))  # (n, 32, 16, 16)
        residual = self.conv3(self.act3(self.bn3(residual)))  # (n, 128, 16, 16)
        features: Tensor = self.shortcut(activated if self.shares_activation else x, self.drop_path(residual))
        return features

"""Networks for CIFAR-sized images; importing this package registers them in timm as `cifar_*`."""

from cifar_resnets.models.custom_resnet import CustomResNet
from cifar_resnets.models.residual import BasicBlock, ResidualNetwork

__all__ = ["BasicBlock", "CustomResNet", "ResidualNetwork"]

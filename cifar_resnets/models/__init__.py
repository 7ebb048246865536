"""Networks for CIFAR-sized images; importing this package registers them in timm as `cifar_*`."""

from cifar_resnets.models.registry import create_network
from cifar_resnets.models.resnet import ResidualNetwork
from cifar_resnets.models.resnet9 import CustomResNet
from cifar_resnets.models.speednet import SpeedNet

__all__ = ["CustomResNet", "ResidualNetwork", "SpeedNet", "create_network"]

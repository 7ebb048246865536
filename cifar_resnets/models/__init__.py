"""Networks for CIFAR-sized images; importing this package registers them in timm as `cifar_*`.

Start with `resnet.py`: one class, and a table with a line for each variant. A network of another topology is a file of
its own that is imported here, like `resnet9.py`.
"""

from cifar_resnets.models.registry import create_network
from cifar_resnets.models.resnet import ResidualNetwork
from cifar_resnets.models.resnet9 import CustomResNet
from cifar_resnets.models.speednet import SpeedNet

__all__ = ["CustomResNet", "ResidualNetwork", "SpeedNet", "create_network"]

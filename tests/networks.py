"""What the tests of the networks share: the registered ones, and all of them again in plain functions."""

import functools
from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.models.layers import TimmNetwork

NAMES = timm.list_models("cifar_*")
# Like others with fewer or narrower blocks, and seconds to train or copy: forward only.
SLOW_NAMES = {
    *("cifar_resnet1202", "cifar_preact_resnet1001", "cifar_wide_resnet28_10", "cifar_resnet101", "cifar_resnet152")
}
QUICK_NAMES = [name for name in NAMES if name not in SLOW_NAMES]


@functools.cache
def shared_network(name: str) -> TimmNetwork:
    """Return a network whose weights no test may change."""
    return timm.create_model(name)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def randomise(network: nn.Module) -> nn.Module:
    """Make every batch norm and every bias matter: fresh, they are an identity up to rounding and zero."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return network


class PlainResNet:
    """A residual network of three or four stages with the stem for CIFAR, computed from a state dict alone.

    Whether it is pre-activated, and how many convolutions its blocks have, the caller says; where projections and
    separable convolutions are, the names in the state dict.
    """

    def __init__(self, state: dict[str, Tensor], depths: Sequence[int], convs: int, pre_activated: bool) -> None:
        self.state, self.depths, self.convs, self.pre_activated = state, depths, convs, pre_activated

    def __call__(self, images: Tensor, plain: bool = False) -> Tensor:
        """Return the logits; `plain` leaves the shortcuts out."""
        x = self.conv(images, "conv1")
        x = x if self.pre_activated else self.norm(x, "bn1").relu()
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                block = self.pre_activated_block if self.pre_activated else self.post_activated_block
                x = block(x, f"layer{stage + 1}.{index}", stage, index, plain)
        x = self.norm(x, "bn1").relu() if self.pre_activated else x
        return x.mean(dim=(2, 3)) @ self.state["fc.weight"].T + self.state["fc.bias"]

    def conv(self, x: Tensor, key: str, stride: int = 1) -> Tensor:
        if f"{key}.0.weight" in self.state:  # separable
            depthwise = self.state[f"{key}.0.weight"]
            x = F.conv2d(x, depthwise, stride=stride, padding=1, groups=len(depthwise))
            return F.conv2d(x, self.state[f"{key}.1.weight"])
        weight = self.state[f"{key}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, key: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{key}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def strides(self, stage: int, index: int) -> list[int]:
        strides = [1] * self.convs
        strides[self.convs - 2] = 2 if stage > 0 and index == 0 else 1  # the first of 3x3
        return strides

    def pad(self, x: Tensor, like: Tensor, stride: int) -> Tensor:
        zeros = torch.zeros_like(like[:, : (like.shape[1] - x.shape[1]) // 2])
        return torch.cat([zeros, x[..., ::stride, ::stride], zeros], dim=1)

    def post_activated_block(self, x: Tensor, key: str, stage: int, index: int, plain: bool) -> Tensor:
        y, strides = x, self.strides(stage, index)
        for number, stride in enumerate(strides, 1):
            y = self.norm(self.conv(y, f"{key}.conv{number}", stride), f"{key}.bn{number}")
            y = y.relu() if number < self.convs else y
        if plain:
            return y.relu()
        if f"{key}.shortcut.0.weight" in self.state:
            x = F.conv2d(x, self.state[f"{key}.shortcut.0.weight"], stride=max(strides))
            return (y + self.norm(x, f"{key}.shortcut.1")).relu()
        return (y + self.pad(x, y, max(strides))).relu()

    def pre_activated_block(self, x: Tensor, key: str, stage: int, index: int, plain: bool) -> Tensor:
        y, strides = x, self.strides(stage, index)
        for number, stride in enumerate(strides, 1):
            y = self.norm(y, f"{key}.bn{number}").relu()
            y = self.conv(y, f"{key}.conv{number}", stride)
        if plain:
            return y
        activated = self.norm(x, f"{key}.bn1").relu()
        if f"{key}.shortcut.0.weight" in self.state:
            return y + F.conv2d(activated, self.state[f"{key}.shortcut.0.weight"], stride=max(strides))
        return y + self.pad(activated if stage == index == 0 else x, y, max(strides))

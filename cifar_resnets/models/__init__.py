"""Networks for CIFAR-sized images; importing this package registers them in timm as `cifar_*`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.custom_resnet import CustomResNet
from cifar_resnets.models.residual import ResidualNetwork
from cifar_resnets.models.speed_net import SpeedNet

__all__ = ["CustomResNet", "ResidualNetwork", "SpeedNet", "create_network"]


def create_network(name: str, num_classes: int, network_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a network of timm's registry, ours or theirs, for RGB images.

    Raises:
        ConfigurationError: for an unknown name, or arguments that the network does not take.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f", did you mean {' or '.join(near)}?" if near else ""
        raise ConfigurationError(f"model.network: {name!r} is not in timm's registry{hint}")
    if "num_classes" in (network_args or {}):
        raise ConfigurationError("model.network_args: num_classes is the number of the data's classes, leave it out")
    try:
        return timm.create_model(name, num_classes=num_classes, **(network_args or {}))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"model.network_args of {name}: {error}") from error

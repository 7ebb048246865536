"""Whether a network takes images of some size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.support.text import did_you_mean


def try_network(network: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Tries a network on an image, and leaves it as it was.

    Args:
        network: in whatever mode.
        name: of the network, for the message.
        size: height and width of the image, in pixels.

    Raises:
        ConfigurationError: when it does not take images of this size.
    """
    height, width = size
    parameter = next(network.parameters())
    try:
        with torch.no_grad(), _evaluating(network):
            network(parameter.new_zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigurationError(
            f"model.network: {name} does not take images of {height}x{width} pixels: {error}"
        ) from error


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()  # batch norm must not learn from this
    try:
        yield
    finally:
        network.train(was_training)


def create_network(name: str, num_classes: int, network_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a network of timm's registry, ours or theirs, for RGB images.

    Raises:
        ConfigurationError: for an unknown name, or arguments that the network does not take.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigurationError(f"model.network: {name!r} is not in timm's registry{hint}")
    if "num_classes" in (network_args or {}):
        raise ConfigurationError("model.network_args: num_classes is the number of the data's classes, leave it out")
    try:
        return timm.create_model(name, num_classes=num_classes, **(network_args or {}))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"model.network_args of {name}: {error}") from error

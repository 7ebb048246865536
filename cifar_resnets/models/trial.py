"""Whether a network takes images of some size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cifar_resnets.errors import ConfigurationError


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

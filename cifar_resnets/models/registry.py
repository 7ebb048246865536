"""Builds networks by their names in timm's registry, and checks that they take the data's images."""

from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.support.sandbox import evaluating
from cifar_resnets.support.text import did_you_mean

# arguments of `timm.create_model` about weights, and names in them that make it read a file or ask a server
WEIGHT_ARGS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
PLACES = (*WEIGHT_ARGS[3:], "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename")


def create_network(name: str, num_classes: int, network_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a network for RGB images.

    Args:
        name: in timm's registry; the networks of this project begin with `cifar_`.
        num_classes: length of the logits.
        network_args: more keywords of the network.

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


def without_weights(network_args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a network whose weights come from a checkpoint: nothing is read or downloaded."""
    return {name: value for name, value in network_args.items() if name not in WEIGHT_ARGS}


def weights_elsewhere(network_args: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of arguments that would make timm read a file or ask a server.

    A plain `pretrained: true` or `false` is none of them, see `without_weights`.
    """
    items: Any = network_args.items() if isinstance(network_args, Mapping) else ()
    if isinstance(network_args, (list, tuple)):
        items = enumerate(network_args)
    for name, value in items:
        names_place = str(name).startswith("pretrained") or name in PLACES
        if names_place and not (f"{prefix}{name}" == "pretrained" and isinstance(value, bool)):
            yield f"{prefix}{name}"
        else:
            yield from weights_elsewhere(value, f"{prefix}{name}.")


def try_network(network: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Runs a network once on a black image; the network is not changed.

    Args:
        network: in any mode.
        name: of the network, for the error message.
        size: height and width of the image in pixels.

    Raises:
        ConfigurationError: when the network does not take RGB images, or not of this size.
    """
    height, width = size
    parameter = next(network.parameters())
    first = next((each for each in network.parameters() if each.ndim == 4), None)
    try:
        with torch.no_grad(), evaluating(network):
            network(parameter.new_zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        if first is not None and (channels := first.shape[1]) != 3:
            raise ConfigurationError(
                f"model.network_args: {name} takes images of {channels} channels, but all images are read as RGB, grey "
                "ones too; leave in_chans out"
            ) from error
        raise ConfigurationError(
            f"model.network: {name} does not take images of {height}x{width} pixels: {error}"
        ) from error

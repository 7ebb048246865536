"""Builds networks by their names in timm's registry, and checks that they take the data's images."""

import functools
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cifar_resnets.errors import CheckpointError, ConfigurationError, UserError, memory_error, one_line
from cifar_resnets.support.imports import import_attribute
from cifar_resnets.support.sandbox import evaluating
from cifar_resnets.support.text import did_you_mean

# arguments of `timm.create_model` about weights, and names in them that make it read a file or ask a server
WEIGHT_ARGS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
HUB_TIMEOUT = 10.0  # seconds
PLACES = (*WEIGHT_ARGS[3:], "url", "file", "state_dict", "hf_hub_id", "hf_hub_filename")


def create_network(name: str, num_classes: int, network_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a network for RGB images.

    Args:
        name: in timm's registry, where the networks of this project begin with `cifar_`; or a function of a module that
            takes `num_classes`, as `mine:net`.
        num_classes: length of the logits.
        network_args: more keywords of the network.

    Raises:
        ConfigurationError: for an unknown name, or arguments that the network does not take.
        CheckpointError: for pretrained weights that cannot be had.
    """
    args = dict(network_args or {})
    if args.get("pretrained") is True:
        check_hub(name, args)
    if "num_classes" in args:
        raise ConfigurationError("model.network_args: num_classes is the number of the data's classes, leave it out")
    build = network_function(name)
    try:
        network = build(num_classes=num_classes, **args)
    except Exception as error:
        if (line := _problem(error, name, args)) is None:
            raise
        raise line from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"model.network: {name} builds a {type(network).__name__}, no torch.nn.Module")
    return network


def _problem(error: Exception, name: str, args: Mapping[str, Any]) -> UserError | None:
    """Returns the mistake of the user behind an error of a network's function; None for another one."""
    if memory_error(error) or (isinstance(error, ConfigurationError) and str(error).startswith("model.")):
        return None
    if args.get("pretrained") and not isinstance(error, (TypeError, ValueError)):
        return _no_weights(name, error)
    is_of_arguments = isinstance(error, (TypeError, ValueError, RuntimeError, AssertionError))
    return ConfigurationError(f"model.network_args of {name}: {error}") if is_of_arguments else None


def _no_weights(name: str, error: Exception) -> CheckpointError:
    reason = textwrap.shorten(one_line(error), 200, placeholder="...")
    remedy = "leave pretrained out, or download a file elsewhere and give it as model.weights"
    return CheckpointError(f"model.pretrained: {name} gets no weights ({reason}): {remedy}")


def check_hub(name: str, args: Mapping[str, Any]) -> None:
    """Asks the hub of pretrained weights once: without a network, its library would try again for 48 seconds.

    Args:
        name: of a network.
        args: its keywords.

    Raises:
        CheckpointError: when the weights are neither in the hub's cache nor to be had within `HUB_TIMEOUT` seconds.
    """
    given = any(args.get(key) for key in WEIGHT_ARGS[1:])  # a place of the user's own
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if ":" not in name and not given else None
    repository = getattr(config, "hf_hub_id", None)
    if not repository or getattr(config, "file", None):
        return
    from huggingface_hub import HfApi, try_to_load_from_cache  # of timm; imports much that other networks do not need

    files = ("model.safetensors", "pytorch_model.bin", getattr(config, "hf_hub_filename", None))
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files if file):
        return
    try:
        HfApi().model_info(repository, timeout=HUB_TIMEOUT)
    except Exception as error:
        raise _no_weights(name, error) from error


def line_of_pretrained(network: nn.Module, num_classes: int) -> str | None:
    """Returns a line that says if timm has left out the head of pretrained weights; None if it is the network's."""
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    theirs, name = config.get("num_classes"), config.get("architecture")
    if theirs in (None, 0, num_classes):
        return None
    tag = f"{name}.{config['tag']}" if config.get("tag") else name
    return f"pretrained: the head of {tag} for {theirs} classes is left out, that of {num_classes} starts anew"


def network_function(name: str) -> Callable[..., Any]:
    """Returns the function that builds a network; raises ConfigurationError for an unknown one."""
    module, colon, function = name.partition(":")
    if colon:
        try:
            return import_attribute(module, function)  # type: ignore[no-any-return]  # of the user
        except ImportError as error:
            raise ConfigurationError(f"model.network: {error}") from error
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigurationError(f"model.network: {name!r} is not in timm's registry{hint}")
    return functools.partial(timm.create_model, name)


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


def try_network(network: nn.Module, name: str, size: tuple[int, int], num_classes: int | None = None) -> None:
    """Runs a network once on a black image; the network is not changed.

    Args:
        network: in any mode.
        name: of the network, for the error message.
        size: height and width of the image in pixels.
        num_classes: length of the logits; not checked if not given.

    Raises:
        ConfigurationError: when the network does not take RGB images of this size, or does not return logits.
    """
    height, width = size
    parameter = next(network.parameters())
    first = next((each for each in network.parameters() if each.ndim == 4), None)
    try:
        with torch.no_grad(), evaluating(network):
            logits = network(parameter.new_zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        if memory_error(error):
            raise
        if first is not None and (channels := first.shape[1]) != 3:
            raise ConfigurationError(
                f"model.network_args: {name} takes images of {channels} channels, but all images are read as RGB, grey "
                "ones too; leave in_chans out"
            ) from error
        raise ConfigurationError(
            f"model.network: {name} does not take images of {height}x{width} pixels: {str(error).rstrip('.')}"
            f"{_size_hint(network, size)}"
        ) from error
    if num_classes is not None and getattr(logits, "shape", None) != (1, num_classes):
        what = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigurationError(
            f"model.network: {name} returns {what} for an image, not (1, {num_classes}) logits: leave out of "
            "model.network_args what changes its output, such as features_only"
        )


def _size_hint(network: nn.Module, size: tuple[int, int]) -> str:
    """Returns the argument by which a network that is built for one size of images, such as a ViT, takes another."""
    if not (getattr(network, "pretrained_cfg", None) or {}).get("fixed_input_size"):
        return ""
    return f"; give --model.network_args.img_size {size[0] if size[0] == size[1] else list(size)}"

"""Optimizers by name, torch's and timm's, with weight decay where it belongs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import timm.optim
import torch
from torch import nn

from cifar_resnets.errors import ConfigurationError

# what a user means by SGD on images; `optimizer_args` says otherwise
SGD_DEFAULTS = {"momentum": 0.9, "nesterov": True}


def build_optimizer(
    network: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool = True,
    optimizer_args: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Builds the optimizer of a network.

    Args:
        network: whose parameters that require a gradient are optimised.
        name: a class of `torch.optim` spelt as there (`SGD`, `AdamW`), or one of `timm.optim.list_optimizers()`
            (`lamb`, `muon`); SGD comes with momentum 0.9 and Nesterov.
        lr: learning rate.
        weight_decay: factor of the decay.
        decay_norm_and_bias: decay all parameters; otherwise leave out biases and those of normalisation layers.
        optimizer_args: more arguments of the optimizer.

    Raises:
        ConfigurationError: for an unknown name, or arguments that the optimizer does not take.
    """
    args = {**(SGD_DEFAULTS if name.lower() == "sgd" else {}), **(optimizer_args or {})}
    groups = parameter_groups(network, weight_decay, decay_norm_and_bias)
    try:
        if cls := _torch_class(name):
            return cls(groups, lr=lr, weight_decay=weight_decay, **args)
        _require_known(name)
        return timm.optim.create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, **args)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"model.optimizer {name}: {error}") from error


def parameter_groups(network: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Parameters with weight decay, and, where asked, a group without for biases and normalisation (1-dimensional)."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigurationError("model.network: all of its parameters are frozen, there is nothing to train")
    if decay_norm_and_bias or not weight_decay:
        return [{"params": parameters, "weight_decay": weight_decay}]
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _torch_class(name: str) -> Callable[..., torch.optim.Optimizer] | None:
    cls = getattr(torch.optim, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) else None


def _require_known(name: str) -> None:
    known = [*(n for n in dir(torch.optim) if _torch_class(n)), *map(str, timm.optim.list_optimizers())]
    if name.lower() not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f", did you mean {' or '.join(near)}?" if near else ""
        raise ConfigurationError(f"model.optimizer: {name!r} is neither in torch.optim nor in timm.optim{hint}")

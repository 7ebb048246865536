"""Builds optimizers of torch and timm by name, with parameter groups for weight decay and learning rate."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from cifar_resnets.errors import ConfigurationError, require
from cifar_resnets.support.imports import import_attribute
from cifar_resnets.support.text import did_you_mean
from cifar_resnets.training.muon import MuonSGD

# the common choice for images; `optimizer_args` overrides it
SGD_DEFAULTS = {"momentum": 0.9, "nesterov": True}


def build_optimizer(
    network: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool = True,
    optimizer_args: Mapping[str, Any] | None = None,
    norm_bias_scale: float = 1.0,
    layer_decay: float = 1.0,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Builds the optimizer of a network.

    Args:
        network: its parameters that require a gradient are optimised.
        name: a class of `torch.optim` with its capitals (`SGD`, `AdamW`), or `MuonSGD`, or one of
            `timm.optim.list_optimizers()` (`lamb`, `muon`; `lookahead_sgd` adds look-ahead), or the path of a class
            (`mine.MySGD`); SGD has momentum 0.9 and Nesterov by default.
        lr: learning rate.
        weight_decay: factor of the weight decay.
        decay_norm_and_bias: decay all parameters; if false, neither biases nor those of normalisation layers.
        optimizer_args: more arguments of the optimizer.
        norm_bias_scale: factor of the learning rate of the biases of normalisation layers, see `parameter_groups`.
        layer_decay: factor of the learning rate from each layer to the one before it, see `parameter_groups`.
        fused: update all parameters in one kernel, if the optimizer can; `optimizer_args` overrides it.

    Raises:
        ConfigurationError: for an unknown name, or arguments that the optimizer does not take.
    """
    args = {**(SGD_DEFAULTS if name.lower().removeprefix("torch.optim.") == "sgd" else {}), **(optimizer_args or {})}
    groups = parameter_groups(network, lr, weight_decay, decay_norm_and_bias, norm_bias_scale, layer_decay)
    try:
        if cls := _class_by_path(name) if "." in name else _class_by_name(name):
            if fused and "foreach" not in args and "fused" in inspect.signature(cls).parameters:
                args = {"fused": True, **args}
            if not _decays(cls):
                if weight_decay:
                    raise ConfigurationError(f"model.weight_decay: {name} has none, give 0")
                groups = [{key: value for key, value in each.items() if key != "weight_decay"} for each in groups]
                return cls(groups, lr=lr, **args)
            return cls(groups, lr=lr, weight_decay=weight_decay, **args)
        _require_known(name)
        from timm.optim import create_optimizer_v2  # imports dozens of optimizers, which most recipes do not need

        return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, **args)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        others = optimizer_args and "unexpected keyword" in str(error)
        remedy = f"; give model.optimizer_args of {name}, now they are {optimizer_args}, or null" if others else ""
        raise ConfigurationError(f"model.optimizer {name}: {error}{remedy}") from error


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Returns the learning rate and, if there is one, the momentum or first beta of the first parameter group."""
    group = optimizer.param_groups[0]
    momentum = group["momentum"] if "momentum" in group else group.get("betas", (None,))[0]
    return {"lr": float(group["lr"])} | ({} if momentum is None else {"momentum": float(momentum)})


def check_rates(lr: float, weight_decay: float, norm_bias_scale: float, layer_decay: float) -> None:
    """Raises ConfigurationError for a value of `build_optimizer` that is out of range."""
    require("model", 0 < lr < math.inf, "lr", lr, "a number above 0")
    require("model", weight_decay >= 0, "weight_decay", weight_decay, "0 or more")
    require("model", 0 < norm_bias_scale < math.inf, "norm_bias_scale", norm_bias_scale, "a number above 0")
    require("model", 0 < layer_decay <= 1, "layer_decay", layer_decay, "a number above 0, at most 1")


def parameter_groups(
    network: nn.Module,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool,
    norm_bias_scale: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups parameters by learning rate and weight decay; the first group has the learning rate `lr`.

    Args:
        network: its parameters that require a gradient are grouped.
        lr: learning rate.
        weight_decay: factor of the weight decay.
        decay_norm_and_bias: decay all parameters; if false, neither biases nor normalisation (both 1-dimensional).
        norm_bias_scale: factor of the learning rate of the biases of normalisation layers. Their weight decay is
            divided by it, so that a step, which decays by learning rate times factor, decays them as much as others.
            Source: Page (2018), "How to train your ResNet", part 8, "Frozen batch norm scales"; Jordan (2024), "94% on
            CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.4.
        layer_decay: factor of the learning rate from each of timm's groups of layers to the one before it; the last
            group, with the head, has the rate `lr`. The weight decay is not divided, as in timm's
            `param_groups_layer_decay`. Source: Clark et al. (2020), "ELECTRA", section 3.1; Bao et al. (2021), "BEiT".

    Raises:
        ConfigurationError: when all parameters are frozen, or the network has no groups of layers.
    """
    fast = {id(bias) for bias in _norm_biases(network)} if norm_bias_scale != 1 else set()
    depths = _depths(network) if layer_decay != 1 else {}  # from the head
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    trained = [p for p in network.parameters() if p.requires_grad]
    no_decay = {id(p) for p in trained if p.ndim <= 1 and not decay_norm_and_bias}
    for parameter in sorted(trained, key=lambda p: (depths.get(id(p), 0), id(p) in fast, id(p) in no_decay)):
        scale = norm_bias_scale if id(parameter) in fast else 1.0
        decay = 0.0 if id(parameter) in no_decay else weight_decay / scale
        rate = lr * scale * layer_decay ** depths.get(id(parameter), 0)
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ConfigurationError("model.network: all of its parameters are frozen, there is nothing to train")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def _depths(network: nn.Module) -> dict[int, int]:
    """Returns for the id of each parameter how many of timm's groups of layers come after its own."""
    matcher: Any = getattr(network, "group_matcher", None)
    if matcher is None:
        name = type(network).__name__
        raise ConfigurationError(f"model.layer_decay: {name} has no group_matcher(), as networks of timm do: give 1")
    layers = group_parameters(network, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {id(parameter): last - layers.get(name, last) for name, parameter in network.named_parameters()}


def _norm_biases(network: nn.Module) -> Iterator[nn.Parameter]:
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    for module in network.modules():
        if isinstance(module, norms) and module.bias is not None:
            yield module.bias


def _class_by_name(name: str) -> Callable[..., torch.optim.Optimizer] | None:
    cls = MuonSGD if name == "MuonSGD" else getattr(torch.optim, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) else None


def _class_by_path(path: str) -> Callable[..., torch.optim.Optimizer]:
    module, _, name = path.rpartition(".")
    try:
        cls = import_attribute(module, name)
    except ImportError as error:
        raise ConfigurationError(f"model.optimizer: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise ConfigurationError(f"model.optimizer: {path} is no class of optimizers")
    return cls


def _decays(cls: Callable[..., torch.optim.Optimizer]) -> bool:
    """Returns whether an optimizer takes a weight decay: LBFGS and Rprop do not."""
    parameters = inspect.signature(cls).parameters.values()
    return any(each.name == "weight_decay" or each.kind is each.VAR_KEYWORD for each in parameters)


def _require_known(name: str) -> None:
    from timm.optim import list_optimizers

    known = ["MuonSGD", *(n for n in dir(torch.optim) if _class_by_name(n)), *map(str, list_optimizers())]
    if name.lower().removeprefix("lookahead_") not in known:
        hint = did_you_mean(name, known)
        raise ConfigurationError(f"model.optimizer: {name!r} is neither in torch.optim nor in timm.optim{hint}")

"""Frozen layers: parameters that are not trained, in the first epochs or in the whole run.

What is frozen is a function of the epoch alone, so that a resumed run needs no state for it. The optimizer holds all
parameters from the start, and skips those without a gradient: its state fits before and after the unfreezing.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_resnets.errors import ConfigurationError, require
from cifar_resnets.support.text import did_you_mean
from cifar_resnets.training.run_length import run_length


class Freezing:
    """Freezes parts of a network, until an epoch if one is given.

    Frozen parameters require no gradient, and batch norms of frozen layers are in evaluation mode: they normalise with
    their running averages, which do not change.

    Args:
        network: whose parameters are frozen.
        freeze: `backbone`, all but the classifier; `stem`, what comes before the first stage, in timm's groups; or
            names of modules and parameters; nothing if None.
        unfreeze_epoch: number of epochs after which everything is trained; never if None.

    Raises:
        ConfigurationError: for a name that the network does not have, or a number of epochs without a name.
    """

    def __init__(self, network: nn.Module, freeze: str | Sequence[str] | None, unfreeze_epoch: int | None) -> None:
        if unfreeze_epoch is not None:
            require("model", freeze is not None, "unfreeze_epoch", unfreeze_epoch, "it with model.freeze alone")
            require("model", unfreeze_epoch >= 1, "unfreeze_epoch", unfreeze_epoch, "1 or more epochs")
        self.unfreeze_epoch = unfreeze_epoch
        self.is_on = False
        self._network = network
        self._names = frozen_names(network, freeze)
        self._norms = frozen_norms(network, self._names)
        self._frozen: list[nn.Parameter] = []

    def start(self, trainer: pl.Trainer) -> None:
        """Freezes, in the setup of a fit. A parameter that required no gradient before will not later, either.

        Raises:
            ConfigurationError: when nothing would be left to train, or the run ends before the unfreezing.
        """
        if not self._names:
            return
        if self.unfreeze_epoch is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # of Lightning
            total, per_epoch = run_length(trainer)
            self.check_length(total / per_epoch)
        # of Lightning, which says that it may be intended
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training.*")
        named = dict(self._network.named_parameters())
        self._frozen = self._frozen or [named[name] for name in self._names if named[name].requires_grad]
        self._set(True)
        if not any(parameter.requires_grad for parameter in named.values()):
            raise ConfigurationError("model.freeze: all parameters are frozen, leave out the classifier")

    def follow(self, trainer: pl.Trainer) -> None:
        """Unfreezes if it is the epoch for it, before a batch: there is no start of an epoch that is resumed within."""
        if not self.is_on or self.is_frozen(trainer.current_epoch):
            return
        self._set(False)
        if isinstance(strategy := trainer.strategy, DDPStrategy):
            # DistributedDataParallel averages the gradients of what required one when it was built
            strategy.model = trainer.lightning_module
            strategy.configure_ddp()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Makes frozen parameters require a gradient within a block, for an optimizer that is to hold them."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self._frozen:
                parameter.requires_grad_(not self.is_on)

    def set_modes(self) -> None:
        """Puts frozen batch norms in evaluation mode, after the network was put in training mode."""
        for norm in self._norms if self.is_on else ():
            norm.eval()

    def check_length(self, epochs: float) -> None:
        """Raises ConfigurationError if a run of so many epochs ends before the unfreezing."""
        allowed = f"--model.unfreeze_epoch below {epochs:g}, the epochs of the run, or none"
        require("model", (self.unfreeze_epoch or 0) < epochs, "unfreeze_epoch", self.unfreeze_epoch, allowed)

    def is_frozen(self, epoch: int) -> bool:
        """Returns whether parts are frozen in an epoch, counted from 0."""
        return bool(self._names) and (self.unfreeze_epoch is None or epoch < self.unfreeze_epoch)

    def summary(self, epoch: int) -> str:
        """Returns how many parameters there are, and how many of them are trained in an epoch, counted from 0."""
        total = sum(parameter.numel() for parameter in self._network.parameters())
        if not self.is_frozen(epoch):
            return f"{total:,} parameters"
        trained = sum(parameter.numel() for parameter in self._network.parameters() if parameter.requires_grad)
        then = "" if self.unfreeze_epoch is None else f", all after epoch {self.unfreeze_epoch}"
        return f"{total:,} parameters, {trained:,} of them are trained{then}"

    def _set(self, frozen: bool) -> None:
        self.is_on = frozen
        for parameter in self._frozen:
            parameter.requires_grad_(not frozen)
        for norm in self._norms:
            norm.train(not frozen and self._network.training)


def frozen_names(network: nn.Module, freeze: str | Sequence[str] | None) -> list[str]:
    """Returns the names of the parameters that `freeze` stands for, in the network's order; see `Freezing`.

    Raises:
        ConfigurationError: for a name that is neither a parameter nor a module with parameters.
    """
    given = [freeze] if isinstance(freeze, str) else list(freeze or ())
    found = {name for each in given for name in _selected(network, each)}
    return [name for name, _ in network.named_parameters() if name in found]


def _selected(network: nn.Module, name: str) -> set[str]:
    parameters = dict(network.named_parameters())
    if name == "backbone":
        kept = {id(parameter) for each in _classifiers(network) for parameter in each.parameters()}
        return {each for each, parameter in parameters.items() if id(parameter) not in kept}
    if name == "stem":
        return _stem(network)
    found = {each for each in parameters if f"{each}.".startswith(f"{name}.")}
    if not name or not found:
        known = ["backbone", "stem", *parameters, *(each for each, _ in network.named_modules() if each)]
        what = "has no parameters" if name in known else f"is no module of the network{did_you_mean(name, known)}"
        raise ConfigurationError(f"model.freeze: {name!r} {what}")
    return found


def _classifiers(network: nn.Module) -> tuple[nn.Module, ...]:
    found = getattr(network, "get_classifier", lambda: ())()
    classifiers = tuple(found) if isinstance(found, (tuple, list)) else (found,)  # distilled networks have two
    if not any(True for each in classifiers for _ in each.parameters()):
        raise ConfigurationError("model.freeze: backbone takes a network with get_classifier(), give names of modules")
    return classifiers


def _stem(network: nn.Module) -> set[str]:
    matcher: Any = getattr(network, "group_matcher", lambda coarse: None)(coarse=True)
    stem = matcher.get("stem") if isinstance(matcher, dict) else None
    layers = {} if stem is None else group_parameters(network, {"stem": stem}, reverse=True)
    if len(set(layers.values())) < 2:  # what does not match is one layer
        raise ConfigurationError("model.freeze: stem takes a network whose group_matcher() names one, give modules")
    return {name for name, layer in layers.items() if layer == 0}


def frozen_norms(network: nn.Module, frozen: Sequence[str]) -> list[nn.Module]:
    """Returns the batch norms all of whose parameters are frozen; of one without parameters, those around it are."""
    names = set(frozen)
    found: list[nn.Module] = []
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            place: str = name
            owner: nn.Module = module
            while not any(True for _ in owner.parameters()):
                place = place.rpartition(".")[0]
                owner = network.get_submodule(place)
            prefix = f"{place}." if place else ""
            if all(f"{prefix}{each}" in names for each, _ in owner.named_parameters()):
                found.append(module)
    return found

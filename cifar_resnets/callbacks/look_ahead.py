"""Look-ahead: pulls the weights back to their slow average every few steps."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from cifar_resnets.errors import require
from cifar_resnets.training.run_length import run_length


class LookAhead(pl.Callback):
    """Moves a slow copy of the weights towards them every few optimizer steps, and sets the weights to that copy.

    The slow copy moves by the part 1 - decay of the way; the decay rises from 0 to `max_decay` with a power of the part
    of the run that is done. After the last step the weights are the slow copy. Running averages of batch norms are
    treated as weights are.

    Source: Zhang et al. (2019), "Lookahead Optimizer: k steps forward, 1 step back", with the rising decay of Jordan
    (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.4 and its public code.

    Args:
        every: optimizer steps between two moves.
        max_decay: part of the slow copy that is left at the end of the run, from 0 to below 1.
        power: of the part of the run that is done, above 0.

    Raises:
        ConfigurationError: for a value out of range.
    """

    def __init__(self, every: int = 5, max_decay: float = 0.95**5, power: float = 3.0) -> None:
        require("LookAhead", every >= 1, "every", every, "1 or more")
        require("LookAhead", 0 <= max_decay < 1, "max_decay", max_decay, "a number from 0 to below 1")
        require("LookAhead", power > 0, "power", power, "a number above 0")
        self.every, self.max_decay, self.power = every, max_decay, power
        self._slow: dict[str, Tensor] = {}
        self._done = 0  # optimizer steps, so that a batch which only adds gradients moves nothing

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the slow copy of another run; that of a resumed one is read after this."""
        self._slow = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the weights, unless the run was resumed."""
        weights = _weights(pl_module)
        slow = self._slow or {name: weight.clone() for name, weight in weights.items()}
        self._slow = {name: slow[name].to(weight.device) for name, weight in weights.items()}
        self._done = trainer.global_step
        self._total = run_length(trainer)[0]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Moves the slow copy after every so many optimizer steps, and after the last one sets the weights to it."""
        step = trainer.global_step
        if step == self._done:
            return
        self._done = step
        weights = list(_weights(pl_module).values())
        if step % self.every == 0:
            self._move(weights, self.max_decay * (step / self._total) ** self.power)
        if step >= self._total:
            self._move(weights, 1.0)

    def _move(self, weights: list[Tensor], decay: float) -> None:
        slow = list(self._slow.values())
        torch._foreach_lerp_(slow, weights, 1 - decay)
        torch._foreach_copy_(weights, slow)

    def state_dict(self) -> dict[str, Any]:
        """Returns the slow copy."""
        return dict(self._slow)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a slow copy."""
        self._slow = dict(state_dict)


def _weights(module: pl.LightningModule) -> dict[str, Tensor]:
    """Returns what is averaged: all parameters and buffers that are numbers with a fraction."""
    return {name: weight for name, weight in module.state_dict().items() if weight.is_floating_point()}

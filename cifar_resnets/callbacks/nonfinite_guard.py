"""What a run is kept from: updates that are not finite, and folders that turn out to be closed after hours."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.distributed.collectives import Agreement
from cifar_resnets.errors import DivergenceError, require

OnNonfinite = Literal["stop", "skip"]
Where = tuple[int, int, float]  # step, epoch, learning rate


class NonfiniteGuard(pl.Callback):
    """Takes no step from a loss or gradients that are infinite or NaN: stops the run, or skips the step.

    On an accelerator, to wait for which costs much, a run that is to stop does so one step later; nothing that the step
    has changed is saved. Where gradients are scaled (fp16) theirs may overflow, which the scaler skips by itself; the
    loss alone counts then.

    Args:
        on_nonfinite: `stop` ends the run with status 5; `skip` goes on without the step.
        max_skipped_steps: so many steps in a row may be skipped.

    Raises:
        ConfigurationError: for a value out of range.
        DivergenceError: in a fit, when the run is to stop.
    """

    def __init__(self, on_nonfinite: OnNonfinite = "stop", max_skipped_steps: int = 10) -> None:
        require("fit", max_skipped_steps >= 1, "max_skipped_steps", max_skipped_steps, "1 or more")
        self.max_skipped_steps = max_skipped_steps if on_nonfinite == "skip" else 0
        self.num_skipped = 0  # in a row
        self._agree = Agreement()
        self._pending: tuple[_Lagged, Where] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a checkpoint was written."""
        self.num_skipped = state_dict["num_skipped"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets what another run has left."""
        self._pending = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at the loss and the gradients of the step."""
        assert isinstance(pl_module, ImageClassifier)
        size = self._size(trainer, pl_module, optimizer)
        where = trainer.global_step + 1, trainer.current_epoch + 1, float(optimizer.param_groups[0]["lr"])
        if size.device.type != "cpu" and not self.max_skipped_steps:
            self.check(trainer)
            self._pending = _Lagged(size), where
        elif self._agree([not math.isfinite(size)])[0]:
            self._refuse(trainer, pl_module, optimizer, where)
        else:
            self.num_skipped = 0

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Nothing is saved of a step that was not looked at yet, nor weights that are not finite."""
        assert isinstance(pl_module, ImageClassifier)
        self.check(trainer)
        pl_module.check_weights()

    def check(self, trainer: pl.Trainer) -> None:
        """Stops the run if the step that was looked at last was bad.

        Raises:
            DivergenceError: then.
        """
        pending, self._pending = self._pending, None
        if pending is not None and self._agree([not math.isfinite(pending[0].read())])[0]:
            raise DivergenceError(_complaint(trainer, *pending[1]))

    def _size(self, trainer: pl.Trainer, module: ImageClassifier, optimizer: Optimizer) -> Tensor:
        """A number that is finite if the loss and all gradients are."""
        figures = [module.step_loss]
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            figures += torch._foreach_norm(gradients) if gradients else []
        # what is infinite or NaN stays so in a sum
        return torch.stack([figure.detach().float() for figure in figures]).sum()

    def _refuse(self, trainer: pl.Trainer, module: ImageClassifier, optimizer: Optimizer, where: Where) -> None:
        self.num_skipped += 1
        if self.num_skipped > self.max_skipped_steps:
            raise DivergenceError(_complaint(trainer, *where, self.num_skipped if self.max_skipped_steps else 0))
        # no optimizer touches a parameter without a gradient, nor what it remembers of it
        optimizer.zero_grad(set_to_none=True)
        module.train_metrics.forget()
        if trainer.is_global_zero:
            print(f"skipped step {trainer.global_step + 1}: its loss or gradients are infinite or NaN", flush=True)


def _complaint(trainer: pl.Trainer, step: int, epoch: int, lr: float, num_times: int = 0) -> str:
    times = f" {num_times} times in a row" if num_times else ""
    return (
        f"loss or gradients became infinite or NaN{times} in step {step}, epoch {epoch}, at a learning rate of "
        f"{lr:.3g}; {last_good(trainer)}; try a lower model.lr, a longer warm-up or --on_nonfinite skip"
    )


class _Lagged:
    """A value of an accelerator, on its way to the CPU while that goes on."""

    def __init__(self, value: Tensor) -> None:
        self._copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._copy.copy_(value, non_blocking=True)
        self._arrived: Any = torch.Event(value.device.type)
        self._arrived.record()

    def read(self) -> float:
        """The value, waiting for it if need be."""
        self._arrived.synchronize()
        return float(self._copy)


def last_good(trainer: pl.Trainer) -> str:
    """The newest checkpoint of a run, in words."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint) and callback.path.exists():
            return f"the last good checkpoint is {callback.path}"
    return "there is no checkpoint yet"

"""Keeps steps with an infinite or NaN loss or gradient from the weights."""

import math
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.distributed.collectives import Agreement
from cifar_resnets.errors import DivergenceError, require
from cifar_resnets.training.losses import require_finite_weights

OnNonfinite = Literal["stop", "skip"]
Where = tuple[int, int, float]  # step, epoch, learning rate


class NonfiniteGuard(pl.Callback):
    """Stops the run, or skips the step, if the loss or a gradient is infinite or NaN.

    On an accelerator the run stops one step later, because waiting for each result would slow training down; nothing
    that the bad step changed is saved. Scaled gradients (fp16) may overflow, and the gradient scaler skips such a step
    by itself; only the loss is checked then.

    Args:
        on_nonfinite: `stop` ends the run with status 5; `skip` skips the step.
        max_skipped_steps: number of steps in a row that may be skipped.

    Raises:
        ConfigurationError: for a value out of range.
        DivergenceError: during a fit, to stop the run.
    """

    def __init__(self, on_nonfinite: OnNonfinite = "stop", max_skipped_steps: int = 10) -> None:
        require("fit", max_skipped_steps >= 1, "max_skipped_steps", max_skipped_steps, "1 or more")
        self.max_skipped_steps = max_skipped_steps if on_nonfinite == "skip" else 0
        self.num_skipped = 0  # in a row
        self._agree = Agreement()
        self._pending: tuple[_Lagged, Where] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps skipped in a row, for a resumed run."""
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the number of skipped steps from a checkpoint."""
        self.num_skipped = state_dict["num_skipped"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drops the pending step of an earlier run."""
        self._pending = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Checks the loss and the gradients of the step."""
        assert isinstance(pl_module, ImageClassifier)
        values = _loss_and_gradients(trainer, pl_module, optimizer)
        if not values[0].is_cpu and not self.max_skipped_steps:
            self.check(trainer)
            self._pending = _Lagged(get_total_norm(values)), _where(trainer, optimizer)
        elif self._agree([not _are_finite(values)])[0]:
            self._refuse(trainer, pl_module, optimizer)
        else:
            self.num_skipped = 0

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Checks the pending step and the weights before they are saved."""
        assert isinstance(pl_module, ImageClassifier)
        self.check(trainer)
        require_finite_weights(pl_module.network, trainer.current_epoch, pl_module.step_rates)

    def check(self, trainer: pl.Trainer) -> None:
        """Reads the result of the pending step, if there is one.

        Raises:
            DivergenceError: if its loss or a gradient was infinite or NaN.
        """
        pending, self._pending = self._pending, None
        if pending is not None and self._agree([not math.isfinite(pending[0].read())])[0]:
            raise DivergenceError(_complaint(trainer, *pending[1]))

    def _refuse(self, trainer: pl.Trainer, module: ImageClassifier, optimizer: Optimizer) -> None:
        self.num_skipped += 1
        if self.num_skipped > self.max_skipped_steps:
            num_times = self.num_skipped if self.max_skipped_steps else 0
            raise DivergenceError(_complaint(trainer, *_where(trainer, optimizer), num_times))
        # an optimizer changes neither a parameter without a gradient nor its state
        optimizer.zero_grad(set_to_none=True)
        module.train_metrics.forget()
        if trainer.is_global_zero:
            print(f"skipped step {trainer.global_step + 1}: its loss or gradients are infinite or NaN", flush=True)


def _loss_and_gradients(trainer: pl.Trainer, module: ImageClassifier, optimizer: Optimizer) -> list[Tensor]:
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return [module.step_loss]
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [module.step_loss, *gradients]


def _are_finite(values: list[Tensor]) -> bool:
    """Returns whether all numbers are finite: a norm keeps infinity and NaN."""
    if values[0].is_cpu:  # `get_total_norm` takes 40 microseconds more for a few small tensors
        return all(math.isfinite(torch.linalg.vector_norm(value)) for value in values)
    return math.isfinite(get_total_norm(values))


def _where(trainer: pl.Trainer, optimizer: Optimizer) -> Where:
    return trainer.global_step + 1, trainer.current_epoch + 1, float(optimizer.param_groups[0]["lr"])


def _complaint(trainer: pl.Trainer, step: int, epoch: int, lr: float, num_times: int = 0) -> str:
    times = f" {num_times} times in a row" if num_times else ""
    return (
        f"loss or gradients became infinite or NaN{times} in step {step}, epoch {epoch}, at a learning rate of "
        f"{lr:.3g}; {last_good(trainer)}; try a lower model.lr, a longer warm-up or --on_nonfinite skip"
    )


class _Lagged:
    """Copies a value of an accelerator to the CPU without waiting for it."""

    def __init__(self, value: Tensor) -> None:
        self._copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._copy.copy_(value, non_blocking=True)
        self._arrived: Any = torch.Event(value.device.type)
        self._arrived.record()

    def read(self) -> float:
        """Returns the value, after waiting for it if necessary."""
        self._arrived.synchronize()
        return float(self._copy)


def last_good(trainer: pl.Trainer) -> str:
    """Returns a phrase that names the newest checkpoint of a run."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint) and callback.path.exists():
            return f"the last good checkpoint is {callback.path}"
    return "there is no checkpoint yet"

"""Writes the checkpoint from which a run is resumed: after steps, minutes and epochs, and after a signal."""

import contextlib
import functools
import os
import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from torch.optim import Optimizer

from cifar_resnets.distributed.collectives import Agreement
from cifar_resnets.distributed.signals import SIGNALS_OF_PROCESS, Stopped, stop_forks
from cifar_resnets.errors import require
from cifar_resnets.runs.run_dir import LAST, PREVIOUS

_require = functools.partial(require, "last_checkpoint")


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` at the end of each epoch, and every so many steps or minutes.

    The checkpoint before it is kept as `previous.ckpt`. A signal stops the run with a checkpoint at the end of the
    current step or validation.

    Args:
        every_n_steps: optimizer steps from one checkpoint to the next; none within an epoch if not given.
        every_n_minutes: minutes from one checkpoint to the next within an epoch, on any rank's clock; none if null.
        dirpath: folder of the checkpoints; `checkpoints` in the run's folder if not given.

    Raises:
        ConfigurationError: for a value out of range.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 10.0,
        dirpath: str | None = None,
    ) -> None:
        _require(every_n_steps is None or every_n_steps >= 1, "every_n_steps", every_n_steps, "1 or more, or null")
        allowed = "a number above 0, or null"
        _require(every_n_minutes is None or every_n_minutes > 0, "every_n_minutes", every_n_minutes, allowed)
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.dirpath = dirpath
        self._signals = SIGNALS_OF_PROCESS
        self._agree = Agreement()
        self._stop_by = self._is_time = 0
        self._steps = 0
        self._saved_at = 0.0

    @property
    def path(self) -> Path:
        """Returns the path of the checkpoint."""
        return Path(self.dirpath or "checkpoints") / LAST

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Handles signals again, now that the ranks are connected."""
        self._signals.start()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Defers signals to the end of a step from now on."""
        self._signals.defer()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Defers signals to the end of a step from now on."""
        self._signals.defer()
        self._steps, self._saved_at = trainer.global_step, time.monotonic()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Agrees with all ranks on whether to save and whether to stop after this step."""
        minutes = (time.monotonic() - self._saved_at) / 60
        is_time = self.every_n_minutes is not None and minutes >= self.every_n_minutes
        self._stop_by, self._is_time = self._agree([self._signals.pending, is_time])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Writes a checkpoint if one is due; stops the run after a signal."""
        if trainer.global_step == self._steps:  # no checkpoint holds accumulated gradients
            return
        self._steps = trainer.global_step
        if 0 <= trainer.max_steps <= self._steps:  # after the run's last step, a validation and a checkpoint follow
            return
        by_steps = self.every_n_steps is not None and self._steps % self.every_n_steps == 0
        if by_steps or self._is_time or self._stop_by:
            self._save(trainer)
        self._stop(trainer, self._stop_by)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes a checkpoint; stops the run after a signal during the validation."""
        self._save(trainer)
        self._stop(trainer, *self._agree([self._signals.pending]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lets signals end the run at once from now on."""
        self._signals.release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Waits for the checkpoint of ranks that are forks of this process, when a signal stops it."""
        if isinstance(exception, Stopped) and stop_forks() and self.path.exists():
            exception.checkpoint = str(self.path)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # of Lightning
            return
        if trainer.is_global_zero:
            _keep(self.path)
        trainer.save_checkpoint(self.path)
        self._saved_at, self._is_time = time.monotonic(), 0

    def _stop(self, trainer: pl.Trainer, signum: int) -> None:
        if signum:
            raise Stopped(signum, None if trainer.fast_dev_run else str(self.path))  # type: ignore[attr-defined]


def _keep(path: Path) -> None:
    """Links a checkpoint that is about to be replaced as `previous.ckpt`, on file systems with hard links."""
    link = path.with_name(f".{PREVIOUS}.{os.getpid()}")
    with contextlib.suppress(OSError):
        os.link(path, link)
        os.replace(link, path.with_name(PREVIOUS))

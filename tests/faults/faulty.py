"""Makes one rank of a run fail: a recipe can name these classes, so that tests run the real command line."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

import lightning.pytorch as pl

from cifar_resnets.data.digits import Digits
from cifar_resnets.distributed.scheduler import rank_by_environment
from cifar_resnets.errors import DataError

KILLED, DATA, BUG, FULL = "killed", "data", "bug", "full"


class Faulty(pl.Callback):
    """Fails once.

    Args:
        fault: what happens.
        hook: of a callback, in which it happens; `__init__` is before the ranks are connected.
        rank: to which it happens.
        epoch: before which it does not happen, counted from 0.
    """

    def __init__(self, fault: str, hook: str, rank: int, epoch: int = 0) -> None:
        self.fault, self.rank, self.epoch = fault, rank, epoch
        if hook != "__init__":
            setattr(self, hook, self._hook)
        elif rank_by_environment() == rank:
            fail(fault)

    def _hook(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_rank == self.rank and trainer.current_epoch >= self.epoch:
            fail(self.fault)


class FaultyDigits(Digits):
    """Digits that cannot be prepared, which rank 0 does alone."""

    def prepare_data(self) -> None:
        fail(DATA)


def fail(fault: str) -> None:
    """Brings a fault about."""
    if fault == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == DATA:
        raise DataError("cat/7.png is damaged")
    if fault == FULL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")
    assert fault != BUG, "a bug"

"""Connects the ranks of a Trainer, so that they end together: see `runs.ranks`."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
    subprocess_script,
)
from torch.multiprocessing.spawn import ProcessExitedException

from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.distributed.hub import Hub, start_again
from cifar_resnets.distributed.ranks import PARENT, RANKS, Link
from cifar_resnets.distributed.signals import SIGNALS, Stopped
from cifar_resnets.errors import UserError, output_error

LOOPBACK = "127.0.0.1"
logger = logging.getLogger(__name__)


def watch(trainer: pl.Trainer) -> None:
    """Has the ranks of a Trainer watch each other, in whatever it is going to run; nothing with one rank.

    What the process does is to be wrapped in `runs.ranks.one_word`.

    Args:
        trainer: that has not started its processes yet.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1 or not isinstance(strategy, ParallelStrategy):
        return
    # no hook lies between the process group and the preparation of data, in which a rank can fail as well
    strategy.setup_environment = functools.partial(_set_up, trainer)  # type: ignore[method-assign]
    launcher = strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        launcher.launch = functools.partial(_launch, launcher)  # type: ignore[method-assign]
    elif isinstance(launcher, _SubprocessScriptLauncher) and _starts_processes(trainer):
        os.environ[PARENT] = str(os.getpid())
        # Lightning's own observer kills all processes, this one too, without a word. Private:
        # tests/faults/test_rank_faults.py notices when it is no longer called
        subprocess_script._launch_process_observer = RANKS.look_after  # type: ignore[attr-defined,assignment]


def _starts_processes(trainer: pl.Trainer) -> bool:
    environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]  # of a ParallelStrategy
    return trainer.num_nodes == 1 and not environment.creates_processes_externally


def _set_up(trainer: pl.Trainer) -> None:
    """The strategy's own set-up, which makes the process group, then the connections."""
    with _ended_by_signals():
        type(trainer.strategy).setup_environment(trainer.strategy)
        if RANKS.link is None:
            _connect(trainer)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets signals end the process: while it waits in torch for others that never come, Python takes in none."""
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _connect(trainer: pl.Trainer) -> None:
    """Connects all ranks, or none if one of them cannot be."""
    rank, alone = trainer.global_rank, trainer.num_nodes == 1
    paths = _paths(trainer)
    hub = Hub(trainer.world_size, alone, remedy(paths), RANKS.fate, is_ending) if rank == 0 else None
    port, token, paths = trainer.strategy.broadcast((hub.port, hub.token, paths) if hub else (0, "", paths))
    link, host = None, LOOPBACK if alone or hub else os.environ["MASTER_ADDR"]
    try:
        link = Link((host, port), token, rank, remedy(paths))
    except OSError as error:
        logger.warning("rank %d cannot reach rank 0 (%s): if a rank is killed, the others may hang", rank, error)
    if trainer.strategy.reduce_boolean_decision(link is not None) and link:
        RANKS.join(link)
    else:
        for end in (link, hub):
            if end is not None:
                end.close()


def _paths(trainer: pl.Trainer) -> list[Path]:
    return [callback.path for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]


def remedy(paths: Sequence[Path]) -> Callable[[], str]:
    """What says how to go on with a run one rank of which was killed.

    Args:
        paths: of the checkpoint from which it can go on, if it has been written.
    """

    def words() -> str:
        found = [path for path in paths if path.exists()]
        return f"the last checkpoint is {found[0]}, start again with --ckpt_path auto" if found else start_again()

    return words


def is_ending() -> bool:
    """Whether a signal is ending this process, which takes in no other: see `Signals.ignore`."""
    return signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def _launch(launcher: _MultiProcessingLauncher, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs the ranks as forks of this process, which only waits for them."""
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each process that it ends
    try:
        together = functools.partial(_run_together, kwargs["trainer"], function)
        return type(launcher).launch(launcher, together, *args, **kwargs)
    except Stopped as stop:
        launcher.kill(signal.SIGTERM)  # those that have had the signal themselves make nothing of another
        for process in launcher.procs:
            process.join()
        written = next((str(path) for path in _paths(kwargs["trainer"]) if path.exists()), None)
        raise Stopped(stop.signum, written) from None
    except ProcessExitedException as error:
        code = error.exit_code
        raise SystemExit(128 - code if code < 0 else code) from None


def _run_together(trainer: pl.Trainer, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs a rank that is a fork: it leaves when all are done, or ends with the status of the one that failed first."""
    try:
        result = function(*args, **kwargs)
        if RANKS.link is not None and (status := RANKS.link.report(0)):
            raise SystemExit(status)
    except BaseException as error:
        status = _status_of(error)
        for each in trainer.loggers:
            each.finalize("failed")
        raise SystemExit(status) from error
    RANKS.leave()
    return result


def _status_of(error: BaseException) -> int:
    """Reports an error of a fork, and returns the status with which all end."""
    if isinstance(error, OSError):
        error = output_error(error) or error
    if isinstance(error, UserError):
        return RANKS.fail(str(error), error.exit_status)
    if isinstance(error, Stopped):  # the process that waits says it
        return RANKS.fail(None, 128 + error.signum)
    if isinstance(error, SystemExit):
        return RANKS.fail(None, error.code if isinstance(error.code, int) else 1)
    if RANKS.link is None or RANKS.link.is_own(error):
        raise error
    return RANKS.link.status

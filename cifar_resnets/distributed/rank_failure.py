"""Ends every process of a run on several ranks when one rank fails: the part that the launchers do not do.

torchrun and `srun --kill-on-bad-exit=1` end the other ranks when one fails; with Lightning's launcher rank 0 does, see
`watch`. A rank that fails ends at once. The others wait to be ended, so that they do not report errors that follow.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from cifar_resnets import errors
from cifar_resnets.distributed.scheduler import is_under_torchrun, rank_by_environment
from cifar_resnets.distributed.signals import SIGNALS

if TYPE_CHECKING:
    import lightning.pytorch as pl

WAIT = 20.0  # seconds in which a launcher ends the ranks that have not failed
TOGETHER = 2.0  # seconds by which rank 0 is the first to report an error that all ranks have
PARENT = "CIFAR_RESNETS_PARENT"  # environment variable: process id of rank 0, from which Lightning starts the others
PR_SET_PDEATHSIG = 1  # of Linux' <sys/prctl.h>


def report(message: str) -> None:
    """Prints an error as one line on stderr; a rank other than 0 adds its number, and lets rank 0 report first."""
    if rank := rank_by_environment():
        wait_for_launcher(TOGETHER)
    _print(f"rank {rank}: {message}" if rank else message)


def wait_for_launcher(seconds: float, status: int = 1) -> None:
    """Waits for the launcher to end this process because of another rank; a SIGTERM ends it with an exit status.

    SLURM ends a job with the highest status of its processes, so that 1 leaves that of the rank that failed.
    """
    signal.signal(signal.SIGTERM, lambda signum, frame: _exit(status))
    time.sleep(seconds)


def watch(trainer: pl.Trainer) -> None:
    """Ends rank 0 with the exit status of a rank that Lightning's launcher started from it, when that rank fails.

    Lightning's own observer kills rank 0, within 5 s. While the ranks connect to each other, in which Python runs no
    signal handler, signals end a process at once.

    Args:
        trainer: a Trainer that has not started its processes yet.
    """
    environment, launcher = getattr(trainer.strategy, "cluster_environment", None), trainer.strategy.launcher
    # a launcher for notebooks forks this process, and torch watches the forks
    if trainer.world_size > 1 and environment and launcher and not launcher.is_interactive_compatible:
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        if not environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            threading.Thread(target=_watch_children, args=(trainer,), daemon=True).start()


def _watch_children(trainer: pl.Trainer) -> None:
    launcher: Any = trainer.strategy.launcher
    while len(launcher.procs) < trainer.num_devices - 1:
        time.sleep(0.1)
    for number, child in enumerate(launcher.procs, start=1):
        if isinstance(child, subprocess.Popen):  # torch watches those of `ddp_spawn`
            threading.Thread(target=_watch_child, args=(trainer.global_rank + number, child), daemon=True).start()


def _watch_child(rank: int, child: subprocess.Popen[bytes]) -> None:
    if status := child.wait():
        _exit(_status_of_process(rank, status))


@contextmanager
def ending_together() -> Iterator[None]:
    """Runs a command that may be one of several ranks, and ends the process at once when it fails.

    Raises:
        SystemExit: if a fork of this process failed.
    """
    _end_with_launcher()
    try:
        yield
    except BaseException as error:
        if _distributed() is not None:
            _exit(_status_of(error))
        if "torch" in sys.modules and (status := _status_of_fork(error)):
            raise SystemExit(status) from None
        raise


def wait_for_all_ranks() -> None:
    """Waits until all ranks are done, so that none ends with status 0 when another fails at the end."""
    if (dist := _distributed()) is not None:
        dist.barrier()


def _distributed() -> Any:
    """Returns torch.distributed in a process that is a rank; light commands do not import it."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


def _end_with_launcher() -> None:
    """Has Linux kill this rank when the process that started it ends, which is torchrun or Lightning's rank 0."""
    by_rank_0 = PARENT in os.environ and rank_by_environment() > 0
    if (by_rank_0 or is_under_torchrun()) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if by_rank_0 and str(os.getppid()) != os.environ[PARENT]:  # it has ended already
            _exit(1)


def _status_of(error: BaseException) -> int:
    """Reports an error of this rank, and returns the exit status."""
    from torch.distributed import DistError

    if isinstance(error, SystemExit):  # its reason has been reported
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    # a collective failed because another rank ended; gloo has no class of its own for it
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
        wait_for_launcher(WAIT)
    traceback.print_exception(error)
    _print(f"rank {rank_by_environment()}: {type(error).__name__}: {error}")
    return 1


def _status_of_fork(error: BaseException) -> int:
    """Reports that a fork was killed or had an error that a user can mend; returns the exit status, 0 for any other."""
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    if isinstance(error, ProcessExitedException):
        return _status_of_process(error.error_index, error.exit_code)
    # the last line of the fork's traceback
    name, _, message = str(error).strip().rpartition("\n")[2].partition(": ")
    kind = getattr(errors, name.rpartition(".")[2], None)
    if kind is None or not isinstance(error, ProcessRaisedException):
        return 0
    _print(f"rank {error.error_index}: {message}")
    return int(kind.exit_status)


def _status_of_process(rank: int, status: int) -> int:
    """Reports that a rank was killed, and returns its status as a shell shows it."""
    if status < 0:  # other processes have reported why they failed
        _print(f"rank {rank} was killed by signal {-status}; a fit goes on with --ckpt_path auto")
    return 128 - status if status < 0 else status


def _print(line: str) -> None:
    sys.stderr.write(f"cifar-resnets: {' '.join(line.split())}\n")  # at once, or lines of two processes would mix


def _exit(status: int) -> NoReturn:
    """Ends this process whatever its threads do: Python's own end would wait for the other ranks in NCCL."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)

"""Ends a rank that fails at once and with one line, so that the launcher can end the others within 30 s.

That is the observer of Lightning's `ddp`, torchrun, or `srun --kill-on-bad-exit=1`; torch ends forks (`ddp_fork`).
"""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cifar_resnets import errors
from cifar_resnets.distributed.scheduler import is_under_torchrun, rank_by_environment
from cifar_resnets.support.text import printable

WAIT = 20.0  # seconds in which a launcher ends the ranks that have not failed
TOGETHER = 2.0  # seconds by which rank 0 is the first to report an error that all ranks have
PR_SET_PDEATHSIG = 1  # of Linux' <sys/prctl.h>


def report(message: str, rank: int | None = None) -> None:
    """Prints an error as one line on stderr; a rank other than 0 lets rank 0 report first, and adds its number."""
    if rank is None and (rank := rank_by_environment()):
        wait_for_launcher(TOGETHER)
    line = f"rank {rank}: {message}" if rank else message
    line = printable(" ".join(line.split()))
    sys.stderr.write(f"cifar-resnets: {line}\n")  # at once, or lines of two processes would mix


def wait_for_launcher(seconds: float, status: int = 1) -> None:
    """Waits for the launcher to end this rank because of another; a SIGTERM ends it with the exit status."""
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(status))
    time.sleep(seconds)


@contextmanager
def ending_together() -> Iterator[None]:
    """Runs a command that may be one of several ranks; when it fails or its parent ends, this process ends at once."""
    if (rank_by_environment() or is_under_torchrun()) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no orphan: the parent is torchrun or rank 0
    try:
        yield
        if (dist := _connection()) is not None:
            dist.barrier()  # none ends with status 0 when another one fails at the end
    except BaseException as error:
        if _connection() is not None:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(_status_of(error))  # Python's own end would wait for the other ranks in NCCL
        if hasattr(error, "error_index"):  # of torch.multiprocessing: a fork has failed
            raise SystemExit(_status_of_fork(error)) from None
        raise


def _connection() -> Any:
    """Returns torch.distributed in a process that is connected to other ranks, or None; light commands import none."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist and dist.is_available() and dist.is_initialized() else None


def _status_of(error: BaseException) -> int:
    if isinstance(error, SystemExit):  # it has been reported
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error)):  # another rank ended
        wait_for_launcher(WAIT)
    traceback.print_exception(error)
    report(f"{type(error).__name__}: {error}")
    return 1


def _status_of_fork(error: Any) -> int:
    """Reports the last line of a fork's traceback, or the signal by which it was killed; returns the exit status."""
    name, _, message = (line := str(error).strip().rpartition("\n")[2]).partition(": ")
    kind, code = getattr(errors, name.rpartition(".")[2], None), getattr(error, "exit_code", 0)
    if kind is None and not code:
        traceback.print_exception(error)
    report(message if kind else line, error.error_index)
    return int(kind.exit_status if kind else 128 - code if code < 0 else code or 1)

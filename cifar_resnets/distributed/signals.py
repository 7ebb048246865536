"""Signals that stop a run: at once, or at the end of a training step, with a checkpoint."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AGAIN = 0.01  # seconds until a signal is sent again whose exception Python has ignored


class Stopped(SystemExit):
    """Raised when a signal stops the run; a process that does not catch it ends with status 128 + n.

    Args:
        signum: number of the signal.
        checkpoint: path from which the run can be resumed; None if no checkpoint was written.
    """

    def __init__(self, signum: int, checkpoint: str | None = None) -> None:
        super().__init__(128 + signum)
        self.signum = signum
        self.checkpoint = checkpoint


class Signals:
    """Handles SIGINT, SIGTERM and SIGUSR1: raises Stopped at once, or keeps the first one as pending while deferred.

    Further signals are ignored while one is pending, but a second Ctrl-C raises Stopped at once.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._deferred = False

    def install(self) -> None:
        """Replaces the handlers of the process."""
        if threading.current_thread() is threading.main_thread():  # Python allows it in no other
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles signals within a block."""
        before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.pending, self._deferred = 0, False
        self.install()
        report, sys.unraisablehook = sys.unraisablehook, self._report
        try:
            yield
        finally:
            sys.unraisablehook = report
            if threading.current_thread() is threading.main_thread():
                for signum, handler in before.items():
                    signal.signal(signum, handler)

    def defer(self) -> None:
        """Keeps signals pending from now on, for the end of the step."""
        # Lightning has installed handlers of its own meanwhile, one of which waits for other ranks
        self.install()
        self._deferred = True

    def release(self) -> None:
        """Raises Stopped for a pending signal, and from now on at once for further ones."""
        self._deferred = False
        if self.pending:
            raise Stopped(self.pending)

    def ignore(self) -> None:
        """Ignores further signals while the run ends, such as those that a scheduler sends after a requeue."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _report(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Sends a signal again if Python ignored Stopped, as it ignores any exception in a `__del__`."""
        if isinstance(stop := unraisable.exc_value, Stopped):
            threading.Timer(AGAIN, os.kill, (os.getpid(), stop.signum)).start()
        else:
            sys.__unraisablehook__(unraisable)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._deferred or self.pending == signum == signal.SIGINT:
            raise Stopped(signum)
        self.pending = self.pending or signum


def stop_forks() -> bool:
    """Sends SIGTERM to ranks that are forks of this process (`ddp_fork`), and waits; returns whether there are any."""
    forks = [each for each in multiprocessing.active_children() if not each.daemon]  # the workers of a loader are
    for fork in forks:
        fork.terminate()
    for fork in forks:
        fork.join()
    return bool(forks)


SIGNALS_OF_PROCESS = Signals()

"""Signals that stop a run: at once, or at the end of a training step, with a checkpoint."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # the last one if a terminal is closed
AGAIN = 0.05  # seconds until a signal is sent again whose exception Python has ignored


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
    """Handles `SIGNALS`: raises Stopped at once, or keeps the first one as pending while deferred.

    Further signals are ignored while one is pending, but a second Ctrl-C raises Stopped at once. SIGHUP stays ignored
    in a process that `nohup` has started.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._deferred = self._is_installed = False

    def start(self) -> None:
        """Forgets what an earlier run in this process has left pending; within `installed`, signals count again.

        Elsewhere, as in a notebook, it is `defer` that replaces the handlers: Lightning has noted those of the process
        by then, and puts them back after the run.
        """
        self.pending, self._deferred = 0, False
        if self._is_installed:
            self.install()

    def install(self) -> None:
        """Replaces the handlers of the process."""
        if threading.current_thread() is threading.main_thread():  # Python allows it in no other
            _set_all(self._handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles signals within a block."""
        before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self._is_installed = True
        self.start()
        report, sys.unraisablehook = sys.unraisablehook, self._report
        try:
            yield
        finally:
            self._is_installed = False
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

    def end_process(self) -> None:
        """Lets signals end the process until `install`: Python runs no handler while ranks connect to each other."""
        _set_all(signal.SIG_DFL)

    def ignore(self) -> None:
        """Ignores further signals while the run ends, such as those that a scheduler sends after a requeue."""
        _set_all(signal.SIG_IGN)

    def _report(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Sends a signal again if Python ignored Stopped, as it ignores any exception in a `__del__`."""
        if isinstance(stop := unraisable.exc_value, Stopped):
            # not by threading, which waits for the thread to start: on a busy machine the signal would come before
            _thread.start_new_thread(_send_later, (stop.signum,))
        else:
            sys.__unraisablehook__(unraisable)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            _leave_closed_terminal()
        if not self._deferred or self.pending == signum == signal.SIGINT:
            raise Stopped(signum)
        self.pending = self.pending or signum


def _send_later(signum: int) -> None:
    time.sleep(AGAIN)
    os.kill(os.getpid(), signum)


def _set_all(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for signum in SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handler)


def _leave_closed_terminal() -> None:
    """Discards further output to a terminal that is gone: an error of a line would come before the checkpoint."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def stop_forks() -> bool:
    """Sends SIGTERM to ranks that are forks of this process (`ddp_fork`), and waits; returns whether there are any."""
    forks = [each for each in multiprocessing.active_children() if not each.daemon]  # the workers of a loader are
    for fork in forks:
        fork.terminate()
    for fork in forks:
        fork.join()
    return bool(forks)


SIGNALS_OF_PROCESS = Signals()

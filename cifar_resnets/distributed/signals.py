"""Signals that end a run: at once, or at the end of a training step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AGAIN = 0.01  # seconds until a signal that came to nothing is sent once more


class Stopped(BaseException):
    """A signal has ended the run; no Exception, so that nothing takes it for an error that could be mended.

    Args:
        signum: of the signal.
        checkpoint: where the run can be continued, if it can.
    """

    def __init__(self, signum: int, checkpoint: str | None = None) -> None:
        super().__init__(signum, checkpoint)
        self.signum = signum
        self.checkpoint = checkpoint


class Signals:
    """Takes in SIGINT, SIGTERM and SIGUSR1: raises Stopped at once, or while they are deferred notes the first of them.

    A second signal while one is noted is as good as the first; but a second Ctrl-C is meant.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._deferred = False

    def install(self) -> None:
        """Takes the place of the handlers that there are."""
        if threading.current_thread() is threading.main_thread():  # no other thread may
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Takes signals in within a block."""
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
        """From now on, signals are noted for the end of the step."""
        # Lightning has put in handlers of its own meanwhile, one of which waits for other ranks
        self.install()
        self._deferred = True

    def release(self) -> None:
        """From now on, signals end the run at once."""
        self._deferred = False
        if self.pending:
            raise Stopped(self.pending)

    def ignore(self) -> None:
        """The run is ending: further signals change nothing, such as those that a scheduler sends after a requeue."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _report(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Of an error that came where Python lets none pass, such as in a `__del__`: a signal is sent once more."""
        if isinstance(stop := unraisable.exc_value, Stopped):
            threading.Timer(AGAIN, os.kill, (os.getpid(), stop.signum)).start()
        else:
            sys.__unraisablehook__(unraisable)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._deferred or self.pending == signum == signal.SIGINT:
            raise Stopped(signum)
        self.pending = self.pending or signum


SIGNALS_OF_PROCESS = Signals()

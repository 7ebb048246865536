"""One word for all ranks: when one of several processes fails or is killed, all end, and one line says which.

What a rank reports before it ends, or that it ended without a word, rank 0 says once and tells the others: see
`runs.hub`. At the end of a run that went well they wait for each other in the same way, so that all end with one
status. Nothing here knows of torch or Lightning: see `runs.rank_watch`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from cifar_resnets.distributed.hub import UNKNOWN, keep_alive, of_killed, say, send, start_again
from cifar_resnets.distributed.scheduler import rank_by_environment

GRACE = 5.0  # seconds in which a process can end by itself when another has failed; then it is ended
PARENT = "CIFAR_RESNETS_PARENT"  # variable: the process that has started this one as one of its ranks


class Link:
    """A rank's connection to rank 0.

    Args:
        address: host and port of rank 0's `Hub`.
        token: what the hub expects.
        rank: of this process.
        remedy: says what the user can do when rank 0 was killed.

    Raises:
        OSError: when there is no connection.
    """

    def __init__(
        self, address: tuple[str, int], token: str, rank: int, remedy: Callable[[], str] = start_again
    ) -> None:
        self.rank = rank
        self.pid = os.getpid()
        self.status = 0  # with which all ranks end
        self.first: int | None = None  # the rank that was the first to fail
        self._remedy = remedy
        self._decided, self._over = threading.Event(), threading.Event()
        self._socket = socket.create_connection(address, timeout=10)
        self._socket.settimeout(None)
        keep_alive(self._socket)
        send(self._socket, {"token": token, "rank": rank})
        threading.Thread(target=self._listen, name="ranks-link", daemon=True).start()

    def _listen(self) -> None:
        """Waits for the verdict, and ends this process if it hangs, as it does in a collective of NCCL."""
        line = ""
        with contextlib.suppress(OSError):
            line = self._socket.makefile(encoding="utf-8").readline()
        if self._over.is_set():
            return
        try:
            verdict = json.loads(line)
            self.status, self.first = verdict["status"], verdict["rank"]
        except ValueError:
            self._lose_hub()
        self._decided.set()
        if self.status and not self._over.wait(GRACE):
            end(self.status)

    def _lose_hub(self) -> None:
        what, self.status = of_killed(0, None)
        self.first = 0
        if self.rank == 1:
            say(f"{what}: {self._remedy()}")

    def is_decided(self, seconds: float = 0) -> bool:
        """Whether there is a verdict, if need be after so many seconds."""
        return self._decided.wait(seconds)

    def report(self, status: int, line: str | None = None) -> int:
        """Tells the hub that this rank ends, and returns the status with which all do.

        Args:
            status: 0 when it is done.
            line: what went wrong; None if there is nothing to be said.
        """
        if not self.is_decided():
            send(self._socket, {"status": status, "line": line})
        self._decided.wait()
        return self.status

    def is_own(self, error: BaseException) -> bool:
        """Reports an error, unless it follows from another rank's; whether this rank was the first to fail."""
        # a collective fails, with a RuntimeError, before the word of the failed rank is here
        if not (isinstance(error, RuntimeError) and self.is_decided(GRACE)):
            self.report(1, f"{type(error).__name__}: {error}")
        return self.first == self.rank

    def close(self) -> None:
        """Ends the connection and its thread."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Ranks:
    """This process as one of several, or alone."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._children: Sequence[subprocess.Popen[bytes]] = ()
        self._has_joined = False

    @property
    def link(self) -> Link | None:
        """To rank 0; not that of the process which this one is a fork of."""
        return self._link if self._link is not None and self._link.pid == os.getpid() else None

    def join(self, link: Link) -> None:
        """From now on, this process is one of several."""
        self._link, self._has_joined = link, True

    def leave(self) -> None:
        """From now on, it is alone."""
        if self.link is not None:
            self.link.close()
        self._link = None

    def fail(self, line: str | None, status: int) -> int:
        """Says what went wrong, once for all ranks, and returns the status with which all end.

        Args:
            line: what went wrong; None if there is nothing to be said.
            status: exit status for it.
        """
        if self.link is not None:
            return self.link.report(status, line)
        if line:
            say(f"rank {rank}: {line}" if (rank := rank_by_environment()) else line)
        return status

    def look_after(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        """Ends this process when one of those that it has started ends before all are connected.

        Args:
            children: ranks 1, 2, ...
        """
        self._children = list(children)
        for rank, child in enumerate(children, 1):
            threading.Thread(target=self._look_after, args=(rank, child), name="ranks-child", daemon=True).start()

    def _look_after(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        fate = child.wait()
        if fate and self._children and not self._has_joined:  # else the hub sees it
            what, status = of_killed(rank, fate)
            if fate < 0:  # else it has said why
                say(f"{what} before the start: start again")
            end(status)

    def fate(self, rank: int) -> int | None:
        """How the process of a rank ended that this one has started; None of another."""
        if not 1 <= rank <= len(self._children):
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._children[rank - 1].wait(GRACE)
        return None

    def end_children(self, seconds: float) -> None:
        """Waits for the processes that this one has started, and ends those that remain.

        Args:
            seconds: how long they may take; those that are not connected wait for this process in vain.
        """
        children, self._children = self._children, ()
        last = time.monotonic() + (seconds if self._has_joined else 0)
        for child in children:
            try:
                child.wait(max(0.0, last - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()


RANKS = Ranks()


@contextlib.contextmanager
def one_word(debug: bool = False) -> Iterator[None]:
    """Runs a command that may be one of several ranks: they end together, and one of them says why.

    Args:
        debug: whether to show the errors that follow from another rank's, too.

    Raises:
        SystemExit: with the status of the rank that failed first, in the others.
    """
    outlive_no_parent()
    try:
        yield
        if RANKS.link is not None and RANKS.link.report(0):
            raise SystemExit(RANKS.link.status)
    except Exception as error:
        if (link := RANKS.link) is None or link.is_own(error):
            raise
        if debug:
            traceback.print_exception(error)
        raise SystemExit(link.status) from None
    except SystemExit as stop:
        if RANKS.link is not None:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            raise SystemExit(RANKS.link.report(code)) from None
        raise
    finally:
        RANKS.leave()
        RANKS.end_children(2 * GRACE)


def outlive_no_parent() -> None:
    """Ends this process when the one that has started it as one of its ranks, or torchrun, has ended."""
    parent = _parent() or (os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0)
    if parent:
        threading.Thread(target=_outlive_no_parent, args=(parent,), name="ranks-parent", daemon=True).start()


def _outlive_no_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    if RANKS.link is not None:
        time.sleep(GRACE)  # the link ends this process, or it ends by itself
    elif _parent() and os.environ["LOCAL_RANK"] == "1":
        say("rank 0 was killed before the start: start again")
    end(UNKNOWN)


def _parent() -> int:
    """The process that has started this one as one of its ranks; 0 without one."""
    parent = int(os.environ.get(PARENT, "0")) if "LOCAL_RANK" in os.environ else 0
    return 0 if parent == os.getpid() else parent


def end(status: int) -> None:
    """Ends this process, whatever its main thread is doing, and those that it has started."""
    RANKS.end_children(1)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)

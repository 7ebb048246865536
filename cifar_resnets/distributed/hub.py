"""What rank 0 hears of all ranks, and what it tells them.

Every rank holds a connection to rank 0. The kernel closes it when a process ends, however it ends: no heartbeat, and a
process that is merely slow or stopped is never taken for dead.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

TOGETHER = 1.0  # seconds within which all ranks may report: then it was not the fault of one of them
QUIET = 10.0  # seconds that a rank which ends without a line leaves to those that have one
UNKNOWN = 128 + signal.SIGKILL  # status of a run one rank of which ended nobody knows how
# a machine that vanishes without a word, such as without power, is noticed after two minutes
KEEPALIVE = {"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 9}


def say(line: str) -> None:
    """Says what went wrong, in one line on stderr."""
    sys.stderr.write(f"cifar-resnets: {' '.join(line.split())}\n")  # at once, or lines of two processes would mix
    sys.stderr.flush()


def of_killed(rank: int, fate: int | None) -> tuple[str, int]:
    """What is said of a rank that ended without a word, and the exit status of the run.

    Args:
        rank: that ended.
        fate: its exit status, -n for signal n; None if not known.
    """
    if fate is None:
        return f"rank {rank} was killed", UNKNOWN
    if fate < 0:
        return f"rank {rank} was killed (signal {-fate})", 128 - fate
    return f"rank {rank} ended without a word (status {fate})", fate or 1


def start_again() -> str:
    """What a user can do when a rank was killed, if nothing more is known."""
    return "start again"


class Hub:
    """Hears all ranks, in the process of rank 0, and gives them the verdict once one has failed or all are done.

    Args:
        size: number of ranks.
        loopback: whether all of them are on this machine.
        remedy: says what the user can do when a rank was killed.
        fate: waits for the end of a rank's process, and returns its status as `of_killed` takes it.
        is_ending: whether rank 0 is busy ending the run, and will report.
    """

    def __init__(
        self,
        size: int,
        loopback: bool,
        remedy: Callable[[], str] = start_again,
        fate: Callable[[int], int | None] = lambda rank: None,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self.size = size
        self.token = secrets.token_hex()
        self._remedy, self._fate, self._is_ending = remedy, fate, is_ending
        if loopback or not socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("127.0.0.1" if loopback else "", 0))
        else:
            self._listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port: int = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._members: dict[int, socket.socket] = {}
        self._reports: dict[int, tuple[int, str | None]] = {}
        self._done: set[int] = set()
        self._verdict: dict[str, int] | None = None
        threading.Thread(target=self._accept, name="ranks-hub", daemon=True).start()

    def close(self) -> None:
        """Takes in nobody any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing alone does not
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection = self._listener.accept()[0]
                threading.Thread(target=self._hear, args=(connection,), name="ranks-hub", daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        """Hears a connection to its end."""
        rank = None
        with connection, contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a stranger may say anything
            keep_alive(connection)
            stream = connection.makefile(encoding="utf-8")
            hello = json.loads(stream.readline(1000))
            if not secrets.compare_digest(hello["token"], self.token):
                return
            rank = hello["rank"]
            self._join(rank, connection)
            for line in stream:
                self._take(rank, **json.loads(line))
        if rank is not None:
            self._lose(rank)

    def _join(self, rank: int, connection: socket.socket) -> None:
        with self._changed:
            self._members[rank] = connection
            if len(self._members) == self.size:
                self.close()

    def _take(self, rank: int, status: int, line: str | None) -> None:
        """Takes a rank's report."""
        with self._changed:
            if status:
                self._reports[rank] = status, line
                self._changed.notify_all()
                if len(self._reports) == 1:  # the thread of the first decides
                    self._decide(rank)
            else:
                self._done.add(rank)
                if len(self._done) == self.size:
                    self._judge(rank, 0, None)

    def _decide(self, rank: int) -> None:
        """Waits whether others have failed, too, and passes judgement."""
        self._changed.wait_for(self._is_said, QUIET)
        while self._is_ending() and not self._is_said():
            self._changed.wait(1)
        of_all = self._changed.wait_for(lambda: len(self._reports) == self.size, TOGETHER)
        spoken = [each for each, (_, line) in self._reports.items() if line]
        rank = min(spoken, default=rank) if of_all else next(iter(spoken), rank)
        status, line = self._reports[rank]
        if not of_all and (line or rank):  # rank 0 may well say nothing
            line = f"rank {rank}: {line or f'ended with status {status}'}"
        self._judge(rank, status, line)

    def _is_said(self) -> bool:
        return 0 in self._reports or any(line for _, line in self._reports.values())

    def _lose(self, rank: int) -> None:
        """Passes judgement if a rank has ended without a word."""
        with self._changed:
            if self._verdict or rank in self._reports or rank in self._done:
                return
        what, status = of_killed(rank, self._fate(rank))
        with self._changed:
            self._judge(rank, status, f"{what}: {self._remedy()}")

    def _judge(self, rank: int, status: int, line: str | None) -> None:
        if self._verdict is not None:
            return
        self._verdict = {"status": status, "rank": rank}
        if line:
            say(line)
        for each in sorted(self._members, reverse=True):  # this process may end as soon as it knows, so it is the last
            send(self._members[each], self._verdict)


def keep_alive(connection: socket.socket) -> None:
    """Has the kernel notice a machine at the other end that is gone."""
    for name, value in KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has all
            connection.setsockopt(socket.SOL_SOCKET if name[:2] == "SO" else socket.IPPROTO_TCP, option, value)


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Sends a message, a line of JSON."""
    with contextlib.suppress(OSError):  # who is gone is noticed by who hears
        connection.sendall((json.dumps(message) + "\n").encode())

"""The command line in real processes, which signals reach, without a wait for imports.

A server process imports torch and Lightning once; each run is a fork of it, with a session, a folder, an environment
and files for its output of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from support import Result

from cifar_resnets.__main__ import main

_server = multiprocessing.get_context("forkserver")
# what a command imports late is there, too: a process of another user may not be allowed to read it
_LATE = ["cifar_resnets.reports.page", "tensorboard.compat.proto.event_pb2", "torch.utils.tensorboard.summary"]
_LATE += ["tensorboard.plugins.hparams.plugin_data_pb2", "sklearn.datasets", "sklearn.metrics", "importlib.readers"]
_LATE += ["matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "PIL.JpegImagePlugin"]
_server.set_forkserver_preload(["cifar_resnets.cli.train", "tensorboard.compat", *_LATE])


class Process:
    """A command line that runs.

    Args:
        args: of the command line.
        cwd: folder that it runs in.
        env: more variables of its environment; None takes one out.
        uid: of the user that it runs as, if it is not to be this one.
        before: called in the process before the command line, to inject a fault; a function of a module that is no
            test's, which the process could not import.
    """

    def __init__(
        self,
        *args: str,
        cwd: Path,
        env: Mapping[str, str | None] | None = None,
        uid: int | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        number = sum(1 for _ in cwd.glob(".out-*"))
        self._out, self._err = cwd / f".out-{number}", cwd / f".err-{number}"
        for path in (self._out, self._err):
            path.touch()
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        kept = {name: value for name, value in variables.items() if value is not None}
        self._process = _server.Process(
            target=_run, args=(args, str(cwd), kept, uid, str(self._out), str(self._err), before)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it has printed to stderr so far."""
        return self._err.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def signal(self, signum: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, signum)

    def wait_for(self, condition: Callable[[], object], timeout: float = 120) -> None:
        """Waits until a condition holds.

        Raises:
            AssertionError: when it has not after `timeout` seconds, or the process has ended before.
        """
        end = time.monotonic() + timeout
        while not condition():
            assert self.is_alive, f"ended with {self._process.exitcode}: {self.out}{self.err}"
            assert time.monotonic() < end, f"still waiting: {self.out}{self.err}"
            time.sleep(0.005)

    def wait(self, timeout: float = 300) -> Result:
        """Waits for its end; its status is as a shell shows it, 128 + n for signal n.

        Raises:
            AssertionError: when it has not ended after `timeout` seconds; it is killed then.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill_session()
            self._process.join()
            raise AssertionError(f"no end after {timeout} s: {self.out}{self.err}")
        status = self._process.exitcode
        return Result(128 - status if status < 0 else status, self.out, self.err)

    def kill_session(self) -> None:
        """Kills it and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def run(
    *args: str,
    cwd: Path,
    env: Mapping[str, str | None] | None = None,
    uid: int | None = None,
    before: Callable[[], object] | None = None,
) -> Result:
    """Runs a command line to its end; see `Process`."""
    return Process(*args, cwd=cwd, env=env, uid=uid, before=before).wait()


def _run(
    args: tuple[str, ...],
    cwd: str,
    env: dict[str, str],
    uid: int | None,
    out: str,
    err: str,
    before: Callable[[], object] | None,
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream.fileno())
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["cifar-resnets", *args]
    import torch

    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))  # libgomp has read its variable long ago
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    if before is not None:
        before()
    main(args)

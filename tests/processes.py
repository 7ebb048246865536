"""The command line in real processes, which signals reach, without a wait for imports.

A server process imports torch and Lightning once; each run is a fork of it, with a session, a folder, an environment
and files for its output of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from support import Result, free_port

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


def run_two_ranks(*args: str, cwd: Path) -> None:
    """Runs a command line on two ranks to their end, as if another program had started them.

    They leave what other launchers' ranks do, and have nothing to import. After `ddp_fork`, the test of a fit is logged
    at step 0.
    """
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    ranks = [Process(*args, *two, cwd=cwd, env={**env, "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for result in [rank.wait() for rank in ranks]:
        assert (result.status, result.err) == (0, ""), result


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
    _take_over(cwd, env, out, err)
    sys.argv = ["cifar-resnets", *args]
    # as with `python -m cifar_resnets`: Lightning starts other ranks by the name of this module
    sys.modules["__main__"] = sys.modules["cifar_resnets.__main__"]
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    if before is not None:
        before()
    main(args)


def _take_over(cwd: str, env: Mapping[str, str], out: str, err: str) -> None:
    """Gives this process a folder, an environment, and files for its output."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream.fileno())
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only.rank = int(env.get("LOCAL_RANK", 0))  # which Lightning takes from the environment as it is imported
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))  # libgomp has read its variable long ago


# An interpreter for shell scripts.

_CLIENT = """
import os, sys
from multiprocessing.connection import Client
with Client(sys.argv[1], "AF_UNIX") as server:
    server.send((sys.argv[2:], os.getcwd(), dict(os.environ)))
    status, out, err = server.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


@contextlib.contextmanager
def interpreter() -> Iterator[Path]:
    """A command that takes `-m MODULE`, `-c CODE` or FILE with arguments, as python does, until the end of the block.

    What it runs is a fork of the server, and prints at its end.
    """
    with tempfile.TemporaryDirectory(prefix="python-") as name:  # the name of a socket must be short
        address, client, command = (Path(name) / each for each in ("socket", "client.py", "python"))
        client.write_text(_CLIENT)
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "{address}" "$@"\n')
        command.chmod(0o755)
        with Listener(str(address), "AF_UNIX") as listener:
            thread = threading.Thread(target=_accept, args=(listener, Path(name)))
            thread.start()
            try:
                yield command
            finally:
                with Client(str(address), "AF_UNIX") as last:
                    last.send(None)
                thread.join()


def _accept(listener: Listener, folder: Path) -> None:
    """Answers one program after the other, or several at once, until one is None."""
    threads: list[threading.Thread] = []
    lock = threading.Lock()  # processes of one parent are started and asked for their status one at a time
    while True:
        connection = listener.accept()
        if (program := connection.recv()) is None:
            break
        files = [folder / f"{stream}-{len(threads)}" for stream in ("out", "err")]
        threads.append(threading.Thread(target=_answer, args=(connection, program, files, lock)))
        threads[-1].start()
    connection.close()
    for thread in threads:
        thread.join()


def _answer(connection: Connection, program: Any, files: list[Path], lock: threading.Lock) -> None:
    args, cwd, env = program
    for path in files:
        path.touch()
    with lock:
        process = _server.Process(target=_run_program, args=(args, cwd, env, *map(str, files)))
        process.start()
    status = None
    while status is None:
        time.sleep(0.02)
        with lock:
            status = process.exitcode
    with connection:
        connection.send((status % 256, *(path.read_text() for path in files)))


def _run_program(args: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    _take_over(cwd, env, out, err)
    kind, rest = args[0], args[1:]
    sys.path.insert(0, cwd if kind in ("-m", "-c") else str(Path(cwd, kind).parent))
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = args
        runpy.run_path(kind, run_name="__main__")

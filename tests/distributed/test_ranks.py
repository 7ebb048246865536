"""A process as one of several ranks: how it ends when another does."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cifar_resnets.distributed import ranks
from cifar_resnets.distributed.hub import Hub
from cifar_resnets.distributed.ranks import PARENT, RANKS, Link, one_word
from cifar_resnets.errors import output_error

# a rank whose main thread hangs, as in a collective
HANGING = """
import sys, time
from cifar_resnets.distributed.ranks import RANKS, Link, one_word
with one_word():
    RANKS.join(Link(("127.0.0.1", int(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
    print("connected", flush=True)
    time.sleep(100)
"""
# a process that starts one which minds its parent, as rank 0 does
PARENT_OF_ONE = f"""
import os, subprocess, sys, time
child = "import time; from cifar_resnets.distributed.ranks import one_word\\nwith one_word(): time.sleep(100)"
env = dict(os.environ, {PARENT}=str(os.getpid()), LOCAL_RANK="1")
print(subprocess.Popen([sys.executable, "-c", child], env=env).pid, flush=True)
time.sleep(100)
"""
# a process one of whose children ends at once
LOOKING_AFTER = """
import subprocess, sys, time
from cifar_resnets.distributed.ranks import RANKS, one_word
children = [subprocess.Popen([sys.executable, "-c", code]) for code in ("import time; time.sleep(99)", sys.argv[1])]
print(children[0].pid, flush=True)
with one_word():
    RANKS.look_after(children)
    time.sleep(100)
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    """The first line on stdout."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_for_end(pid: int) -> None:
    end = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def two() -> Iterator[tuple[Link, Link]]:
    """This process as rank 1, and what rank 0 says."""
    hub = Hub(2, loopback=True)
    links = [Link(("127.0.0.1", hub.port), hub.token, rank) for rank in range(2)]
    RANKS.join(links[1])
    yield links[0], links[1]
    if RANKS.link is not None:
        links[0]._socket.sendall(b'{"status": 0, "line": null}\n')
        links[1].report(0)
    for link in links:
        link.close()
    RANKS.leave()


def test_alone_nothing_changes(capfd: pytest.CaptureFixture[str]) -> None:
    with one_word():
        pass
    with pytest.raises(ZeroDivisionError), one_word():
        raise ZeroDivisionError
    with pytest.raises(SystemExit) as stop, one_word():
        raise SystemExit(RANKS.fail("no images", 3))
    assert stop.value.code == 3
    assert capfd.readouterr() == ("", "cifar-resnets: no images\n")


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_a_rank_that_is_not_connected_yet_says_which_it_is(
    variable: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "5")
    assert RANKS.fail("no images", 3) == 3
    assert capfd.readouterr() == ("", "cifar-resnets: rank 5: no images\n")


def test_an_error_of_a_collective_follows_from_another_rank(
    two: tuple[Link, Link], capfd: pytest.CaptureFixture[str]
) -> None:
    two[0]._socket.sendall(b'{"status": 3, "line": "no images"}\n')
    with pytest.raises(SystemExit) as stop, one_word():
        raise RuntimeError("Connection closed by peer")
    assert stop.value.code == 3
    assert capfd.readouterr() == ("", "cifar-resnets: rank 0: no images\n")
    assert RANKS.link is None


def test_it_can_be_shown(two: tuple[Link, Link], capfd: pytest.CaptureFixture[str]) -> None:
    two[0]._socket.sendall(b'{"status": 3, "line": "no images"}\n')
    with pytest.raises(SystemExit), one_word(debug=True):
        raise RuntimeError("Connection closed by peer")
    assert "RuntimeError: Connection closed by peer" in capfd.readouterr().err


def test_an_error_of_its_own_is_shown_and_told_to_the_others(
    two: tuple[Link, Link], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), one_word():
        raise ZeroDivisionError("division by zero")
    assert (two[0].report(0), two[0].first) == (1, 1)
    assert capfd.readouterr() == ("", "cifar-resnets: rank 1: ZeroDivisionError: division by zero\n")


def test_the_status_of_an_end_is_that_of_all(two: tuple[Link, Link], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, one_word():
        raise SystemExit(RANKS.fail("no images", 3))
    assert (stop.value.code, two[0].report(0)) == (3, 3)
    assert capfd.readouterr() == ("", "cifar-resnets: rank 1: no images\n")


def test_who_is_done_waits_for_the_others(two: tuple[Link, Link], capfd: pytest.CaptureFixture[str]) -> None:
    two[0]._socket.sendall(b'{"status": 6, "line": "disk full"}\n')
    with pytest.raises(SystemExit) as stop, one_word():
        pass
    assert stop.value.code == 6


@pytest.mark.parametrize(("rank", "line"), [(1, "cifar-resnets: rank 0 was killed: start again\n"), (2, "")])
def test_a_process_that_hangs_is_ended_when_rank_0_is_gone(rank: int, line: str) -> None:
    hub = Hub(3, loopback=True)
    process = start(HANGING, hub.port, hub.token, rank)
    assert said(process) == "connected"
    hub._members[rank].shutdown(2)  # what the kernel does with a dead process' connections
    assert process.wait(20) == 137
    assert process.communicate()[1] == line
    hub.close()


def test_a_process_that_is_stopped_is_not_dead(capfd: pytest.CaptureFixture[str]) -> None:
    hub = Hub(2, loopback=True)
    here = Link(("127.0.0.1", hub.port), hub.token, 0)
    process = start(HANGING, hub.port, hub.token, 1)
    assert said(process) == "connected"
    process.send_signal(signal.SIGSTOP)
    assert not here.is_decided(2)
    process.kill()
    assert here.is_decided(5)
    assert capfd.readouterr() == ("", "cifar-resnets: rank 1 was killed: start again\n")
    here.close()
    process.communicate()


def test_no_rank_outlives_the_process_that_has_started_it() -> None:
    parent = start(PARENT_OF_ONE)
    child = int(said(parent))
    parent.kill()
    assert parent.communicate(timeout=10)[1] == "cifar-resnets: rank 0 was killed before the start: start again\n"
    wait_for_end(child)


@pytest.mark.parametrize(
    ("end", "status", "line"),
    [
        ("import os; os.kill(os.getpid(), 9)", 137, "cifar-resnets: rank 2 was killed (signal 9) before the start"),
        ("raise SystemExit(3)", 3, ""),  # it has said why
    ],
)
def test_a_rank_that_ends_before_all_are_connected(end: str, status: int, line: str) -> None:
    process = start(LOOKING_AFTER, end)
    other = int(said(process))
    assert process.wait(20) == status
    assert process.communicate()[1].startswith(line)
    end_of_wait = time.monotonic() + 5  # a kill takes a moment
    while is_alive(other):
        assert time.monotonic() < end_of_wait
        time.sleep(0.01)


def test_a_fork_is_not_the_rank_that_it_is_a_fork_of(two: tuple[Link, Link]) -> None:
    assert RANKS.link is two[1]
    if (pid := os.fork()) == 0:
        os._exit(0 if RANKS.link is None else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("number", "line"),
    [(errno.ENOSPC, "last.ckpt: No space left on device"), (errno.EROFS, "last.ckpt: Read-only file system")],
)
def test_what_cannot_be_written_is_the_user_s_to_mend(number: int, line: str) -> None:
    assert str(output_error(OSError(number, os.strerror(number), "last.ckpt"))) == line
    assert output_error(ConnectionResetError(errno.ECONNRESET, "of another rank")) is None


def test_fate_is_that_of_children_alone() -> None:
    assert ranks.Ranks().fate(1) is None

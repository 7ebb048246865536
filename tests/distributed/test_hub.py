"""What rank 0 makes of what it hears."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cifar_resnets.distributed.hub import Hub, of_killed, say, start_again


class Rank:
    """What a rank says and hears, as bytes."""

    def __init__(self, hub: Hub, rank: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", hub.port))
        self.connection.settimeout(20)
        self.say(token=hub.token, rank=rank)

    def say(self, **message: object) -> None:
        self.connection.sendall((json.dumps(message) + "\n").encode())

    def hear(self) -> object:
        return json.loads(self.connection.makefile().readline())


Ranks = Callable[..., list[Rank]]


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    """Connects so many ranks to a hub."""
    found: list[Rank] = []

    def connect(number: int, **hub: object) -> list[Rank]:
        made = Hub(number, loopback=True, **hub)  # type: ignore[arg-type]
        found.extend(Rank(made, rank) for rank in range(number))
        assert wait_until(lambda: len(made._members) == number)
        return found

    yield connect
    for rank in found:
        rank.connection.close()
    assert wait_until(lambda: not hub_threads()), hub_threads()


def hub_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ranks-")]


def wait_until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(
    ("fate", "words", "status"),
    [
        (-9, "rank 1 was killed (signal 9)", 137),
        (-11, "rank 1 was killed (signal 11)", 139),
        (None, "rank 1 was killed", 137),
        (3, "rank 1 ended without a word (status 3)", 3),
        (0, "rank 1 ended without a word (status 0)", 1),
    ],
)
def test_words_for_a_rank_that_was_killed(fate: int | None, words: str, status: int) -> None:
    assert of_killed(1, fate) == (words, status)


def test_a_line_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    say("several\nlines  of it")
    assert capfd.readouterr() == ("", "cifar-resnets: several lines of it\n")
    assert start_again() == "start again"


def test_all_done(ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = ranks(2)
    second.say(status=0, line=None)
    second.connection.settimeout(0.3)
    with pytest.raises(TimeoutError):  # they end together
        second.hear()
    second.connection.settimeout(10)
    first.say(status=0, line=None)
    assert [each.hear() for each in (first, second)] == [{"status": 0, "rank": 0}] * 2
    assert capfd.readouterr() == ("", "")


def test_one_fails(ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    three = ranks(3)
    three[0].say(status=0, line=None)
    three[1].say(status=3, line="no images")
    assert [each.hear() for each in three] == [{"status": 3, "rank": 1}] * 3
    assert capfd.readouterr() == ("", "cifar-resnets: rank 1: no images\n")


def test_what_all_report_is_not_the_fault_of_one(ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    two = ranks(2)
    two[1].say(status=3, line="no images in /data")
    two[0].say(status=3, line="no images in /data")
    assert [each.hear() for each in two] == [{"status": 3, "rank": 0}] * 2
    assert capfd.readouterr() == ("", "cifar-resnets: no images in /data\n")


def test_one_is_killed(ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    three = ranks(3, remedy=lambda: "go on with last.ckpt", fate={2: -9}.get)
    three[2].connection.close()
    assert [each.hear() for each in three[:2]] == [{"status": 137, "rank": 2}] * 2
    assert capfd.readouterr() == ("", "cifar-resnets: rank 2 was killed (signal 9): go on with last.ckpt\n")


def test_the_first_verdict_stands(ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    three = ranks(3)
    three[2].connection.close()
    assert three[0].hear() == {"status": 137, "rank": 2}
    three[0].say(status=1, line="RuntimeError: Connection closed by peer")
    three[1].connection.close()
    time.sleep(0.2)
    assert capfd.readouterr() == ("", "cifar-resnets: rank 2 was killed: start again\n")


def test_a_rank_that_was_done_may_go(ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    two = ranks(2)
    two[1].say(status=0, line=None)
    two[1].connection.close()
    time.sleep(0.2)
    two[0].say(status=0, line=None)
    assert two[0].hear() == {"status": 0, "rank": 0}
    assert capfd.readouterr() == ("", "")


def test_a_rank_without_a_line_leaves_the_word_to_another(ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    """As with a signal: rank 0 requeues the job, and says so, while the others have nothing to say."""
    is_ending = threading.Event()
    two = ranks(2, is_ending=is_ending.is_set)
    is_ending.set()
    two[1].say(status=143, line=None)
    time.sleep(1.5)  # longer than ranks have to report together
    two[0].say(status=75, line="stopped and requeued")
    assert [each.hear() for each in two] == [{"status": 75, "rank": 0}] * 2
    assert capfd.readouterr() == ("", "cifar-resnets: stopped and requeued\n")


def test_rank_0_may_say_nothing(ranks: Ranks, capfd: pytest.CaptureFixture[str]) -> None:
    two = ranks(2)
    two[0].say(status=141, line=None)  # its reader, such as `head`, has enough
    assert two[1].hear() == {"status": 141, "rank": 0}
    assert capfd.readouterr() == ("", "")


def test_strangers_do_not_count(capfd: pytest.CaptureFixture[str]) -> None:
    hub = Hub(2, loopback=True)
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"[]\n", b'{"token": "?", "rank": 1}\n', b""):
        with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
            stranger.sendall(said)
    two = [Rank(hub, rank) for rank in range(2)]
    for each in two:
        each.say(status=0, line=None)
    assert two[0].hear() == two[1].hear()
    assert capfd.readouterr() == ("", "")


def test_nobody_can_connect_once_all_are_there() -> None:
    hub = Hub(1, loopback=True)
    rank = Rank(hub, 0)
    assert wait_until(lambda: len(hub._members) == 1)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", hub.port))
    rank.connection.close()


def test_many_machines_reach_it_by_any_address() -> None:
    hub = Hub(1, loopback=False)
    with socket.create_connection((socket.gethostname(), hub.port)) as connection:
        connection.sendall((json.dumps({"token": hub.token, "rank": 0}) + '\n{"status": 0, "line": null}\n').encode())
        assert json.loads(connection.makefile().readline()) == {"status": 0, "rank": 0}

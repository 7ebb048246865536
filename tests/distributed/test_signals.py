"""Signals to this process, by its own hand."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import signal
import time
from collections.abc import Iterator

import pytest

from cifar_resnets.distributed.signals import SIGNALS, Signals, Stopped, stop_forks


@pytest.fixture
def signals() -> Iterator[Signals]:
    own = Signals()
    with own.installed():
        yield own


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_at_once_unless_deferred(signum: int, signals: Signals) -> None:
    with pytest.raises(Stopped) as stop:
        send(signum)
    assert stop.value.signum == signum


@pytest.mark.parametrize("signum", SIGNALS)
def test_deferred_until_released(signum: int, signals: Signals) -> None:
    signals.defer()
    send(signum)
    assert signals.pending == signum
    with pytest.raises(Stopped) as stop:
        signals.release()
    assert stop.value.signum == signum


def test_the_first_signal_counts_but_a_second_ctrl_c_is_meant(signals: Signals) -> None:
    signals.defer()
    send(signal.SIGTERM)
    send(signal.SIGINT)
    send(signal.SIGTERM)
    assert signals.pending == signal.SIGTERM
    signals.pending = 0
    send(signal.SIGINT)
    with pytest.raises(Stopped):
        send(signal.SIGINT)


def test_handlers_that_took_its_place_are_replaced(signals: Signals) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Lightning does when a fit begins
    signals.defer()
    send(signal.SIGTERM)
    assert signals.pending == signal.SIGTERM


def test_a_closed_terminal_does_not_end_what_nohup_has_started() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals().installed():
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_output_to_a_closed_terminal_is_discarded(signals: Signals) -> None:
    signals.defer()
    output = os.dup(1)
    ours, theirs = os.openpty()
    os.dup2(theirs, 1)
    for descriptor in (ours, theirs):
        os.close(descriptor)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            os.write(1, b"lost")
        send(signal.SIGHUP)
        assert os.write(1, b"discarded") == 9
    finally:
        os.dup2(output, 1)
        os.close(output)
    assert signals.pending == signal.SIGHUP


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_within_a_finalizer_is_not_lost(
    signum: int, signals: Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    class Finalized:
        def __del__(self) -> None:  # Python lets no error out of it
            send(signum)
            time.sleep(0)

    with pytest.raises(Stopped) as stop:
        Finalized()
        time.sleep(10)
    assert stop.value.signum == signum
    assert capfd.readouterr().err == ""


def test_other_errors_within_a_finalizer_are_told(signals: Signals, capfd: pytest.CaptureFixture[str]) -> None:
    class Finalized:
        def __del__(self) -> None:
            raise ValueError("of its own")

    Finalized()
    assert "ValueError: of its own" in capfd.readouterr().err


def test_nothing_happens_where_signals_are_ignored(signals: Signals) -> None:
    signals.ignore()
    send(signal.SIGTERM)
    assert signals.pending == 0


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    own = Signals()
    with own.installed():
        assert [signal.getsignal(signum) for signum in SIGNALS] != before
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_no_except_clause_for_errors_catches_it() -> None:
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_process_that_does_not_catch_it_ends_with_the_status_of_the_signal(signum: int) -> None:
    stop = Stopped(signum, "last.ckpt")
    assert isinstance(stop, SystemExit)
    assert (stop.code, stop.signum, stop.checkpoint) == (128 + signum, signum, "last.ckpt")


def test_forks_are_stopped_and_waited_for() -> None:
    assert not stop_forks()
    started = multiprocessing.Event()
    fork = multiprocessing.get_context("fork").Process(target=_wait, args=(started,))
    fork.start()
    assert started.wait(10)
    assert stop_forks()
    assert fork.exitcode == 143
    assert not stop_forks()


def _wait(started: multiprocessing.synchronize.Event) -> None:
    with Signals().installed():
        started.set()
        time.sleep(60)

"""Signals to this process, by its own hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from cifar_resnets.runs.signals import SIGNALS, Signals, Stopped


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

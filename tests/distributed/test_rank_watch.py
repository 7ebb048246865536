"""Ranks of a Trainer that end together; with whole command lines: tests/faults/test_rank_faults.py."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies.launchers import subprocess_script

from cifar_resnets.distributed import rank_watch
from cifar_resnets.distributed.rank_watch import is_ending, remedy, watch
from cifar_resnets.distributed.ranks import PARENT, RANKS
from cifar_resnets.distributed.signals import Signals
from cifar_resnets.errors import DataError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # of BoringModel, and of Python 3.12 about forks of a process with threads
    pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*fork.*:DeprecationWarning"),
]
QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def trainer(strategy: str = "ddp_fork", devices: int = 2, **kwargs: Any) -> pl.Trainer:
    made = pl.Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=devices,
        fast_dev_run=2,
        **{**QUIET, **kwargs},
    )
    watch(made)
    return made


class Failing(BoringModel):
    """Calls a function in one rank, in one of its methods."""

    def __init__(self, name: str, rank: int, function: Callable[[], object]) -> None:
        super().__init__()
        self.where, self.rank, self.function = name, rank, function

    def prepare_data(self) -> None:  # called in rank 0 alone
        if self.where == "prepare_data":
            self.function()

    def on_train_batch_end(self, *args: Any) -> None:
        if self.where == "on_train_batch_end" and self.global_rank == self.rank:
            self.function()


def no_images() -> None:
    raise DataError("no images")


def disk_full() -> None:
    raise PermissionError(13, "Permission denied", "last.ckpt")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ended() -> None:
    os._exit(0)


@pytest.mark.parametrize(
    ("where", "rank", "function", "status", "line"),
    [
        ("on_train_batch_end", 1, no_images, 3, "rank 1: no images"),
        ("on_train_batch_end", 0, disk_full, 6, "rank 0: last.ckpt: Permission denied"),
        ("prepare_data", 0, no_images, 3, "rank 0: no images"),
        ("on_train_batch_end", 1, killed, 137, "rank 1 was killed: start again"),
        ("on_train_batch_end", 0, killed, 137, "rank 0 was killed: start again"),
        ("on_train_batch_end", 1, ended, 137, "rank 1 was killed: start again"),
    ],
)
def test_one_rank_fails(
    where: str,
    rank: int,
    function: Callable[[], object],
    status: int,
    line: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        trainer().fit(Failing(where, rank, function))
    assert stop.value.code == status
    assert capfd.readouterr().err == f"cifar-resnets: {line}\n"


def test_ranks_that_are_done(capfd: pytest.CaptureFixture[str]) -> None:
    done = trainer()
    done.fit(BoringModel())
    done.test(BoringModel(), verbose=False)  # in other processes
    assert capfd.readouterr().err == ""
    assert done.state.status == "finished"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ranks-")]


def test_one_rank_has_nobody_to_watch() -> None:
    alone = trainer("auto", 1)
    assert vars(alone.strategy).keys().isdisjoint({"setup_environment"})
    alone.fit(BoringModel())
    assert RANKS.link is None


def test_ranks_that_cannot_reach_each_other_train_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_watch, "LOOPBACK", "127.0.0.2")  # where nobody listens
    monkeypatch.setattr(rank_watch.logger, "handlers", [logging.StreamHandler()])
    done = trainer()
    done.fit(BoringModel())
    assert done.state.status == "finished"
    assert "rank 1 cannot reach rank 0 ([Errno 111] Connection refused)" in capfd.readouterr().err


def test_lightning_s_observer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Private of Lightning: where it is called, and with what."""
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", subprocess_script._launch_process_observer)
    monkeypatch.setenv(PARENT, "")
    trainer("ddp")
    assert subprocess_script._launch_process_observer == RANKS.look_after
    assert os.environ[PARENT] == str(os.getpid())
    launch = inspect.getsource(subprocess_script._SubprocessScriptLauncher.launch)
    assert "_launch_process_observer(self.procs)" in launch


def test_signals_end_a_process_that_waits_for_others() -> None:
    """Python would take them in when torch has given up, after half an hour."""
    before = signal.getsignal(signal.SIGTERM)
    with rank_watch._ended_by_signals():
        assert {signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)} == {signal.SIG_DFL}
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_that_a_signal_is_ending() -> None:
    signals = Signals()
    with signals.installed():
        assert not is_ending()
        signals.ignore()
        assert is_ending()
    assert not is_ending()


def test_remedy(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    assert remedy([path])() == "start again"
    path.touch()
    assert remedy([path])() == f"the last checkpoint is {path}, start again with --ckpt_path auto"

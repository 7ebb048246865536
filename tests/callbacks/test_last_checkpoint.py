"""When checkpoints are written, in real fits."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.distributed.signals import SIGNALS, SIGNALS_OF_PROCESS, Stopped
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file
from cifar_resnets.runs.checkpoint_io import AtomicCheckpointIO

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
TINY = {"depths": [1], "widths": [8], "stem_width": 8}


class Writes(AtomicCheckpointIO):
    """Notes the steps at which checkpoints are written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.steps.append(checkpoint["global_step"])
        super().save_checkpoint(checkpoint, path, storage_options)


class Sends(pl.Callback):
    """Sends a signal to this process in a hook."""

    def __init__(self, hook: str, signum: int) -> None:
        setattr(self, hook, lambda *args, **kwargs: os.kill(os.getpid(), signum))


def fit(folder: Path, *callbacks: pl.Callback, last: dict[str, Any] | None = None, **more: Any) -> list[int]:
    """Two epochs of five steps, with the handlers of signals that the command line has."""
    with SIGNALS_OF_PROCESS.installed():
        return fit_alone(folder, *callbacks, last=last, **more)


def fit_alone(folder: Path, *callbacks: pl.Callback, last: dict[str, Any] | None = None, **more: Any) -> list[int]:
    """Two epochs of five steps; the steps at which checkpoints were written."""
    writes, data = Writes(), Digits(batch_size=40, num_train=200)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, plugins=[writes],
        callbacks=[*callbacks, LastCheckpoint(**(last or {}), dirpath=str(folder))],
        **{"max_epochs": 2, "num_sanity_val_steps": 0, **more},
    )  # fmt: skip
    trainer.fit(ImageClassifier(data.class_names, "cifar_resnet20", TINY), datamodule=data)
    return writes.steps


@pytest.mark.parametrize(
    ("last", "more", "steps"),
    [
        ({}, {}, [5, 10]),
        ({"every_n_steps": 2}, {}, [2, 4, 5, 6, 8, 10, 10]),
        ({"every_n_steps": 5}, {}, [5, 5, 10, 10]),  # within the epoch, and when it is over
        ({"every_n_minutes": 1e-9}, {"max_epochs": 1}, [1, 2, 3, 4, 5, 5]),
        ({"every_n_minutes": None}, {}, [5, 10]),
        ({"every_n_steps": 1}, {"accumulate_grad_batches": 2, "max_epochs": 1}, [1, 2, 3, 3]),
        ({"every_n_steps": 1}, {"max_steps": 3, "max_epochs": -1}, [1, 2, 3]),
        ({"every_n_steps": 1}, {"fast_dev_run": True}, []),
        ({}, {"limit_val_batches": 0}, [5, 10]),
    ],
)
def test_when(last: dict[str, Any], more: dict[str, Any], steps: list[int], tmp_path: Path) -> None:
    assert fit(tmp_path, last=last, **more) == steps


def test_the_one_before_stays(tmp_path: Path) -> None:
    fit(tmp_path, last={"every_n_steps": 3})
    steps = {path.name: read_checkpoint_file(path)["global_step"] for path in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 10, "previous.ckpt": 9}


def test_without_links_there_is_only_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*args: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", cannot)
    fit(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("hook", "steps"),
    [("on_train_batch_start", [1]), ("on_validation_start", [5]), ("on_train_epoch_end", [5])],
)
def test_a_signal_ends_a_step_or_a_validation(hook: str, steps: list[int], tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stop:
        fit(tmp_path, Sends(hook, signal.SIGTERM))
    assert (stop.value.signum, stop.value.checkpoint) == (signal.SIGTERM, str(tmp_path / "last.ckpt"))
    assert read_checkpoint_file(tmp_path / "last.ckpt")["global_step"] == steps[0]


def test_a_signal_waits_until_gradients_are_accumulated(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(tmp_path, Sends("on_train_batch_start", signal.SIGUSR1), accumulate_grad_batches=4)
    progress = read_checkpoint_file(tmp_path / "last.ckpt")["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["current"]["ready"] == 4


def test_a_fit_after_one_that_was_stopped_goes_on_to_its_end(tmp_path: Path) -> None:
    with SIGNALS_OF_PROCESS.installed():
        with pytest.raises(Stopped):
            fit_alone(tmp_path / "stopped", Sends("on_train_batch_start", signal.SIGTERM))
        assert fit_alone(tmp_path / "next") == [5, 10]


@pytest.mark.parametrize("others", [[], [Sends("on_train_batch_start", signal.SIGINT)]])
def test_a_fit_from_python_puts_the_handlers_back(others: list[pl.Callback], tmp_path: Path) -> None:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    with pytest.raises(Stopped) if others else contextlib.nullcontext():
        fit_alone(tmp_path, *others)
    assert (tmp_path / "last.ckpt").exists()
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before


@pytest.mark.parametrize("values", [{"every_n_steps": 0}, {"every_n_minutes": 0.0}, {"every_n_minutes": -1.0}])
def test_values_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"last_checkpoint.{next(iter(values))}"):
        LastCheckpoint(**values)

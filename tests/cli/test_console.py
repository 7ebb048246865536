"""What reaches the user: our own lines on stdout, and no warning that he cannot act on."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader

from cifar_resnets.cli.console import EXPECTED_WARNINGS, errors_of_threads, set_up_messages

LINES = """
import logging
from cifar_resnets.cli.console import set_up_messages
set_up_messages()
set_up_messages()
logging.getLogger("cifar_resnets.data.cifar").info("%d images", 3)
logging.getLogger("cifar_resnets.data.cifar").debug("hidden")
logging.getLogger("lightning.pytorch.utilities.rank_zero").info("hidden")
logging.getLogger("lightning.fabric").info("hidden")
logging.getLogger("lightning.pytorch").warning("shown")
"""
# as Lightning 2.6 and CSVLogger word them
EXPECTED = [
    "The `srun` command is available on your system but is not used. HINT: If your intention is to run Lightning on "
    "SLURM, prepend your python command with `srun` like so: srun python3 cifar-resnets fit ...",
    "You're using the WeightAveraging callback, but loading a checkpoint outside the 'fit' stage. The WeightAveraging "
    "state cannot be restored. If you're using the checkpoint for prediction or testing, you can ignore this warning.",
    "The number of training batches (5) is smaller than the logging interval Trainer(log_every_n_steps=50).",
    "Experiment logs directory logs/tiny/version_0 exists and is not empty. Previous log files in this directory "
    "will be deleted when the new ones are saved!",
    "The dirpath has changed from 'logs/a/checkpoints' to 'logs/b/checkpoints', therefore `best_model_score` ...",
    "Checkpoint directory logs/tiny/version_0/checkpoints exists and is not empty.",
    "It is recommended to use `self.log('val/acc', ..., sync_dist=True)` when logging on epoch level in distributed "
    "setting to accumulate the metric across devices.",
    "Total length of `list` across ranks is zero. Please make sure this was your intention.",
    "Couldn't infer the batch indices fetched from your dataloader: `None`",
    "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec) and treespec.is_leaf()`",
    "`ModelCheckpoint(monitor='val/f1_macro')` could not find the monitored key in the returned metrics: ['epoch']. "
    "HINT: Did you call `log('val/f1_macro', value)` in the `LightningModule`?",
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be provided during "
    "`Trainer` instantiation. Please add the following callbacks: ['Misclassified'].",
    "`.fit(ckpt_path=None)` was called without a model. The last model of the previous `fit` call will be used.",
    '.fit(ckpt_path="last") is set, but there is no last checkpoint available. No checkpoint will be loaded.',
    "You requested to overfit but enabled train dataloader shuffling. We are turning off the train dataloader "
    "shuffling for you.",
]


NAMES = ("cifar_resnets", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.profilers")


@pytest.fixture
def set_up() -> Iterator[None]:
    """Sets up for one test, with pytest's own filters put aside: a warning that is not silenced is an error."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(each, each.handlers, each.level, each.propagate) for each in loggers]
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        set_up_messages()
        yield
    for each, handlers, level, propagate in before:
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


@pytest.mark.process
def test_our_lines_are_on_stdout_and_what_lightning_tells_everyone_nowhere() -> None:
    done = subprocess.run([sys.executable, "-c", LINES], capture_output=True, text=True, check=True)
    assert done.stdout == "3 images\n"  # once, although it was set up twice
    assert done.stderr == "shown\n"


@pytest.mark.usefixtures("set_up")
def test_the_report_of_a_profiler_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    profiler = SimpleProfiler()  # without a file
    with profiler.profile("a step"):
        pass
    profiler.describe()
    out, err = capsys.readouterr()
    assert "a step" in out and err == ""


@pytest.mark.usefixtures("set_up")
@pytest.mark.parametrize("message", EXPECTED)
@pytest.mark.parametrize("category", [UserWarning, FutureWarning, DeprecationWarning])
def test_expected_warnings_are_silent(message: str, category: type[Warning]) -> None:
    warnings.warn(message, category, stacklevel=1)


def test_every_filter_is_tried() -> None:
    assert len(EXPECTED) == len(EXPECTED_WARNINGS)


@pytest.mark.usefixtures("set_up")
@pytest.mark.parametrize(
    "message",
    [
        "The loss is NaN",
        "data: 3 images are not empty",
        "checkpoint exists",
        "Be aware that when using `ckpt_path`, add the following callbacks: ['EarlyStopping'].",
    ],
)
def test_other_warnings_are_shown(message: str) -> None:
    with pytest.raises(UserWarning, match=re.escape(message)):
        warnings.warn(message, UserWarning, stacklevel=1)


class Line(pl.LightningModule):
    """The smallest thing that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.usefixtures("set_up")
def test_lightning_still_words_them_like_that(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("metrics.csv", "checkpoints/old.ckpt"):
        (tmp_path / name).touch()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    run = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=CSVLogger(tmp_path, name="", version=""), enable_model_summary=False,
        enable_progress_bar=False, callbacks=[ModelCheckpoint(tmp_path / "checkpoints")],
    )  # fmt: skip
    run.fit(Line(), DataLoader(torch.ones(4, 1)))  # with a log that is not empty, and fewer batches than an interval
    assert run.global_step == 4


def test_what_a_thread_cannot_write_is_kept_and_a_bug_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    before = threading.excepthook
    try:
        set_up_messages()
        for error in (OSError(28, "No space left on device"), RuntimeError("a bug")):
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()
        assert [str(each) for each in errors_of_threads] == ["[Errno 28] No space left on device"]
    finally:
        threading.excepthook = before
        errors_of_threads.clear()
    err = capsys.readouterr().err
    assert "a bug" in err
    assert "No space left" not in err

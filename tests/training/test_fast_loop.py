"""The fast loop against Lightning's own: the same hooks in the same order, counters, logged values and weights."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from exactness import RICH, die_when, differences
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import SimpleProfiler
from processes import run
from support import TINY_NETWORK
from test_rank_equality import trainer
from torch.utils.data import DataLoader

from cifar_resnets.callbacks.exact_resume import Continuation
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.digits import Digits
from cifar_resnets.training.fast_loop import HOOKS, FastEpochLoop, listeners
from cifar_resnets.training.schedules import Constant, OneCycle

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


class Diary(pl.Callback):
    """Writes down each hook of a step, with what a listener could see of it."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def note(self, hook: str, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        counters = str(loop.batch_progress), str(loop.scheduler_progress), str(loop.automatic_optimization.state_dict())
        gradients = [None if p.grad is None else p.grad.sum().item() for p in module.parameters()]
        seen = [arg.item() if isinstance(arg, torch.Tensor) else str(arg) for arg in args if not _is_optimizer(arg)]
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.lines.append((hook, trainer.global_step, module._current_fx_name, *counters, gradients, seen, rates))


def _is_optimizer(arg: Any) -> bool:
    return isinstance(arg, torch.optim.Optimizer)


for _hook in (*HOOKS, "on_validation_start"):  # each of them, as a callback of one's own would have it
    setattr(Diary, _hook, lambda self, *args, _hook=_hook: self.note(_hook, *args))


def fit(*callbacks: pl.Callback, fast: bool, ranks: int = 1, cls: type[ImageClassifier] = ImageClassifier,
        ckpt_path: Any = None, **changes: Any) -> pl.Trainer:  # fmt: skip
    """Two epochs of five steps of 8 images, in float64, with dropout, clipping and a validation within the epoch."""
    pl.seed_everything(0, verbose=False)
    augment = Augmentation(crop_padding=2, cutout_size=3)
    data = Digits(batch_size=8, num_train=40, eval_batch_size=16, augment=augment, seed=3)
    network_args = {**TINY_NETWORK, "drop_rate": 0.2}
    module = cls(data.class_names, network_args=network_args, schedule=OneCycle(), lr=0.1, fast=fast)
    settings = {"max_epochs": 2, "precision": "64-true", "val_check_interval": 3, "limit_val_batches": 2,
                "gradient_clip_val": 0.5, **changes}  # fmt: skip
    fitter = trainer(*callbacks, ranks=ranks, **settings)
    fitter.fit(module, data, ckpt_path=ckpt_path)
    return fitter


def weights(fitter: pl.Trainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in fitter.lightning_module.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"max_steps": 7},
        {"gradient_clip_val": None},
        {"gradient_clip_algorithm": "value"},
        {"limit_train_batches": 3, "val_check_interval": 1.0},
        {"precision": "bf16-mixed"},
        {"check_val_every_n_epoch": None},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2, "val_check_interval": 0.5},
        {"limit_val_batches": 0},
    ],
    ids=str,
)
def test_all_that_can_be_seen_of_a_step_and_the_weights_are_the_same(changes: dict[str, Any]) -> None:
    runs = []
    for fast in (False, True):
        diary = Diary()
        fitter = fit(diary, EMAWeightAveraging(decay=0.9), fast=fast, **changes)
        loop = fitter.fit_loop.epoch_loop
        assert isinstance(loop, FastEpochLoop) == fast
        runs.append((diary.lines, weights(fitter), fitter.fit_loop.state_dict(), fitter.global_step))
    ordinary, fast_one = runs
    assert len(ordinary[0]) > 30
    for one, other in zip(ordinary[0], fast_one[0], strict=True):
        assert one == other
    assert_same(ordinary[1], fast_one[1])
    assert ordinary[2:] == fast_one[2:]


def test_most_steps_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    long_way: list[int] = []
    original = _TrainingEpochLoop.advance
    monkeypatch.setattr(_TrainingEpochLoop, "advance", lambda self, *args: (long_way.append(1), original(self, *args)))
    fit(fast=False)
    assert len(long_way) == 10
    long_way.clear()
    fit(fast=True)
    assert long_way == []
    fit(fast=True, profiler=SimpleProfiler())  # which is to see every hook
    assert len(long_way) == 10


def test_only_what_does_something_is_called() -> None:
    quiet, loud = pl.Callback(), LambdaCallback(on_train_batch_end=print)
    by_epoch, by_steps = ModelCheckpoint(), ModelCheckpoint(every_n_train_steps=3)
    by_time = ModelCheckpoint(train_time_interval=timedelta(hours=1))
    fitter = trainer(quiet, loud, by_epoch, by_steps, by_time, ranks=1, enable_checkpointing=True)
    fitter.strategy._lightning_module = pl.LightningModule()
    counts = {hook: len(listeners(fitter, hook)) for hook in HOOKS}
    assert counts == dict.fromkeys(HOOKS, 0) | {"on_train_batch_end": 3}


@pytest.mark.parametrize("fast", [False, True])
def test_a_profiler_sees_every_hook_and_without_one_there_is_no_context(fast: bool) -> None:
    fitter = fit(fast=fast, profiler=SimpleProfiler())
    assert len(fitter.profiler.recorded_durations["[LightningModule]ImageClassifier.on_train_batch_start"]) == 10
    without = fit(fast=fast).profiler
    assert without.profile("a hook") is without.profile("another one")


class Moody(ImageClassifier):
    """Has a say in what a step is."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        super().on_train_batch_start(batch, batch_idx)
        return -1 if (self.current_epoch, batch_idx) == (0, 3) else None  # ends the epoch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class OwnStep(ImageClassifier):
    """Scales the gradients by hand."""

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss * 2, *args, **kwargs)


class OwnClipping(ImageClassifier):
    """Clips in its own way."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, 0.01, "norm")


class LogsSteps(ImageClassifier):
    """Logs in each hook that may."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("inside", float(batch_idx), on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        self.log("after", float(self.global_step))


class OwnOptimizer(ImageClassifier):
    """Has an optimizer that leaves gradients of zero in place of none, and a schedule by the training loss."""

    class Zeroing(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none=False)

    def configure_optimizers(self) -> Any:
        optimizer = self.Zeroing(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, threshold=0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step", "monitor": "inside"}]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("inside", loss)
        return {"loss": loss, "extra": batch_idx}


class Stops(ImageClassifier):
    """Stops within the second epoch, by which an epoch must be over."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.global_step == 7:
            self.trainer.should_stop = True


class Rows(DummyLogger):
    """Keeps what is logged, with its step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, repr(metrics)))  # in which NaN, of a class without images, is equal to itself


@pytest.mark.parametrize("cls", [Moody, OwnStep, OwnClipping, OwnOptimizer, LogsSteps, Stops])
@pytest.mark.filterwarnings("ignore")
def test_modules_of_ones_own(cls: type[ImageClassifier]) -> None:
    changes = {"cls": cls, "gradient_clip_val": None, "min_epochs": 1, "log_every_n_steps": 2}
    rows, diaries = (Rows(), Rows()), (Diary(), Diary())
    ordinary, fast_one = (
        fit(diary, fast=fast, logger=logger, **changes)
        for fast, logger, diary in zip((False, True), rows, diaries, strict=True)
    )
    assert_same(weights(ordinary), weights(fast_one))
    assert diaries[0].lines == diaries[1].lines
    assert ordinary.callback_metrics.keys() == fast_one.callback_metrics.keys()
    for name, value in ordinary.callback_metrics.items():
        torch.testing.assert_close(value, fast_one.callback_metrics[name], rtol=0, atol=0, equal_nan=True)
    assert len(rows[0].rows) > 2 and rows[0].rows == rows[1].rows


class Named(ImageClassifier):
    """Takes batches of several loaders by their names."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch["one"], batch_idx)


class Unsized:
    """A loader without a length, after whose last batch alone its end is known."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


@pytest.mark.parametrize("cls", [Named, ImageClassifier])
@pytest.mark.filterwarnings("ignore")
def test_several_loaders_and_one_without_a_length(cls: type[ImageClassifier]) -> None:
    states = []
    for fast in (False, True):
        pl.seed_everything(0, verbose=False)
        images, labels = torch.randn(12, 3, 8, 8), torch.arange(12) % 10
        batches = [(images[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)]
        one, two = (DataLoader(batches[:num], batch_size=None) for num in (3, 2))  # type: ignore[arg-type]
        module = cls(Digits().class_names, network_args=TINY_NETWORK, schedule=Constant(), fast=fast)
        fitter = trainer(ranks=1, max_steps=5, max_epochs=2)
        fitter.fit(module, {"one": one, "two": two} if cls is Named else Unsized(one))
        states.append((weights(fitter), fitter.fit_loop.state_dict(), fitter.global_step))
    assert states[0][2] == 5
    assert_same(states[0][0], states[1][0])
    assert states[0][1:] == states[1][1:]


@pytest.mark.parametrize("fast", [False, True])
def test_either_loop_goes_on_within_an_epoch_where_the_other_was_left(tmp_path: Path, fast: bool) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(saving, Continuation(), fast=fast, enable_checkpointing=True)
    for step in (2, 3, 7):  # within an epoch, before a validation, within the last epoch
        (path,) = tmp_path.glob(f"step={step}.ckpt")
        assert_same(weights(whole), weights(fit(Continuation(), fast=not fast, ckpt_path=path)))


class Final(pl.Callback):
    """Keeps the weights of each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(trainer.fit_loop.epoch_loop, FastEpochLoop) == pl_module.hparams["fast"]
        torch.save(pl_module.state_dict(), self.folder / f"{pl_module.hparams['fast']}-{trainer.global_rank}.pt")


@pytest.mark.process
def test_two_ranks(tmp_path: Path) -> None:
    for fast in (False, True):
        fit(Final(tmp_path), fast=fast, ranks=2)
    for rank in (0, 1):
        ordinary, fast_one = (torch.load(tmp_path / f"{fast}-{rank}.pt", weights_only=True) for fast in (False, True))
        assert_same(ordinary, fast_one)


def test_a_trainer_gets_its_own_loop_back() -> None:
    fitter = fit(fast=True)
    module = ImageClassifier(Digits().class_names, network_args=TINY_NETWORK)
    fitter.fit_loop.epoch_loop.max_steps = 12
    fitter.fit(module, Digits(batch_size=40, num_train=200))
    assert type(fitter.fit_loop.epoch_loop) is _TrainingEpochLoop
    assert fitter.max_steps == 12


@pytest.mark.process
def test_a_whole_run_leaves_the_same_files(tmp_path: Path) -> None:
    """With range test, weight averaging, early stopping, mixup, stochastic depth and a checkpoint at each step."""
    runs = []
    for fast in (False, True):
        content = yaml.safe_load(RICH) | {"explain": None}
        content["model"]["fast"] = fast
        folder = tmp_path / str(fast)
        folder.mkdir()
        (folder / "r.yaml").write_text(yaml.safe_dump(content))
        before = functools.partial(die_when, _TrainingEpochLoop, "advance", 1, os.abort) if fast else None
        assert run("fit", "-c", "r.yaml", cwd=folder, before=before).status == 0
        runs.append(folder / "logs/rich/version_0")
    found = differences(*runs, checkpoints=("last.ckpt", "best.ckpt", "previous.ckpt"))
    assert [each for each in found if "hyper_parameters" not in each] == []
    assert len(found) == 3  # `fast` itself, in each checkpoint

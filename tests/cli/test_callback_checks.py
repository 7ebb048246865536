"""Lightning's callbacks that contradict what they monitor, or cannot be used here."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
)

from cifar_resnets.callbacks.lr_finder import LRFinder
from cifar_resnets.cli.callback_checks import check_best, check_callbacks
from cifar_resnets.errors import ConfigurationError

KEY = "trainer.callbacks"


class MyStopping(EarlyStopping):
    """A user's own."""


@pytest.mark.parametrize(
    ("cls", "given", "line"),
    [
        (EarlyStopping, {"monitor": "val/acc", "mode": "min"}, "mode of EarlyStopping: min .* give max"),
        (MyStopping, {"monitor": "val/acc", "mode": "min"}, "mode of MyStopping: min .* give max"),
        (EarlyStopping, {"monitor": "val/loss", "mode": "max"}, "mode of EarlyStopping: max .* give min"),
        (ModelCheckpoint, {"monitor": "val/acc", "mode": "min"}, "mode of ModelCheckpoint: min .* give max"),
        (
            ModelCheckpoint,
            {"monitor": None, "mode": "min", "filename": "{val/acc}", "auto_insert_metric_name": True},
            r"filename: \{val/acc\} is not allowed, give auto_insert_metric_name false",
        ),
        (ModelCheckpoint, {"filename": "a/b", "mode": "min"}, "filename: a/b is not allowed, .* dirpath"),
        (
            ModelCheckpoint,
            {"monitor": "val/loss", "mode": "min", "every_n_train_steps": 2},
            "every_n_train_steps: val/loss is of an epoch or a validation",
        ),
        (StochasticWeightAveraging, {"swa_lrs": 0.1}, "not supported: it cannot be resumed exactly, give WeightAver"),
        (ModelPruning, {"pruning_fn": "l1_unstructured"}, "ModelPruning is not supported"),
        (SpikeDetection, {}, "SpikeDetection is not supported"),
        (BackboneFinetuning, {}, "BackboneFinetuning is not supported"),
        (LearningRateFinder, {}, "LearningRateFinder is not supported: .* give LRFinder"),
        (BatchSizeFinder, {}, "BatchSizeFinder is not supported: .* give data.batch_size"),
        (
            GradientAccumulationScheduler,
            {"scheduling": {0: 2}},
            "not supported: .* give trainer.accumulate_grad_batches",
        ),
    ],
)
def test_refused(cls: type, given: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{KEY}.*{line}"):
        check_callbacks([(KEY, LRFinder, {}), (KEY, cls, given)])


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (EarlyStopping, {"monitor": "val/acc", "mode": "max"}),
        (EarlyStopping, {"monitor": "val/loss", "mode": "min"}),
        (EarlyStopping, {"monitor": "lr", "mode": "max"}),
        (ModelCheckpoint, {"monitor": None, "mode": "min", "every_n_train_steps": 2, "filename": "{step}"}),
        (ModelCheckpoint, {"monitor": None, "filename": "{val/acc}", "auto_insert_metric_name": False}),
        (LRFinder, {}),
    ],
)
def test_allowed(cls: type, given: dict[str, Any]) -> None:
    check_callbacks([(KEY, cls, given)])


def test_the_best_checkpoint() -> None:
    check_best({})
    check_best({"monitor": "val/acc", "filename": "{val/acc}", "auto_insert_metric_name": True, "save_last": None})
    for given, key in (
        ({"filename": "../best"}, "filename"),
        ({"monitor": "val/acc", "every_n_train_steps": 2}, "every_n_train_steps"),
        ({"save_last": True}, "save_last"),
    ):
        with pytest.raises(ConfigurationError, match=f"^checkpoint.{key}: "):
            check_best(given)

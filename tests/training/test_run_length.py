"""The length of a run without running it; `test_classifier.py` compares it with the steps that runs take."""

from __future__ import annotations

import itertools
import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from numpy.typing import NDArray

from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.run_length import batch_weight, run_length

IMAGES, BATCH = 100, 8  # of 112, a part validates: 12 full batches
BATCHES = IMAGES // BATCH


class Grey(ImageDataModule):
    """Grey images of two classes."""

    def __init__(self) -> None:
        super().__init__(batch_size=BATCH, num_train=IMAGES, augment=None)

    def source_classes(self) -> list[str]:
        return ["a", "b"]

    def load(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return np.full((130, 4, 4, 3), 128, dtype=np.uint8), np.arange(130) % 2


@pytest.fixture(scope="module")
def data() -> Grey:
    grey = Grey()
    grey.setup("fit")
    return grey


def trainer(data: Grey, **arguments: Any) -> pl.Trainer:
    """A Trainer that is about to fit, without the cost of doing so."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **arguments)
    run.datamodule = data  # type: ignore[attr-defined]  # set by `fit`
    return run


def counted(epochs: float, steps: float, batches: int, accumulated: int) -> int:
    """Optimizer steps of a loop like Lightning's: the last batches of an epoch step even if they are too few."""
    done = 0
    for epoch in itertools.count():
        if epoch >= epochs:
            return done
        for batch in range(1, batches + 1):
            done += batch % accumulated == 0 or batch == batches
            if done >= steps:
                return done
    raise AssertionError


@pytest.mark.parametrize(("epochs", "steps"), [*itertools.product([None, -1, 1, 3], [1, 7, 1000]), (1, -1), (3, -1)])
@pytest.mark.parametrize("limit", [None, 5, 0.5, 1])
@pytest.mark.parametrize("accumulated", [1, 3, 50])
def test_steps_are_those_of_a_loop(data: Grey, epochs: int | None, steps: int, limit: Any, accumulated: int) -> None:
    run = trainer(
        data, max_epochs=epochs, max_steps=steps, limit_train_batches=limit, accumulate_grad_batches=accumulated
    )
    batches = {None: BATCHES, 5: 5, 0.5: BATCHES // 2, 1: 1}[limit]
    ends = (math.inf if end in (None, -1) else end for end in (epochs, steps))
    total = counted(*ends, batches, accumulated)
    assert run_length(run) == (total, counted(1, math.inf, batches, accumulated))


def test_the_whole_of_the_data_is_not_one_batch(data: Grey) -> None:
    assert run_length(trainer(data, max_epochs=1, limit_train_batches=1.0)) == (BATCHES, BATCHES)
    assert run_length(trainer(data, max_epochs=1, limit_train_batches=1)) == (1, 1)


def test_counting_does_not_set_up_loaders(data: Grey) -> None:
    run = trainer(data, max_epochs=2)
    run_length(run)
    assert run.train_dataloader is None


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_schedule_has_a_step_at_least(data: Grey, epochs: int) -> None:
    run = trainer(data, max_epochs=epochs, max_steps=0)
    assert run_length(run) == (1, BATCHES)


@pytest.mark.parametrize("epochs", [None, -1])
def test_a_run_without_an_end_is_refused(data: Grey, epochs: int | None) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer: give max_epochs or max_steps"):
        run_length(trainer(data, max_epochs=epochs))


@pytest.mark.parametrize("limit", [None, 5, 7])
@pytest.mark.parametrize("size", [1, 3, 5, 50])
def test_the_batches_of_each_step_have_weights_whose_mean_is_one(data: Grey, limit: int | None, size: int) -> None:
    run = trainer(data, max_epochs=1, limit_train_batches=limit, accumulate_grad_batches=size)
    batches = limit or BATCHES
    run.fit_loop.max_batches = batches
    weights = [batch_weight(run, batch) for batch in range(batches)]
    for first in range(0, batches, size):  # Lightning divides each loss by the size
        assert sum(weights[first : first + size]) / size == pytest.approx(1)


def test_batches_of_unknown_number_have_equal_weights(data: Grey) -> None:
    run = trainer(data, max_epochs=1, accumulate_grad_batches=3)
    run.fit_loop.max_batches = math.inf
    assert {batch_weight(run, batch) for batch in range(5)} == {1.0}

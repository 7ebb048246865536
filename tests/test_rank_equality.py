"""The same recipe on one rank and on several: the same weights, and each image evaluated once."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from support import PLAIN, TINY_NETWORK, Result
from torch import Tensor

from cifar_resnets.callbacks.lr_finder import LRFinder
from cifar_resnets.callbacks.sync_buffers import AgreeingBuffers
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.data.digits import Digits
from cifar_resnets.distributed.sync_batchnorm import BatchNormSync
from cifar_resnets.training.schedules import OneCycle, Schedule, Step

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]

TOLERANCE = 1e-9
MODEL = ("network", "network_args", "optimizer", "class_weights", "freeze", "unfreeze_epoch")  # keys of the model
FULL = Augmentation(crop_padding=2, cutout_size=3)  # and the flip


def trainer(*callbacks: pl.Callback, ranks: int, **changes: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    # ranks that wait for each other in vain end with an error
    fork = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60))
    strategy = {"strategy": fork} if ranks > 1 else {}
    return pl.Trainer(callbacks=list(callbacks), devices=ranks, **quiet | strategy | changes)


# The weights.


class FinalState(pl.Callback):
    """Keeps weights and buffers of each rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module) -> None:
        assert trainer.global_step == 10
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


def ten_steps(
    folder: Path, ranks: int, schedule: Schedule, synchronised: bool, batch_size: int = 16, **changes: Any
) -> list[dict]:
    """Weights and buffers of each rank after ten steps, in float64."""
    module_changes = {key: changes.pop(key) for key in MODEL if key in changes}
    torch.manual_seed(0)
    arguments = {"network_args": TINY_NETWORK, "schedule": schedule, "lr": 0.1} | module_changes
    module = ImageClassifier(Digits().class_names, **arguments)
    of_data = {"balance": changes.pop("balance", False), "num_train": 5 * batch_size}
    data = Digits(batch_size=batch_size, augment=FULL, seed=3, **of_data)
    arguments = {"sync_batchnorm": True, "plugins": [BatchNormSync()]} if synchronised else {}
    arguments |= {"max_steps": 10, "precision": "64-true", "limit_val_batches": 0}
    run = trainer(*changes.pop("callbacks", []), FinalState(folder), ranks=ranks, **arguments | changes)
    run.fit(module, data)
    return [torch.load(folder / f"{ranks}-{rank}.pt", weights_only=True) for rank in range(ranks)]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two states of the same keys and types."""
    assert [(k, v.dtype) for k, v in one.items()] == [(k, v.dtype) for k, v in other.items()]
    assert {value.dtype for value in one.values()} == {torch.float64, torch.int64}
    return max((value.double() - other[name].double()).abs().max().item() for name, value in one.items())


SCHEDULES = [OneCycle(peak_fraction=0.3), Step(milestones=(0.5, 0.75))]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["one-cycle", "steps"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_synchronise_batch_norm_train_as_one(tmp_path, ranks, schedule):
    (alone,) = ten_steps(tmp_path, 1, schedule, synchronised=True)
    together = ten_steps(tmp_path, ranks, schedule, synchronised=True)
    for state in together:
        assert distance(alone, state) < TOLERANCE
        assert distance(state, together[0]) == 0
    start = ImageClassifier(Digits().class_names, network_args=TINY_NETWORK).double().state_dict()
    assert distance(alone, start) > 0.1  # ten steps went somewhere


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
        {"accumulate_grad_batches": 2, "class_weights": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "balance": True},
        {"network": "test_efficientnet", "network_args": {"drop_path_rate": 0.0}},
        {"network": "cifar_resnet20", "network_args": TINY_NETWORK | {"shortcut": "C"}, "optimizer": "AdamW"},
        {"freeze": "backbone", "unfreeze_epoch": 1},
    ],
    ids=["accumulated and clipped", "weights of the classes", "timm's activated layers", "AdamW", "unfrozen"],
)
def test_so_does_any_other_recipe(tmp_path, changes):
    (alone,) = ten_steps(tmp_path, 1, SCHEDULES[1], synchronised=True, **changes)
    for state in ten_steps(tmp_path, 2, SCHEDULES[1], synchronised=True, **changes):
        assert distance(alone, state) < TOLERANCE


def test_ranks_that_do_not_synchronise_train_otherwise(tmp_path):
    (alone,) = ten_steps(tmp_path, 1, SCHEDULES[0], synchronised=False)
    together = ten_steps(tmp_path, 2, SCHEDULES[0], synchronised=False)
    assert distance(alone, together[0]) > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["one-cycle", "steps"])
def test_one_rank_trains_as_without_the_key(tmp_path, schedule):
    (with_key,) = ten_steps(tmp_path, 1, schedule, synchronised=True)
    (without,) = ten_steps(tmp_path, 1, schedule, synchronised=False)
    assert distance(with_key, without) == 0


def test_a_range_test_finds_on_ranks_what_it_finds_on_one(tmp_path):
    found = []
    for ranks in (1, 2):
        # up to 3: beyond, the losses are chaotic, and differ by more than their last digits; without a logger no file
        finder = LRFinder(num_steps=60, min_lr=1e-3, max_lr=3.0, on_failure="error")
        found.append(ten_steps(tmp_path, ranks, SCHEDULES[0], True, batch_size=40, callbacks=[finder])[0])
    assert distance(*found) < TOLERANCE
    (without,) = ten_steps(tmp_path, 1, SCHEDULES[0], synchronised=True, batch_size=40)
    assert distance(found[0], without) > 1e-3  # a rate was found, and it is another


# The command line.

TEN_STEPS = [
    *("--data.augment.cutout_size", "3", "--trainer.max_epochs", "2", "--trainer.precision", "64-true"),
    *("--trainer.sync_batchnorm", "true"),
]


def test_the_command_line_trains_on_two_ranks_as_on_one(cli: Callable[..., Result], tmp_path: Path) -> None:
    Path("recipe.yaml").write_text(PLAIN)
    for ranks in (1, 2):
        strategy = ("--trainer.devices", str(ranks), "--trainer.strategy", "ddp_fork" if ranks > 1 else "auto")
        result = cli("fit", "-c", "recipe.yaml", "--name", f"on_{ranks}", *TEN_STEPS, *strategy)
        assert result.status == 0, result.err
    one, two = (tmp_path / f"logs/on_{ranks}/version_0" for ranks in (1, 2))
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, two)]
    assert [state["global_step"] for state in states] == [10, 10]
    assert distance(*(state["state_dict"] for state in states)) < TOLERANCE
    figures, other = (json.loads((run / "test.json").read_text()) for run in (one, two))
    assert (figures["classes"], figures["images"]) == (other["classes"], other["images"])
    assert figures["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_a_strategy_that_splits_the_network_is_refused(cli: Callable[..., Result]) -> None:
    Path("recipe.yaml").write_text(PLAIN)
    result = cli("fit", "-c", "recipe.yaml", "--trainer.devices", "2", "--trainer.strategy", "fsdp")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert result.err.startswith("cifar-resnets: trainer") and "fsdp" in result.err


# Each image once.

CLASSES = list("abcdefg")


class Numbered(ImageDataModule):
    """Images that say in their first pixel which one they are."""

    def __init__(self, num_val: int, num_test: int, eval_batch_size: int) -> None:
        plain = {"augment": None, "mean": [0.0] * 3, "std": [1.0] * 3}
        super().__init__(batch_size=12, eval_batch_size=eval_batch_size, val_fraction=num_val / 140, **plain)
        self.num_test = num_test

    def source_classes(self) -> list[str]:
        return CLASSES

    def load(self, split):
        num = self.num_test if split == "test" else 140
        images = np.random.default_rng(7).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = np.arange(num)
        return images, np.arange(num) % 7


class Seen(pl.Callback):
    """Keeps which images each rank has evaluated, and what was counted over all ranks; the newest evaluation counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self.numbers: list[int] = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.numbers += batch[0][:, 0, 0, 0].mul(255).round().int().tolist()

    def on_validation_end(self, trainer, pl_module) -> None:
        stage = "test" if trainer.testing else "val"
        counted = int(pl_module.evaluations[stage].confusion.sum())
        found = {"numbers": self.numbers, "counted": counted}
        (self.folder / f"{stage}-{trainer.global_rank}.json").write_text(json.dumps(found))

    on_test_epoch_start, on_test_batch_end = on_validation_epoch_start, on_validation_batch_end
    on_test_end = on_validation_end


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("function", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("num_val", "num_test", "eval_batch_size"), [(10, 37, 8), (7, 5, 100), (13, 3, 2)], ids=["many", "few", "tiny"]
)
def test_each_image_is_evaluated_once(tmp_path, function, ranks, num_val, num_test, eval_batch_size):
    module = ImageClassifier(CLASSES, network_args=TINY_NETWORK)
    run = trainer(AgreeingBuffers(), Seen(tmp_path), ranks=ranks, max_epochs=1)
    quiet = {} if function == "fit" else {"verbose": False}
    data = Numbered(num_val, num_test, eval_batch_size)
    getattr(run, function)(module, data, **quiet)
    stage, num = ("test", num_test) if function == "test" else ("val", num_val)
    found = [json.loads((tmp_path / f"{stage}-{rank}.json").read_text()) for rank in range(ranks)]
    numbers = sorted(number for rank in found for number in rank["numbers"])
    assert len(set(numbers)) == len(numbers) == num
    assert [rank["counted"] for rank in found] == [num] * ranks
    assert stage == "val" or numbers == list(range(num))

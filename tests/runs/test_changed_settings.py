"""The table of settings, and those of a resumed run against an optimizer that was used with them from the start."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.cifar import CIFAR10
from cifar_resnets.data.digits import Digits
from cifar_resnets.data.image_folder import ImageFolder
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs import changed_settings as table
from cifar_resnets.runs.changed_settings import Change, changed_settings, check_resumable, put_settings
from cifar_resnets.support.signature import parameters_of
from cifar_resnets.training.optimizers import build_optimizer
from cifar_resnets.training.schedules import Cosine, OneCycle, Schedule, Step

SETTINGS: dict[str, Any] = {
    "model.optimizer": "SGD",
    "model.lr": 0.1,
    "model.norm_bias_scale": 1.0,
    "model.schedule": {"class_path": "a.Cosine", "init_args": {"warmup_epochs": 0.0}},
    "model.network_args": {"depths": [1]},
    "data.augment": {"flip": True, "cutout_size": 0},
    "data.split_seed": 0,
    "data.batch_size": 40,
    "data.eval_batch_size": 500,
    "seed_everything": 0,
}
DOCUMENT = Path(__file__).parents[2] / "docs/resume.md"


def build(schedule: Schedule, lr: float, steps: int, name: str = "SGD") -> tuple[Any, Any]:
    torch.manual_seed(0)
    optimizer = build_optimizer(nn.Linear(3, 2), name, lr, 5e-4)
    return optimizer, schedule.build(optimizer, steps, 10, lr=lr)


def train(optimizer: Any, scheduler: Any, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def checkpoint_of(optimizer: Any, scheduler: Any) -> dict[str, Any]:
    return {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()]}


# The table.


def test_the_table_has_every_key_of_model_and_data() -> None:
    keys = {f"model.{name}" for name in parameters_of(ImageClassifier)}
    keys |= {f"data.{name}" for source in (CIFAR10, Digits, ImageFolder) for name in parameters_of(source)}
    assert keys - {"data.seed"} - table.KIND.keys() == set()  # the seed is `seed_everything`


def test_the_table_has_every_key_of_the_trainer() -> None:
    keys = {f"trainer.{name}" for name in inspect.signature(pl.Trainer.__init__).parameters if name != "self"}
    assert keys == {key for key in table.KIND if key.startswith("trainer.")}


def test_each_key_is_in_the_table_once() -> None:
    names = [name for names in table.SETTINGS.values() for name in names.split()]
    assert len(names) == len(set(names))


def test_the_documentation_shows_the_table() -> None:
    text = DOCUMENT.read_text().partition("## Settings that have changed")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (`.+`) \|$", text, re.MULTILINE)
    assert {kind: set(re.findall("`(.+?)`", names)) for kind, names in rows} == {
        kind: set(names.split()) for kind, names in table.SETTINGS.items()
    }


def test_a_trainer_says_all_that_is_compared() -> None:
    plain = table.trainer_settings(pl.Trainer(accelerator="cpu", logger=False))
    assert {key for key in table.KIND if key.startswith("trainer.") and table.KIND[key] in table._COMPARED} == set(
        plain
    )
    other = pl.Trainer(
        accelerator="cpu",
        logger=False,
        precision="bf16-mixed",
        gradient_clip_val=0.5,
        gradient_clip_algorithm="value",
        accumulate_grad_batches=2,
        limit_train_batches=3,
        sync_batchnorm=True,
    )
    assert {change.text for change in changed_settings(plain, table.trainer_settings(other))} == {
        "trainer.precision 32-true -> bf16-mixed",
        "trainer.gradient_clip_val None -> 0.5",
        "trainer.gradient_clip_algorithm None -> value",
        "trainer.accumulate_grad_batches 1 -> 2",
        "trainer.limit_train_batches 1.0 -> 3",
        "trainer.sync_batchnorm False -> True",
    }


# What has changed.


def changed(**values: Any) -> list[str]:
    now = {**SETTINGS, **{key.replace("__", "."): value for key, value in values.items()}}
    return [change.text for change in changed_settings(SETTINGS, now)]


def test_what_is_the_same_is_not_named() -> None:
    assert changed() == changed(data__eval_batch_size=7) == []


def test_what_an_older_checkpoint_does_not_know_has_not_changed() -> None:
    older = {name: value for name, value in SETTINGS.items() if name != "model.norm_bias_scale"}
    assert changed_settings(older, {**SETTINGS, "model.norm_bias_scale": 64.0}) == []


def test_what_changed_is_named_with_both_values() -> None:
    assert changed(model__lr=0.2, seed_everything=1) == ["model.lr 0.1 -> 0.2", "seed_everything 0 -> 1"]


def test_arguments_are_named_alone() -> None:
    cosine = {"class_path": "a.Cosine", "init_args": {"warmup_epochs": 1.0}}
    assert changed(model__schedule=cosine) == ["model.schedule.warmup_epochs 0.0 -> 1.0"]
    assert changed(model__schedule={"class_path": "a.Step", "init_args": {}}) == ["model.schedule Cosine -> Step"]
    assert changed(data__augment={"flip": True, "cutout_size": 8}) == ["data.augment.cutout_size 0 -> 8"]
    assert changed(data__augment=None)[0].endswith("-> None")
    with_path = {"depths": [1], "drop_path_rate": 0.1}
    assert changed(model__network_args=with_path) == ["model.network_args.drop_path_rate None -> 0.1"]


def test_a_key_of_the_user_s_own_is_named() -> None:
    (change,) = changed_settings({"data.mine": "a\x1b"}, {"data.mine": "b"})
    assert change == Change("data.mine", "data.mine a\\x1b -> b")


@pytest.mark.parametrize("within_epoch", [False, True])
def test_what_would_mix_validation_into_training_is_refused(within_epoch: bool) -> None:
    now = {**SETTINGS, "data.split_seed": 7, "model.lr": 0.2}
    with pytest.raises(ConfigurationError, match="a run cannot be resumed with data.split_seed 0 -> 7: ") as error:
        check_resumable(changed_settings(SETTINGS, now), within_epoch)
    assert "model.lr" not in str(error.value)


def test_batches_are_counted_alike_within_an_epoch() -> None:
    changes = changed_settings(SETTINGS, {**SETTINGS, "data.batch_size": 20})
    check_resumable(changes, within_epoch=False)
    with pytest.raises(ConfigurationError, match="within an epoch .* data.batch_size 40 -> 20: .* end of an epoch"):
        check_resumable(changes, within_epoch=True)


# Optimizer and schedule.


@pytest.mark.parametrize("schedule", [OneCycle(), OneCycle(cycle_momentum=False), Cosine(warmup_epochs=1), Step()])
def test_the_schedule_is_entered_where_the_run_is(schedule: Schedule) -> None:
    old = build(schedule, 0.1, 40)
    train(*old, 15)
    checkpoint = checkpoint_of(*old)
    fresh = build(schedule, 0.3, 60)
    put_settings(checkpoint, [Change("model.lr", "")], *fresh, 15)
    resumed = build(schedule, 0.3, 60)
    resumed[0].load_state_dict(checkpoint["optimizer_states"][0])
    resumed[1].load_state_dict(checkpoint["lr_schedulers"][0])
    throughout = build(schedule, 0.3, 60)
    assert train(*throughout, 60)[15:] == pytest.approx(train(*resumed, 45))


def test_what_the_optimizer_remembers_stays() -> None:
    old = build(Cosine(), 0.1, 40)
    train(*old, 15)
    checkpoint = checkpoint_of(*old)
    momentum = old[0].state_dict()["state"][0]["momentum_buffer"]
    put_settings(checkpoint, [Change("model.weight_decay", "")], *build(Cosine(), 0.1, 40), 15)
    assert torch.equal(checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"], momentum)


def test_another_optimizer_starts_anew() -> None:
    old = build(Cosine(), 0.1, 40)
    train(*old, 15)
    checkpoint = checkpoint_of(*old)
    put_settings(checkpoint, [Change("model.optimizer", "")], *build(Cosine(), 0.1, 40, "AdamW"), 15)
    assert checkpoint["optimizer_states"][0]["state"] == {}
    assert "betas" in checkpoint["optimizer_states"][0]["param_groups"][0]


def test_a_run_that_is_shortened_below_its_steps_ends_its_cycle() -> None:
    old = build(OneCycle(), 0.1, 40)
    train(*old, 39)
    checkpoint = checkpoint_of(*old)
    put_settings(checkpoint, [], *build(OneCycle(), 0.1, 20), 39)
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 20

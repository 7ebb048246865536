"""Settings of a resumed run against an optimizer and a schedule that were used with them from the start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cifar_resnets.runs.changed_settings import changed_settings, put_settings
from cifar_resnets.training.optimizers import build_optimizer
from cifar_resnets.training.schedules import Cosine, OneCycle, Schedule, Step

SETTINGS: dict[str, Any] = {
    "optimizer": "SGD",
    "optimizer_args": {},
    "lr": 0.1,
    "weight_decay": 0.0,
    "decay_norm_and_bias": True,
    "norm_bias_scale": 1.0,
    "schedule": {"class_path": "Cosine"},
    "network": "a",
}


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


def test_what_is_the_same_is_not_named() -> None:
    assert changed_settings(SETTINGS, {**SETTINGS, "network": "b"}, (10, 10)) == {}


def test_what_an_older_checkpoint_does_not_know_has_not_changed() -> None:
    older = {name: value for name, value in SETTINGS.items() if name != "norm_bias_scale"}
    assert changed_settings(older, {**SETTINGS, "norm_bias_scale": 64.0}, (10, 10)) == {}


def test_what_changed_is_named_with_both_values() -> None:
    changed = changed_settings(SETTINGS, {**SETTINGS, "lr": 0.2}, (10, 20))
    assert list(changed.values()) == ["model.lr 0.1 -> 0.2", "the run's length 10 -> 20 steps"]


@pytest.mark.parametrize("schedule", [OneCycle(), OneCycle(cycle_momentum=False), Cosine(warmup_epochs=1), Step()])
def test_the_schedule_is_entered_where_the_run_is(schedule: Schedule) -> None:
    old = build(schedule, 0.1, 40)
    train(*old, 15)
    checkpoint = checkpoint_of(*old)
    fresh = build(schedule, 0.3, 60)
    put_settings(checkpoint, {"lr": ""}, *fresh)
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
    put_settings(checkpoint, {"weight_decay": ""}, *build(Cosine(), 0.1, 40))
    assert torch.equal(checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"], momentum)


def test_another_optimizer_starts_anew() -> None:
    old = build(Cosine(), 0.1, 40)
    train(*old, 15)
    checkpoint = checkpoint_of(*old)
    put_settings(checkpoint, {"optimizer": ""}, *build(Cosine(), 0.1, 40, "AdamW"))
    assert checkpoint["optimizer_states"][0]["state"] == {}
    assert "betas" in checkpoint["optimizer_states"][0]["param_groups"][0]


def test_a_run_that_is_shortened_below_its_steps_ends_its_cycle() -> None:
    old = build(OneCycle(), 0.1, 40)
    train(*old, 39)
    checkpoint = checkpoint_of(*old)
    put_settings(checkpoint, {"length": ""}, *build(OneCycle(), 0.1, 20))
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 20

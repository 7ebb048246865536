"""States of optimizers and schedules that are not those of the run: torch itself takes them over as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from cifar_resnets.errors import CheckpointError
from cifar_resnets.runs.optimizer_state import check_states
from cifar_resnets.training.optimizers import build_optimizer

OPTIMIZERS = ["SGD", "AdamW", "Adafactor", "lamb", "adafactor"]


def pair(name: str, schedule: str, steps: int = 0) -> tuple[torch.optim.Optimizer, LRScheduler]:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = build_optimizer(network, name, lr=0.1, weight_decay=0.1, decay_norm_and_bias=False)
    scheduler: LRScheduler
    if schedule == "cycle":
        momentum = bool({"momentum", "betas"} & optimizer.defaults.keys())
        scheduler = OneCycleLR(
            optimizer, [group["lr"] for group in optimizer.param_groups], 10, cycle_momentum=momentum
        )
    else:
        scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
    for _ in range(steps):
        network(torch.ones(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


def states(name: str, schedule: str) -> dict[str, Any]:
    optimizer, scheduler = pair(name, schedule, 3)
    return copy.deepcopy({"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [scheduler.state_dict()]})


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["cycle", "factor"])
def test_states_of_the_same_kind_pass(name: str, schedule: str) -> None:
    check_states(states(name, schedule), *pair(name, schedule))


def group(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda c: c["optimizer_states"][0]["param_groups"][1].update(changes)


def scheduler(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda c: c["lr_schedulers"][0].update(changes)


def momentum(value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda c: c["optimizer_states"][0]["state"][0].update(momentum_buffer=value)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (group(lr="x"), "param_groups.1.lr"),
        (group(nesterov=3), "param_groups.1.nesterov"),
        (group(params=[0]), "param_groups.1.params"),
        (lambda c: c["optimizer_states"][0]["param_groups"].pop(), "param_groups"),
        (scheduler(get_lr=5), "lr_schedulers.0.get_lr"),
        (scheduler(optimizer=None), "lr_schedulers.0.optimizer"),
        (scheduler(total_steps="x"), "total_steps"),
        (scheduler(total_steps=5), "total_steps"),
        (scheduler(last_epoch=2**62), "last_epoch"),
        (scheduler(_anneal_func_type="x"), "_anneal_func_type"),
        (scheduler(_last_lr=[0.1]), "_last_lr"),
        (momentum("x"), "state.0.momentum_buffer"),
        (momentum(torch.ones(4)), "state.0.momentum_buffer"),
        (
            lambda c: c["optimizer_states"][0]["state"].update({99: {"momentum_buffer": torch.ones(4)}}),
            "state.99.momentum_buffer",
        ),
    ],
)
def test_another_kind_is_refused_with_its_key(change: Callable[[dict[str, Any]], object], key: str) -> None:
    content = states("SGD", "cycle")
    change(content)
    with pytest.raises(CheckpointError, match=rf"--ckpt_path: \S*{key} is not that of this run"):
        check_states(content, *pair("SGD", "cycle"))

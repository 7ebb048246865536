"""What a resumed run takes from its checkpoint, and what from the user: a setting that is given now wins."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# what makes up optimizer and schedule; all else of the network is either the same or does not fit
SETTINGS = ("optimizer", "optimizer_args", "lr", "weight_decay", "decay_norm_and_bias", "norm_bias_scale", "schedule")
# with another one of these, what the optimizer remembers is of no use
OTHER_OPTIMIZER = {"optimizer", "decay_norm_and_bias", "norm_bias_scale"}


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any], length: tuple[int, int]) -> dict[str, str]:
    """The settings that differ, each with what they were and what they are.

    Args:
        then: hyperparameters of the checkpoint's run, as they were configured.
        now: hyperparameters of this run, as they are configured.
        length: optimizer steps of the whole run, then and now.
    """
    then = {**now, **then}  # an older checkpoint may not know them all
    changed = {name: f"model.{name} {then[name]} -> {now[name]}" for name in SETTINGS if then[name] != now[name]}
    if length[0] != length[1]:
        changed["length"] = f"the run's length {length[0]} -> {length[1]} steps"
    return changed


def put_settings(checkpoint: dict[str, Any], changed: Mapping[str, str], optimizer: Any, scheduler: Any) -> None:
    """Puts the settings of this run into the states that are about to be restored.

    What the optimizer remembers stays, if it is the same; the schedule is entered at the step that was reached.

    Args:
        checkpoint: that a run is resumed from.
        changed: see `changed_settings`; not empty.
        optimizer: of this run, before any step.
        scheduler: its schedule.
    """
    assert isinstance(optimizer, Optimizer)
    assert isinstance(scheduler, LRScheduler)
    _advance(scheduler, checkpoint["lr_schedulers"][0]["last_epoch"])
    checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    fresh = optimizer.state_dict()
    if OTHER_OPTIMIZER & changed.keys():
        checkpoint["optimizer_states"] = [fresh]
    else:
        checkpoint["optimizer_states"][0]["param_groups"] = fresh["param_groups"]


def _advance(scheduler: LRScheduler, steps: int) -> None:
    """Enters a schedule that says for each step by itself what the rates are: all of ours do."""
    if steps == 0:
        return
    scheduler.last_epoch = min(steps, getattr(scheduler, "total_steps", steps)) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer takes no step
        scheduler.step()

"""Applies settings that the user has changed to the checkpoint of a run that is resumed."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# of optimizer and schedule; with another network the checkpoint does not fit
SETTINGS = ("optimizer", "optimizer_args", "lr", "weight_decay", "decay_norm_and_bias", "norm_bias_scale", "schedule")
# if one of these has changed, the optimizer's state does not fit
OTHER_OPTIMIZER = {"optimizer", "decay_norm_and_bias", "norm_bias_scale"}


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any], length: tuple[int, int]) -> dict[str, str]:
    """Returns the settings that differ, each with a text of its old and its new value.

    Args:
        then: configured hyperparameters of the checkpoint's run.
        now: configured hyperparameters of this run.
        length: optimizer steps of the whole run, then and now.
    """
    then = {**now, **then}  # an older checkpoint may lack some
    changed = {name: f"model.{name} {then[name]} -> {now[name]}" for name in SETTINGS if then[name] != now[name]}
    if length[0] != length[1]:
        changed["length"] = f"the run's length {length[0]} -> {length[1]} steps"
    return changed


def put_settings(checkpoint: dict[str, Any], changed: Mapping[str, str], optimizer: Any, scheduler: Any) -> None:
    """Replaces the settings in a checkpoint's states of optimizer and scheduler by those of this run.

    The momentum buffers stay, unless the optimizer is another one. The schedule goes on at the step of the checkpoint.

    Args:
        checkpoint: from which the run is resumed; changed in place.
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
    """Advances a scheduler by many steps at once: its rates must depend on the step alone, as those of ours do."""
    if steps == 0:
        return
    scheduler.last_epoch = min(steps, getattr(scheduler, "total_steps", steps)) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer takes no step
        scheduler.step()

"""Compares the states of optimizer and schedule in a checkpoint with those of a fresh optimizer.

torch takes over whatever such a state holds: a schedule even as attributes of its own, methods included.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cifar_resnets.errors import CheckpointError

# state of a parameter that has its shape, in optimizers of torch and timm
OF_SHAPE = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "acc_delta")


def check_states(checkpoint: Mapping[str, Any], optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Raises CheckpointError, with the key, if a state in a checkpoint is not one of this optimizer and schedule.

    Args:
        checkpoint: from which a run is resumed.
        optimizer: of this run, before any step.
        scheduler: its schedule.
    """
    state, fresh = checkpoint["optimizer_states"][0], optimizer.state_dict()
    schedule, total = checkpoint["lr_schedulers"][0], scheduler.state_dict().get("total_steps")
    for place in (
        *(["lr_schedulers.0.total_steps"] if schedule.get("total_steps") != total else []),
        *(["lr_schedulers.0.last_epoch"] if total and schedule["last_epoch"] > total else []),
        *_unlike(schedule, scheduler.state_dict(), "lr_schedulers.0"),
        *_unlike(state["param_groups"], fresh["param_groups"], "optimizer_states.0.param_groups", known=False),
        *_of_other_shape(state["state"], optimizer),
    ):
        raise CheckpointError(f"--ckpt_path: {place} is not that of this run's optimizer and schedule")


def _unlike(found: Any, fresh: Any, place: str, known: bool = True) -> Iterator[str]:
    """Yields the keys of values that are of another kind than in a fresh state.

    Args:
        found: in the checkpoint.
        fresh: in the fresh state; there, None may become something else.
        place: the key of both.
        known: whether there may be no other keys.
    """
    if isinstance(fresh, Mapping) and isinstance(found, Mapping):
        yield from (f"{place}.{key}" for key in found if known and key not in fresh)
        for key in found.keys() & fresh.keys():
            yield from _unlike(found[key], fresh[key], f"{place}.{key}", known)
    elif isinstance(fresh, (list, tuple)) and isinstance(found, (list, tuple)):
        yield from [place] if len(found) != len(fresh) else ()
        for index, pair in enumerate(zip(found, fresh, strict=False)):
            yield from _unlike(*pair, f"{place}.{index}", known)
    elif not _are_alike(found, fresh, known):
        yield place


def _are_alike(found: Any, fresh: Any, known: bool) -> bool:
    if fresh is None or found is None:  # an option of the optimizer that was not given, such as `fused`
        return not known or found is fresh
    if isinstance(fresh, str):
        return bool(found == fresh)
    numbers = (int, float, Tensor)
    return type(found) is type(fresh) or all(
        isinstance(each, numbers) and not isinstance(each, bool) for each in (found, fresh)
    )


def _of_other_shape(states: Mapping[int, Mapping[str, Any]], optimizer: Optimizer) -> Iterator[str]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in states.items():
        for name in OF_SHAPE:
            value = state.get(name)
            shape = parameters[index].shape if index < len(parameters) else None
            if value is not None and not (isinstance(value, Tensor) and value.shape == shape):
                yield f"optimizer_states.0.state.{index}.{name}"

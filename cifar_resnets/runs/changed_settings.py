"""What a setting that has changed does when a run is resumed: one table of all settings, and what it takes."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.support.text import printable

REFUSED = "refused, with both values"
CLASSES = "refused, with both lists, unless `--model.class_names` repeats those of the data"
OPTIMIZER = "takes effect in place of the checkpoint's optimizer or schedule, and is listed with both values"
EPOCH_END = "takes effect, and is listed with both values; refused within an epoch"
LISTED = "takes effect, and is listed with both values"
LENGTH = "takes effect, and is listed as the length of the run"
SILENT = "takes effect, and is not listed"
UNUSED = "no effect: the checkpoint's weights are trained"

# All keys of model, data and trainer, shown in docs/resume.md: tests/runs/test_changed_settings.py fails if one is
# missing. A key of a class of the user's own is listed.
SETTINGS = {
    REFUSED: "model.init data.num_train data.split_seed data.val_fraction data.test_fraction",
    CLASSES: "model.class_names data.classes",  # by cli/class_names.py; here they are listed
    OPTIMIZER: "model.lr model.schedule model.weight_decay model.optimizer model.optimizer_args "
    "model.decay_norm_and_bias model.norm_bias_scale model.layer_decay",
    EPOCH_END: "data.batch_size trainer.accumulate_grad_batches trainer.limit_train_batches trainer.overfit_batches",
    LISTED: "seed_everything model.network model.network_args model.freeze model.unfreeze_epoch model.label_smoothing "
    "model.class_weights model.tta data data.balance data.augment data.mean data.std data.root data.split_file "
    "data.image_size data.resize data.background data.coarse trainer.precision trainer.gradient_clip_val "
    "trainer.gradient_clip_algorithm trainer.deterministic trainer.sync_batchnorm trainer.devices trainer.accelerator "
    "trainer.limit_val_batches trainer.val_check_interval trainer.check_val_every_n_epoch",
    LENGTH: "trainer.max_epochs trainer.max_steps",
    SILENT: "model.channels_last model.compile model.fast data.eval_batch_size data.urls trainer.min_epochs "
    "trainer.min_steps trainer.max_time trainer.limit_test_batches trainer.limit_predict_batches "
    "trainer.num_sanity_val_steps trainer.callbacks trainer.logger trainer.log_every_n_steps trainer.profiler "
    "trainer.strategy trainer.num_nodes trainer.plugins trainer.benchmark trainer.detect_anomaly "
    "trainer.inference_mode trainer.default_root_dir trainer.enable_checkpointing trainer.enable_progress_bar "
    "trainer.enable_model_summary trainer.enable_autolog_hparams trainer.model_registry "
    "trainer.use_distributed_sampler trainer.reload_dataloaders_every_n_epochs trainer.fast_dev_run "
    "trainer.barebones",
    UNUSED: "model.weights model.weights_strict model.pretrained",
}
KIND = {name: kind for kind, names in SETTINGS.items() for name in names.split()}
_COMPARED = (REFUSED, CLASSES, OPTIMIZER, EPOCH_END, LISTED)
# if one of these has changed, the optimizer's state does not fit
OTHER_OPTIMIZER = {
    "model.optimizer",
    "model.optimizer_args",  # with `amsgrad` the state has more tensors
    "model.decay_norm_and_bias",
    "model.norm_bias_scale",
    "model.layer_decay",
}
# how a Trainer says what it was given, where it has no attribute of that name
_READ: dict[str, Callable[[pl.Trainer], Any]] = {
    "accelerator": lambda trainer: type(trainer.accelerator).__name__,
    "devices": lambda trainer: trainer.world_size,
    "deterministic": lambda trainer: torch.are_deterministic_algorithms_enabled(),
    # private in lightning 2.6, with no public name; tests/runs/test_changed_settings.py fails when it has another one
    "sync_batchnorm": lambda trainer: trainer._accelerator_connector._layer_sync is not None,
}


class Change(NamedTuple):
    """A setting that has changed.

    Args:
        setting: its key, of `SETTINGS` if it is there.
        text: the key with the old and the new value.
    """

    setting: str
    text: str

    @property
    def kind(self) -> str:
        """Returns what it does, of the keys of `SETTINGS`."""
        return KIND.get(self.setting, LISTED)


def trainer_settings(trainer: pl.Trainer) -> dict[str, bool | int | float | str | None]:
    """Returns the settings of a Trainer that are compared when a run is resumed, by their dotted keys."""
    found = {}
    for key in (key for key, kind in KIND.items() if key.startswith("trainer.") and kind in _COMPARED):
        name = key.removeprefix("trainer.")
        value = _READ[name](trainer) if name in _READ else getattr(trainer, name)
        value = getattr(value, "value", value)  # of an enumeration
        found[key] = value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
    return found


def model_settings(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters of a model by their dotted keys."""
    return {f"model.{name}": value for name, value in hparams.items()}


def data_settings(description: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what `ImageDataModule.describe` says, by dotted keys; nothing of other data."""
    if not description:
        return {}
    arguments = {f"data.{name}": value for name, value in description["init_args"].items()}
    arguments.pop("data.classes", None)  # they are the class names of the model
    return {"data": description["class_path"], **arguments}


def is_same_source(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Returns whether two settings of `data_settings` are of one source of images, in one folder."""
    return bool(then) and all(then.get(key) == now.get(key) for key in ("data", "data.root"))


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Returns the settings that differ, but for those that do not change the training.

    Args:
        then: settings of the checkpoint's run by dotted keys; an older checkpoint may lack some.
        now: settings of this run.
    """
    kinds = {key: Change(key, "").kind for key in now if key in then}
    compared = [key for key, kind in kinds.items() if kind in _COMPARED]
    return [Change(key, text) for key in compared for text in _differences(key, then[key], now[key])]


def check_resumable(changes: Sequence[Change], within_epoch: bool = False) -> None:
    """Checks that a run can be resumed with settings that have changed.

    Args:
        changes: see `changed_settings`.
        within_epoch: whether the checkpoint was written before the end of an epoch.

    Raises:
        ConfigurationError: when one of them is refused.
    """
    kinds = (REFUSED, EPOCH_END) if within_epoch else (REFUSED,)
    refused = [change for change in changes if change.kind in kinds]
    if not refused:
        return
    only_within = all(change.kind == EPOCH_END for change in refused)
    where = "within an epoch" if only_within else "a run"
    other = "resume from a checkpoint that was written at the end of an epoch" if only_within else "take it back"
    texts = ", ".join(change.text for change in refused)
    raise ConfigurationError(
        f"--ckpt_path: {where} cannot be resumed with {texts}: {other}, or start a new run with "
        "--model.weights CHECKPOINT"
    )


def put_settings(
    checkpoint: dict[str, Any], changes: Sequence[Change], optimizer: Any, scheduler: Any, step: int
) -> None:
    """Replaces the settings in a checkpoint's states of optimizer and scheduler by those of this run.

    The momentum buffers stay, unless the optimizer is another one.

    Args:
        checkpoint: from which the run is resumed; changed in place.
        changes: see `changed_settings`.
        optimizer: of this run, before any step.
        scheduler: its schedule.
        step: at which the schedule goes on.
    """
    assert isinstance(optimizer, Optimizer)
    assert isinstance(scheduler, LRScheduler)
    _advance(scheduler, step)
    checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    fresh = optimizer.state_dict()
    if OTHER_OPTIMIZER & {change.setting for change in changes}:
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


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    """Yields a text for each value that differs; of dicts, and of classes of one name, each argument alone."""
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    if both and old.get("class_path") == new.get("class_path"):
        for name in {**old, **new}:
            yield from _differences(key if name == "init_args" else f"{key}.{name}", old.get(name), new.get(name))
    elif old != new:
        yield f"{key} {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        return printable(str(value["class_path"]).rpartition(".")[2])
    if isinstance(value, (list, tuple)):
        value = f"[{', '.join(map(str, value))}]"
    return printable(str(value))

"""The classes of a network and those of the data: names and their order belong to the network's checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from cifar_resnets.cli.checkpoint_args import NEED_CHECKPOINT
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.runs.changed_settings import changed_settings, check_resumable, data_settings, is_same_source
from cifar_resnets.support.text import printable

_SPLIT = ("data.split_seed", "data.val_fraction", "data.test_fraction")  # which images are validation images

Checkpoint = Mapping[str, Any]


def network_classes(
    command: str, data: ImageDataModule, given: Sequence[str | int] | None, checkpoint: Checkpoint | None
) -> list[str]:
    """Returns the class names of the network: of the data that it is trained on, or of the checkpoint.

    Public weights that are evaluated know no names: theirs are those of the data, if none are given.

    Args:
        command: the subcommand.
        data: of this command; only the images of the network's classes are tested, and so it is changed in place.
        given: `model.class_names`, if the user gives it: what the classes of the checkpoint are called in the data.
        checkpoint: that is evaluated, or from which a run is resumed; None for a new run, or public weights.

    Raises:
        ConfigurationError: when the classes of the data are not those of the network, or in another order, or when
            other images would be validation images than in the run of the checkpoint.
        CheckpointError: when the checkpoint has another number of classes.
    """
    names = None if given is None else list(map(str, given))
    if command not in NEED_CHECKPOINT:
        return _trained(data, names, checkpoint)
    names = names or (data.class_names if checkpoint is None else list(checkpoint["hyper_parameters"]["class_names"]))
    if command == "validate":
        return _validated(data, names, checkpoint)
    names = _tested(data, names, checkpoint)
    _check_untrained(command, data, checkpoint, ["data.test_fraction"])
    return names


def _trained(data: ImageDataModule, given: list[str] | None, checkpoint: Checkpoint | None) -> list[str]:
    names = data.class_names
    if given is not None and given != names:
        raise ConfigurationError(f"model.class_names: {_both(given, names)}: repeat those of the data, or leave it out")
    if checkpoint is None:
        return names
    former = list(checkpoint["hyper_parameters"]["class_names"])
    if len(former) != len(names):
        raise CheckpointError(f"--ckpt_path: {_both(former, names)}")
    if given is None and former != names:
        raise _others(former, names, checkpoint)
    check_resumable(changed_settings(data_settings(checkpoint.get("data")), data_settings(data.describe())))
    return names


def _validated(data: ImageDataModule, names: list[str], checkpoint: Checkpoint | None) -> list[str]:
    if not _is_given(data, checkpoint):
        data.classes = names if set(names) <= set(data.source_classes()) else None
    if data.class_names != names:  # with some of the classes, others would be the validation images
        raise _others(names, data.class_names, checkpoint)
    _check_untrained("validate", data, checkpoint, _SPLIT)
    return names


def _check_untrained(
    command: str, data: ImageDataModule, checkpoint: Checkpoint | None, settings: Sequence[str]
) -> None:
    """Raises ConfigurationError if a setting has changed with which images of the training would be evaluated."""
    then, now = data_settings(checkpoint and checkpoint["data"]), data_settings(data.describe())
    if is_same_source(then, now):
        texts = [change.text for change in changed_settings(then, now) if change.setting in settings]
        if texts:
            what = f"{', '.join(texts)} would take images that were trained on"
            raise ConfigurationError(f"{command}: {what}, leave it out")


def _tested(data: ImageDataModule, names: list[str], checkpoint: Checkpoint | None) -> list[str]:
    is_given = _is_given(data, checkpoint)
    data.network_classes = names
    if not is_given:
        data.classes = _present(data, names, checkpoint)
    if data.class_names != [name for name in names if name in data.class_names]:
        raise _others(names, data.class_names, checkpoint)
    if len(data.class_names) < len(names):
        if checkpoint is None and data.mean is None:  # those of all training images are not at hand
            raise ConfigurationError(
                "data.mean: give it and data.std, only some of the network's classes are evaluated"
            )
        _say(f"evaluated on {len(data.class_names)} of the network's {len(names)} classes", data.class_names)
    return names


def _is_given(data: ImageDataModule, checkpoint: Checkpoint | None) -> bool:
    """Returns whether the user gives `data.classes`: if not, they are the checkpoint's."""
    return bool(data.classes != (checkpoint and checkpoint["data"]["init_args"].get("classes")))


def _present(data: ImageDataModule, names: Sequence[str], checkpoint: Checkpoint | None) -> list[str]:
    """Returns the network's classes that the data have, and says which of the data the network does not have."""
    there = data.source_classes()
    present, more = [name for name in names if name in there], [name for name in there if name not in names]
    if not present or (more and len(present) < len(names)):  # a class may have another name now
        raise _others(names, there, checkpoint)
    if more:
        _say("the images of these classes, which the network does not have, are left out", more)
    return present


def _others(network: Sequence[str], data: Sequence[str], checkpoint: Checkpoint | None) -> ConfigurationError:
    order = "give --data.classes in the network's order"
    if checkpoint is None:
        return ConfigurationError(f"model.class_names: {_both(network, data)}: {order}")
    remedy = f"{order}, or --model.class_names if only the names are others"
    return ConfigurationError(f"--ckpt_path: {_both(network, data)}: {remedy}")


def _both(network: Sequence[str], data: Sequence[str]) -> str:
    has, have = (f"{len(names)} classes ({_listed(names)})" for names in (network, data))
    return f"the network has {has}, the data have {have}"


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(map(str, names)))


def _say(what: str, names: Sequence[str]) -> None:
    rank_zero_only(print)(f"{what}: {_listed(names)}", flush=True)

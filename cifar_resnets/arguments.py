"""What a command line says, before and after it is parsed: checkpoints, recipes, keys that are misspelt."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from cifar_resnets.checkpoint_file import read_checkpoint_file
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.base import ImageDataModule, parameter_names
from cifar_resnets.errors import CheckpointError, ConfigurationError, UserError
from cifar_resnets.explanations import known_keys
from cifar_resnets.schedules import Schedule
from cifar_resnets.usage import is_of_trainer, unknown_figure

NEED_CHECKPOINT = ("validate", "test", "predict")
OWN_CLASSES = "cifar_resnets."


def given_checkpoint(args: Sequence[str]) -> dict[str, Any] | None:
    """Reads the checkpoint that an evaluation is given, whose command line begins with the subcommand.

    Raises:
        ConfigurationError: when there is none.
        CheckpointError: when it is missing or cannot be read.
    """
    if args[0] not in NEED_CHECKPOINT:
        return None
    path = _value_of(args, "--ckpt_path")
    if path is None and not {"-h", "--help"} & set(args):
        raise ConfigurationError(f"{args[0]}: --ckpt_path is missing, give the checkpoint of a fit")
    return None if path is None else read_checkpoint(path)


def on_top_of(checkpoint: Mapping[str, Any], args: Sequence[str]) -> list[str]:
    """Puts what the checkpoint of an evaluation says about network and data before what the user says.

    Raises:
        CheckpointError: when it names a class of another package that the user does not name: its module would be
            imported, which executes code.
    """
    data = dict(checkpoint["data"])
    if (given := _value_of(args, "--data")) is not None:
        data["class_path"] = given
    for name in _class_paths({"model": checkpoint["hyper_parameters"], "data": data}):
        if not (name == given or str(name).startswith(OWN_CLASSES)):
            trust = f"if you trust it, give --data {name}"
            raise CheckpointError(f"--ckpt_path: the checkpoint names the class {name} of another package; {trust}")
    model = {key: value for key, value in checkpoint["hyper_parameters"].items() if key != "class_names"}
    return [args[0], "--config", json.dumps({"model": model, "data": data}), *args[1:]]


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint written by `fit`: tensors and primitives, no code.

    Raises:
        CheckpointError: when it is missing, damaged, or something else.
    """
    try:
        checkpoint = read_checkpoint_file(Path(path))
    except CheckpointError as error:
        raise CheckpointError(f"--ckpt_path: {error}") from error
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "data", "state_dict"} <= checkpoint.keys():
        raise CheckpointError(f"--ckpt_path: {path} was not written by `cifar-resnets fit`")
    return checkpoint


def all_keys(parser: LightningArgumentParser) -> tuple[list[str], dict[str, list[str]]]:
    """All keys of a subcommand, and the names of the classes that some of them take."""
    keys = [key for key in parser.get_defaults(skip_validation=True).keys() if not key.startswith("explain.")]
    keys += known_keys()
    keys += [f"data.augment.{field.name}" for field in dataclasses.fields(Augmentation)]
    for source in _subclasses(ImageDataModule):
        keys += [f"data.{name}" for name in parameter_names(source)]
    for schedule in _subclasses(Schedule):
        keys += [f"model.schedule.{field.name}" for field in dataclasses.fields(schedule)]
    names = {"data": ImageDataModule, "model.schedule": Schedule}
    return keys, {key: sorted(cls.__name__ for cls in _subclasses(base)) for key, base in names.items()}


def user_error(error: BaseException) -> UserError | None:
    """What the user got wrong; jsonargparse wraps the errors of the classes that it builds."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if line := unknown_figure(str(error)):
        return ConfigurationError(line)
    if isinstance(error, MisconfigurationException):
        return ConfigurationError(str(error))
    if _is_of_compiler(error):
        line = str(error).partition("\n")[0]
        return ConfigurationError(f"model.compile: {line}; leave it out, or install what is missing")
    return ConfigurationError(f"trainer: {error}") if is_of_trainer(error) else None


def _is_of_compiler(error: BaseException) -> bool:
    # by name: to import the classes takes longer than to look at the command line
    return any(cls.__module__.startswith(("torch._dynamo", "torch._inductor")) for cls in type(error).__mro__)


def seed_of(seed_everything: bool | int) -> int:
    """The seed of a run, which also numbers its images.

    Raises:
        ConfigurationError: when there is none.
    """
    if isinstance(seed_everything, bool) or seed_everything < 0:
        raise ConfigurationError(f"seed_everything: {seed_everything} is not allowed, give a number from 0")
    return seed_everything


def _value_of(args: Sequence[str], key: str) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(key, dest="value")
    value: str | None = parser.parse_known_args(list(args))[0].value
    return value


def _class_paths(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield value["class_path"]
        for item in value.values():
            yield from _class_paths(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _class_paths(item)


def _subclasses(base: type) -> list[type]:
    """The classes that can be built, of a base."""
    children: list[type] = base.__subclasses__()
    found = [cls for child in children for cls in (child, *_subclasses(child))]
    return [cls for cls in found if not inspect.isabstract(cls)]

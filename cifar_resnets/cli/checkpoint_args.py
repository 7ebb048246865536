"""Arguments that come from a checkpoint, and class paths of former versions among those that the user gives."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import get_loader

from cifar_resnets.cli.config_checks import recipe_value
from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.runs.checkpoint_file import EVALUATE, read_checkpoint_file
from cifar_resnets.runs.resume import Start
from cifar_resnets.support.former_names import current_names

NEED_CHECKPOINT = ("validate", "test", "predict")
OWN_CLASSES = "cifar_resnets."
_load_yaml = get_loader("yaml")


def load_recipe(text: str) -> Any:
    """Loads YAML as jsonargparse does, with the class paths of today; see `jsonargparse.set_loader`."""
    return current_names(_load_yaml(text))


def given_checkpoint(args: Sequence[str]) -> Start:
    """Reads the checkpoint of an evaluation; there is none in the result for other subcommands.

    Args:
        args: the command line, the subcommand first.

    Raises:
        ConfigurationError: when an evaluation is given none.
        CheckpointError: when it is missing, or was not written by `fit`.
    """
    path = _typed(args, "--ckpt_path", "ckpt_path") if args[0] in NEED_CHECKPOINT else None
    if path is not None:
        return Start(checkpoint=Path(path), content=read_evaluable(Path(path)))
    if args[0] in NEED_CHECKPOINT and not {"-h", "--help"} & set(args):
        raise ConfigurationError(f"{args[0]}: --ckpt_path is missing, give the checkpoint of a fit")
    return Start()


def read_evaluable(path: Path) -> dict[str, Any]:
    """Reads a checkpoint for an evaluation.

    Raises:
        CheckpointError: when it is missing, damaged, or was not written by `fit`.
    """
    try:
        return read_checkpoint_file(path, EVALUATE)
    except CheckpointError as error:
        raise CheckpointError(f"--ckpt_path: {error}") from error


def check_fits(checkpoint: Mapping[str, Any], model: torch.nn.Module, hparams: Mapping[str, Any]) -> None:
    """Compares names and shapes of a checkpoint's tensors with those of the model.

    Raises:
        CheckpointError: when they differ, in one line; Lightning would list every tensor.
    """
    if _shapes(checkpoint["state_dict"]) != _shapes(model.state_dict()):
        both = checkpoint["hyper_parameters"], hparams
        has, wants = (f"{h['network']} with {len(h['class_names'])} classes" for h in both)
        raise CheckpointError(f"--ckpt_path: the checkpoint is of {has}, the network is {wants}")


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def on_top_of(checkpoint: Mapping[str, Any], args: Sequence[str]) -> list[str]:
    """Inserts a checkpoint's network and data before the user's arguments, which override them.

    Args:
        checkpoint: of an evaluation.
        args: the command line, the subcommand first.

    Raises:
        CheckpointError: when it names a class of another package that the user does not name: its module would be
            imported, which executes code.
    """
    data = dict(checkpoint["data"])
    if (given := _value_of(args, "--data")) is not None:
        data["class_path"] = given
    foreign = _foreign_names(checkpoint["hyper_parameters"], data)
    if unknown := {name: option for option, name in foreign if not _is_typed(args, option, name)}:
        names, trust = ", ".join(map(str, unknown)), " ".join(f"{option} {name}" for name, option in unknown.items())
        raise CheckpointError(
            f"--ckpt_path: the checkpoint names the class {names} of another package; if you trust it, give {trust}"
        )
    model = {key: value for key, value in checkpoint["hyper_parameters"].items() if key != "class_names"}
    return [args[0], "--config", json.dumps({"model": model, "data": data}), *args[1:]]


def _foreign_names(model: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields what a checkpoint would import from other packages, with the option that sets it."""
    for option, part in {"--data": data, **{f"--model.{key}": value for key, value in model.items()}}.items():
        if option == "--model.network" and ":" in str(part):  # a function of a module
            yield option, part
        yield from ((option, name) for name in _class_paths(part) if not str(name).startswith(OWN_CLASSES))


def _is_typed(args: Sequence[str], option: str, name: object) -> bool:
    """Returns whether the user gives a class by its option, or by the key of a recipe."""
    return name in (_typed(args, option, key := option.removeprefix("--")), _typed(args, option, f"{key}.class_path"))


def _typed(args: Sequence[str], option: str, key: str) -> Any:
    """Returns what the user gives by an option, or else by the key of a recipe; None without either."""
    value = _value_of(args, option)
    return recipe_value(args, key) if value is None else value


def _value_of(args: Sequence[str], key: str) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(key, dest="value")
    value: str | None = parser.parse_known_args(list(args))[0].value
    return value


def _class_paths(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping) and "class_path" in value:
        yield value["class_path"]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for item in items:
        yield from _class_paths(item)

"""What a command line says, before and after it is parsed: checkpoints, recipes, keys that are misspelt."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file

NEED_CHECKPOINT = ("validate", "test", "predict")
OWN_CLASSES = "cifar_resnets."


def given_checkpoint(args: Sequence[str]) -> dict[str, Any] | None:
    """Reads the checkpoint that an evaluation is given; None for another subcommand, or with --help.

    Raises:
        ConfigurationError: when there is none.
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

"""What is evaluated: a checkpoint, whose arguments the user's override, or weights that the user has named.

Class paths of former versions among the arguments are replaced by those of today.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, get_loader
from lightning.pytorch.utilities import rank_zero_only

from cifar_resnets.cli.config_checks import read_recipes, recipe_value
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import CheckpointError, ConfigurationError, DataError, UserError, local_path
from cifar_resnets.models.registry import create_network, without_weights
from cifar_resnets.runs.checkpoint_file import EVALUATE, read_checkpoint_file
from cifar_resnets.runs.plain_values import short
from cifar_resnets.runs.resume import Start
from cifar_resnets.support.bounded_yaml import check_aliases
from cifar_resnets.support.former_names import current_names
from cifar_resnets.support.text import printable

NEED_CHECKPOINT = ("validate", "test", "predict")
OWN_CLASSES = "cifar_resnets."
_load_yaml = get_loader("yaml")


def load_recipe(text: str) -> Any:
    """Loads YAML as jsonargparse does, with the class paths of today; see `jsonargparse.set_loader`."""
    check_aliases(text)
    return current_names(_load_yaml(text))


def given_checkpoint(args: Sequence[str]) -> Start:
    """Reads the checkpoint of an evaluation; there is none in the result for other subcommands, and for weights.

    Args:
        args: the command line, the subcommand first.

    Raises:
        ConfigurationError: when an evaluation is given neither a checkpoint nor weights.
        CheckpointError: when it is missing, or was not written by `fit`.
    """
    path = None
    if args[0] in NEED_CHECKPOINT:
        path = _value_of(args, "--ckpt_path") or recipe_value(args, "ckpt_path")
    if path is not None:
        path = local_path("--ckpt_path", path)
        return Start(checkpoint=Path(path), content=read_evaluable(Path(path)))
    if not {"-h", "--help"} & set(args):
        check_evaluated(args[0], None, _given_weights(args))
    return Start()


def _given_weights(args: Sequence[str]) -> str | None:
    typed = _value_of(args, "--model.weights")
    weights = recipe_value(args, "model.weights") if typed is None else typed
    return None if weights == "null" else weights


def check_evaluated(command: str, checkpoint: object, weights: str | None) -> None:
    """Raises ConfigurationError if an evaluation is given neither a checkpoint nor `model.weights`, or both."""
    if command in NEED_CHECKPOINT and checkpoint is None and weights is None:
        ways = "give the checkpoint of a fit, or other weights as --model.weights with --model.network and --data"
        raise ConfigurationError(f"{command}: --ckpt_path is missing, {ways}")
    if checkpoint is not None and weights is not None:
        raise ConfigurationError(f"model.weights: {command} reads --ckpt_path alone, leave it out or give null")


def forget_weights(model: Namespace) -> None:
    """Takes from the arguments of a model the weights to start from, where a checkpoint has its own."""
    model.weights, model.pretrained = None, False
    model.network_args = without_weights(model.network_args or {})


def weights_record(weights: str | None) -> dict[str, Any]:
    """Returns path and SHA-256 of `model.weights` for `run.json`; nothing without them."""
    if weights is None:
        return {}
    with open(weights, "rb") as file:
        return {"weights": {"file": weights, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}}


@rank_zero_only
def show_weights(command: str, weights: str | None, data: ImageDataModule) -> None:
    """Prints which weights an evaluation without a checkpoint is of, and what only the user can know of them."""
    if command not in NEED_CHECKPOINT:
        return
    print(f"weights: {printable(str(weights))}")
    if data.mean is None:
        print(
            "the images are normalised by the training images' statistics, give --data.mean and --data.std for others"
        )
    if command == "validate":
        print("validation images that are drawn from the training images may have been trained on")


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
    theirs, has, wants = checkpoint["hyper_parameters"], _shapes(checkpoint["state_dict"]), _shapes(model.state_dict())
    difference = _of_networks(theirs, hparams)
    # other arguments may give the same shapes: those of dropout do, others contradict the checkpoint's own weights
    if has != wants or (difference and not _describes(theirs, has)):
        raise CheckpointError(f"--ckpt_path: {difference or _of_tensors(has, wants)}")


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


def _describes(hparams: Mapping[str, Any], shapes: Mapping[str, Any]) -> bool:
    """Returns whether hyperparameters are those of weights with some shapes; builds the network without memory."""
    try:
        with torch.device("meta"):
            network = create_network(hparams["network"], len(hparams["class_names"]), hparams.get("network_args"))
    except ConfigurationError:
        return False
    return all(shapes.get(f"network.{name}") == shape for name, shape in _shapes(network.state_dict()).items())


def _of_networks(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Returns how two networks differ by their hyperparameters; None if they do not."""
    has, wants = (f"{each['network']} with {len(each['class_names'])} classes" for each in (theirs, ours))
    if has != wants:
        return f"the checkpoint is of {has}, the network is {wants}"
    then, now = (each.get("network_args") or {} for each in (theirs, ours))
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            both = (str(each.get(name, "not given")) for each in (then, now))
            return "model.network_args.{} is {} in the checkpoint, {} here".format(*map(short, (name, *both)))
    return None


def _of_tensors(has: Mapping[str, Any], wants: Mapping[str, Any]) -> str:
    """Returns the first tensor that differs, if the networks do not say why."""
    name = next(name for name in (*wants, *has) if has.get(name) != wants.get(name))
    theirs, ours = ("no tensor" if each is None else str(tuple(each)) for each in (has.get(name), wants.get(name)))
    return f"the checkpoint's weights are not of its network: {short(name)} is {theirs}, the network has {ours}"


def on_top_of(checkpoint: Mapping[str, Any], args: Sequence[str]) -> list[str]:
    """Inserts a checkpoint's network and data before the user's arguments, which override them.

    Args:
        checkpoint: of an evaluation.
        args: the command line, the subcommand first.

    Raises:
        CheckpointError: when it names a class of another package that the user does not name, see `check_classes`.
    """
    data = dict(checkpoint["data"])
    if (given := _value_of(args, "--data")) is not None:
        data["class_path"] = given
    check_classes({**checkpoint, "data": data}, _typed(args))
    model = {key: value for key, value in checkpoint["hyper_parameters"].items() if key != "class_names"}
    return [args[0], "--config", json.dumps({"model": model, "data": data}), *args[1:]]


def check_classes(checkpoint: Mapping[str, Any], typed: Iterable[Any]) -> None:
    """Raises CheckpointError for a class of another package, unless the user names it: its module would be imported.

    Args:
        checkpoint: from which a fit goes on, or which is evaluated.
        typed: arguments and recipes, nested in any way; read if it names one.
    """
    classes = list(_classes(checkpoint))
    allowed = set(_texts(list(typed))) if classes else set()
    if foreign := [(key, short(str(name))) for key, name in classes if name not in allowed]:
        one = len(foreign) == 1
        what = f"class {foreign[0][1]}" if one else f"classes {', '.join(name for _, name in foreign)}"
        trust = f"if you trust {'it' if one else 'them'}, give {' '.join(f'--{key} {name}' for key, name in foreign)}"
        raise CheckpointError(
            f"--ckpt_path: the checkpoint names the {what} of another package, whose code would run; {trust}"
        )


def _classes(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields what a checkpoint names of other packages: the keys, and paths of classes or functions."""
    hparams, data = checkpoint["hyper_parameters"], checkpoint.get("data")
    for key, name in (*_class_paths(data, "data"), *_class_paths(hparams, "model")):
        if not str(name).startswith(OWN_CLASSES):
            yield key, name
    if ":" in (network := hparams.get("network", "")):
        yield "model.network", network
    if "." in (optimizer := hparams.get("optimizer", "")) and not optimizer.startswith("torch.optim."):
        yield "model.optimizer", optimizer


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _typed(args: Sequence[str]) -> Iterator[Any]:
    """Yields the arguments of a command line, their values, and what its recipes hold."""
    for arg in args:
        yield from (arg, arg.partition("=")[2])
    yield from read_recipes(args)


def blame(error: UserError, args: Sequence[str]) -> UserError:
    """Returns an error of the checkpoint if a key is wrong that only the checkpoint can have set, whatever the command.

    Args:
        error: that ends the command.
        args: the command line, the subcommand first.
    """
    if isinstance(error, DataError) and str(error).startswith("data.split_file: "):  # the file, and its own remedy
        return error
    typed = any(arg.startswith(("--model", "--data", "-c", "--config")) for arg in args)
    if args[0] in NEED_CHECKPOINT and not typed and isinstance(error, DataError) and "data.root: " in str(error):
        return DataError(f"{error}; the checkpoint says so, give --data.root if they are elsewhere")
    of_command = typed or f"`{args[0]}`" in str(error)  # `validate` where nothing was kept for it
    if args[0] in NEED_CHECKPOINT and not of_command and str(error).startswith(("model.", "data.")):
        return CheckpointError(f"--ckpt_path: the checkpoint's {error}")
    return error


def names_root(args: Sequence[str]) -> bool:
    """Returns whether the user says where the images are, and it is not the checkpoint alone that does."""
    return any(arg.startswith(("--data.root", "--data.init_args.root", "-c", "--config")) for arg in args)


def _value_of(args: Sequence[str], key: str) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(key, dest="value")
    value: str | None = parser.parse_known_args(list(args))[0].value
    return value


def _class_paths(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and "class_path" in value:
        yield key, value["class_path"]
    for name, item in value.items() if isinstance(value, Mapping) else ():
        yield from _class_paths(item, key if name == "init_args" else f"{key}.{name}")
    for item in value if isinstance(value, (list, tuple)) else ():
        yield from _class_paths(item, key)

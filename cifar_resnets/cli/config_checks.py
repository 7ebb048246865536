"""Checks of recipes and command lines that the parser does not make: duplicate keys, null, sizes of 0."""

import argparse
import contextlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from cifar_resnets.cli.callback_checks import check_best, check_callbacks
from cifar_resnets.cli.recipes import find_recipe, hint_for_missing
from cifar_resnets.errors import ConfigurationError, local_path
from cifar_resnets.support.bounded_yaml import BoundedLoader
from cifar_resnets.support.signature import parameters_of

# sections, which have keys but no value
SECTIONS = ("model", "trainer", "checkpoint", "last_checkpoint")

# keys of files and folders; data sources look at theirs themselves
PATHS = ["trainer.default_root_dir", "checkpoint.dirpath", "last_checkpoint.dirpath", "ckpt_path", "model.weights"]
PATHS += ["plot", "csv"]

_Rule = tuple[Callable[[Any], bool], str]
_AT_LEAST_ONE: _Rule = (lambda value: value >= 1), "1 or more"
_OR_NO_LIMIT: _Rule = (lambda value: value == -1 or value >= 1), "1 or more, or -1 for no limit"
_ABOVE_ZERO: _Rule = (lambda value: value > 0), "a number above 0"
_NOT_NEGATIVE: _Rule = (lambda value: value >= 0), "0 or more"
# numbers with which Lightning fails in the middle of a run, or ends it at once with status 0
_NUMBERS: dict[str, _Rule] = {
    "seed_everything": ((lambda value: 0 <= value < 2**32), "a number from 0 to 4294967295"),
    "trainer.max_epochs": _OR_NO_LIMIT,
    "trainer.max_steps": _OR_NO_LIMIT,
    "trainer.accumulate_grad_batches": _AT_LEAST_ONE,
    "trainer.check_val_every_n_epoch": _AT_LEAST_ONE,
    "trainer.num_nodes": _AT_LEAST_ONE,
    "trainer.limit_train_batches": _ABOVE_ZERO,
    "trainer.val_check_interval": _ABOVE_ZERO,
    "trainer.limit_val_batches": _NOT_NEGATIVE,
    "trainer.limit_test_batches": _NOT_NEGATIVE,
    "trainer.limit_predict_batches": _NOT_NEGATIVE,
    "trainer.gradient_clip_val": _NOT_NEGATIVE,
    "trainer.log_every_n_steps": _NOT_NEGATIVE,
}


# Before the command line is parsed.


def check_recipes(args: Sequence[str]) -> list[str]:
    """Checks that each recipe of a command line is a YAML file with keys, without duplicates.

    Returns:
        The command line, with its content in the place of a pipe, such as `-c <(...)`: it can be read only once.

    Raises:
        ConfigurationError: for the first recipe that is not.
    """
    contents: dict[str, str] = {}
    for path in _given_recipes(args):
        file = None if _is_content(path) else Path(local_path("--config", path))
        recipe = None if file is None else _check_recipe(file)
        if file is not None and not file.is_file():
            # on one line; `1e-3`, which PyYAML takes for text, stays as it is
            contents[path] = yaml.safe_dump(recipe, default_flow_style=True, width=math.inf, sort_keys=False).strip()
    options = ("", "-c", "--config=")
    exchanged = {option + path: option + content for path, content in contents.items() for option in options}
    return [exchanged.get(arg, arg) for arg in args]


def recipe_value(args: Sequence[str], key: str) -> Any:
    """Returns a value from the last recipe of a command line that has the dotted key; None if there is none."""
    values = [_value(recipe, key) for recipe in read_recipes(args)]
    return next((value for value in reversed(values) if value is not None), None)


def read_recipes(args: Sequence[str]) -> list[Any]:
    """Returns what the recipes of a command line hold, in their order; raises ConfigurationError as `check_recipes`."""
    recipes = []
    for path in _given_recipes(args):
        with contextlib.suppress(yaml.YAMLError):  # of one in braces, which the parser will report
            content = _is_content(path)
            recipes.append(yaml.load(path, _Loader) if content else _read(Path(local_path("--config", path))))
    return recipes


def _given_recipes(args: Sequence[str]) -> list[str]:
    """Returns the values of `-c` on a command line: paths, also of recipes given by name, or recipes in braces."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    try:
        given = list(parser.parse_known_args(list(args))[0].config)
    except argparse.ArgumentError:  # the value is missing: the parser will report it
        return []
    return [find_recipe(path) for path in given]


def _is_content(path: str) -> bool:
    return path.lstrip().startswith("{")


def _check_recipe(path: Path) -> dict[str, Any]:
    recipe = _read(path)
    if not isinstance(recipe, dict):
        what = "is empty" if recipe is None else f"is a {type(recipe).__name__}"
        raise ConfigurationError(f"--config: {path} {what}, a recipe has keys such as `model:` and `data:`")
    for section in SECTIONS:
        if not isinstance(recipe.get(section, {}), dict):
            what = f"{section}: {recipe[section]}".replace("None", "nothing")
            raise ConfigurationError(f"--config: {path}: {what} is not allowed, give keys below it or leave it out")
    return recipe


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # no less safe than `safe_load`
    except OSError as error:
        hint = hint_for_missing(path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigurationError(f"--config: {path} cannot be read ({error.strerror}){hint}") from error
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, an impossible date
        raise ConfigurationError(f"--config: {path} is not valid YAML: {error}") from error


class _Loader(BoundedLoader):
    """A YAML loader that raises an error for a duplicate key: the first one would be lost with all keys below it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and seen.setdefault(key.value, line) != line:
                raise yaml.YAMLError(f"the key {key.value} is there twice, in lines {seen[key.value]} and {line}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# After the command line has been parsed.


def make_paths_local(config: Namespace) -> None:
    """Replaces a leading `~` of the paths in a parsed command line; raises ConfigurationError for an address."""
    for key in PATHS:
        if isinstance(path := config.get(key), (str, os.PathLike)):
            config[key] = type(path)(local_path(key, path))  # type: ignore[call-arg]  # str or Path
    _expand_home(config.get("trainer"))


def _expand_home(value: Any) -> Any:
    """Returns a value with the home folder for the `~` of its paths, also of loggers and callbacks."""
    if isinstance(value, Namespace):
        for key, item in vars(value).items():
            setattr(value, key, _expand_home(item))
    elif isinstance(value, list):
        return [_expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def check_values(command: str, values: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for the first value with which a run would fail later, or do nothing.

    Args:
        command: the subcommand.
        values: the parsed keys: sections as mappings, classes as `class_path` and `init_args`.
    """
    for section in SECTIONS:
        if not isinstance(values.get(section, {}), Mapping):
            raise ConfigurationError(f"{section}: {values[section]} is not allowed, give the keys below it")
    for key, (is_allowed, allowed) in _NUMBERS.items():
        value = _value(values, key)
        if isinstance(value, (int, float)) and not is_allowed(value):
            raise ConfigurationError(f"{key}: {value} is not allowed, give {allowed}")
    if str(_value(values, "trainer.devices")) == "0":
        raise ConfigurationError("trainer.devices: 0 is not allowed, give 1 or more")
    if _value(values, "trainer.barebones"):
        raise ConfigurationError("trainer.barebones: true is not allowed: the run would keep nothing that it trains")
    if _value(values, "trainer.enable_checkpointing") is False:
        remedy = "leave it out, or give trainer.fast_dev_run true for a try that writes no files"
        raise ConfigurationError(f"trainer.enable_checkpointing: false is not allowed, a run has checkpoints: {remedy}")
    for path, cls, given in _classes(values):
        # the parser lets null through
        for name, parameter in parameters_of(cls).items():
            if name in given and given[name] is None and _is_never_null(parameter):
                raise ConfigurationError(f"{path}.{name}: null is not allowed, give a value or leave it out")
    check_callbacks(_classes(_value(values, "trainer.callbacks"), "trainer.callbacks"))
    check_best(values.get("checkpoint") or {})
    if command == "fit" and _value(values, "model.weights_strict"):
        if not (_value(values, "model.weights") or values.get("ckpt_path")):
            raise ConfigurationError("model.weights_strict: true is about the file of model.weights, give it as well")
    is_balanced = _value(values, "model.class_weights") == "balanced"
    if command in ("fit", "find_lr") and is_balanced and _value(values, "data.init_args.balance"):
        remedy = "leave one of them out"
        raise ConfigurationError(f"model.class_weights: data.balance true shows each class equally often: {remedy}")
    if command == "fit" and _value(values, "model.schedule.init_args.lr_min") == "found":
        has_finder = any(base.__name__ == "LRFinder" for _, cls, _ in _classes(values) for base in cls.__mro__)
        if not (has_finder or _value(values, "trainer.fast_dev_run") or values.get("ckpt_path")):
            raise ConfigurationError("model.schedule.lr_min: found takes trainer.callbacks LRFinder, or give a number")


def _value(values: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a key; None if there is no such key."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _classes(value: Any, path: str = "") -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """Yields all classes that will be instantiated, each with its key and arguments."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _classes(item, path)
    elif isinstance(value, Mapping):
        module, _, name = str(value.get("class_path", "")).rpartition(".")
        if isinstance(cls := getattr(sys.modules.get(module), name, None), type):
            yield path, cls, value.get("init_args") or {}
        for key, item in value.items():
            yield from _classes(item, path if key == "init_args" else f"{path}.{key}".lstrip("."))


def _is_never_null(parameter: inspect.Parameter) -> bool:
    annotation = str(parameter.annotation)
    may_be_none = any(each in annotation for each in ("None", "Optional", "Any", "_empty"))
    return parameter.default not in (None, parameter.empty) and not may_be_none


def check_strategy(trainer: pl.Trainer) -> None:
    """Raises ConfigurationError for a strategy that splits the network over ranks, or spawns processes.

    The parameters of a split network lose their shapes, by which weight decay is assigned, and its checkpoints cannot
    be resumed exactly. Spawned processes do not know their rank, so each evaluates all images.
    """
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        raise ConfigurationError(
            f"trainer.strategy: {type(trainer.strategy).__name__} splits the network over ranks, which is not "
            "supported: give ddp, a residual network for CIFAR fits on any GPU"
        )
    # private in lightning 2.6; tests/callbacks/test_nonfinite_guard.py fails when it has another name
    if getattr(trainer.strategy, "_start_method", None) == "spawn":
        raise ConfigurationError("trainer.strategy: ddp_spawn is not supported, give ddp")


def seed_of(seed_everything: bool | int) -> int:
    """Returns the seed of a run, which the data source uses too; raises ConfigurationError when there is none."""
    if isinstance(seed_everything, bool) or seed_everything < 0:
        raise ConfigurationError(f"seed_everything: {seed_everything} is not allowed, give a number from 0")
    return seed_everything

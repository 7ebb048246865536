"""Turns an error of the command line into one line: jsonargparse often reports twenty lines of types."""

import argparse
import inspect
import re
import sys
import traceback
from collections.abc import Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException

from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import CheckpointError, ConfigurationError, UserError, memory_error, one_line
from cifar_resnets.support.signature import parameters_of
from cifar_resnets.support.text import did_you_mean
from cifar_resnets.training.schedules import Schedule

# keys with few classes, all of which are listed
BASES = {"data": ImageDataModule, "model.schedule": Schedule}

# Messages of jsonargparse below 4.54; tests/cli/test_parse_errors.py takes them from its parser.
UNKNOWN = r"[Uu]nrecognized arguments: --([^\s=]+)|[Oo]ption '([^']+)' is not accepted|not accept option '([^']+)'"
MISSING = r"the following arguments are required: (?:\w+\.)*(\w+)"
EXPECTED = r"^([ -]*)(?:Expected an? (.+?)(?:\. Got value.*)?|Not a valid (subclass) of .*)$"
GIVEN = r"Got value: (.*)|Given value: (?:NestedArg\(key='([^']*)', val=(.*)\)|(.*))"
CLASS = r"Problem with given class_path '([\w.]+)\.(\w+)'"
# what the parser cannot import, and why
IMPORT = (
    r"Problem with given class_path '([\w.]+)\.\w+':\n\W*(No module named .*|cannot import .*|module '.* has no .*)"
)
# an appended callback is also tried as the base class, whose complaint is of no use
BASE_CLASS = r"^ *- Problem with given class_path 'lightning.Callback':\n *Option '\w+' is not accepted\n"


def explain(message: str, keys: Iterable[str]) -> str:
    """Returns the key, what is wrong, and what is allowed in one line; else the first line of jsonargparse's message.

    Args:
        message: of jsonargparse.
        keys: all keys of the subcommand.
    """
    message = re.sub(BASE_CLASS, "", message, flags=re.MULTILINE)
    path = _path(message)
    if match := re.search(IMPORT, message):
        return f"{path}: cannot import {match[1]}: {match[2]}"
    if match := re.search(UNKNOWN, message):
        typed = [key for key in keys if not re.search(r"\.(class_path|init_args)\b", key)]
        key = _joined(path, *match.groups())
        return f"{key}: there is no such key{did_you_mean(key, [*typed, *_keys_of_class(path, message)])}"
    if match := re.search(MISSING, message):
        key = _joined(path, match[1])
        return f"{key} is missing: give --{key}, or a recipe with it by -c"
    if path and (expected := _expected(path, message)):
        return f"{path}: {_given(message)} is not allowed, give {' or '.join(expected)}"
    lines = re.sub(r'Parser key "[^"]+":', "", message).split("\n")
    line = next((" ".join(line.split()) for line in lines if line.strip()), "")
    return f"{path}: {line}" if path else line


def _joined(*parts: str | None) -> str:
    return ".".join(filter(None, parts))


def _path(message: str) -> str:
    """Returns the key as the user would write it; the message repeats that of a parent, also as part of the key."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    keys = [key.removeprefix(f"{keys[i - 1]}.") if i else key for i, key in enumerate(keys)]
    return ".".join(key for i, key in enumerate(keys) if i == 0 or key != keys[i - 1])


def _keys_of_class(path: str, message: str) -> list[str]:
    """Returns the keys of the innermost class in a message, which the parser has imported."""
    module, name = (re.findall(CLASS, message) or [("", "")])[-1]
    cls = getattr(sys.modules.get(module), name, None)
    return [f"{path}.{each}" for each in parameters_of(cls)] if isinstance(cls, type) else []


def _given(message: str) -> str:
    match = re.search(GIVEN, message)
    got, key, value, plain = match.groups() if match else ("the value", None, None, None)
    return (f"{key}={value}" if key else got or plain) or "an empty value"


def _expected(path: str, message: str) -> list[str]:
    found = re.findall(EXPECTED, message, re.MULTILINE)
    deepest = max((len(indent) for indent, *_ in found), default=0)
    # less indented is what an enclosing key expects
    return list(dict.fromkeys(_type(path, kind or "subclass") for indent, kind, _ in found if len(indent) == deepest))


def _type(path: str, kind: str) -> str:
    """Returns a type in the notation of a recipe."""
    if re.match("dot import path|instantiatable class|subclass", kind):
        names = sorted(cls.__name__ for cls in _subclasses(BASES[path])) if path in BASES else []
        return f"one of {', '.join(names)}" if names else f"a class or keys below {path}"
    if match := re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind):
        return {"NoneType": "null"}.get(match[1], match[1])
    return re.sub(r"typing\.Literal\[(.*)\]", lambda match: match[1].replace("'", ""), kind)


def _subclasses(base: type) -> list[type]:
    """Returns all classes below a base that are not abstract."""
    children: list[type] = base.__subclasses__()
    found = [cls for child in children for cls in (child, *_subclasses(child))]
    return [cls for cls in found if not inspect.isabstract(cls)]


def user_error(error: BaseException) -> UserError | None:
    """Returns the mistake of the user behind an exception, which jsonargparse may have wrapped; None for a bug."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if exhausted := memory_error(error):
        return exhausted
    if line := unknown_metric(str(error)) or _known_problem(error):
        return ConfigurationError(line)
    if isinstance(error, MisconfigurationException):
        return ConfigurationError(str(error))
    if part := being_restored(error):
        kind = type(error).__name__
        return CheckpointError(f"--ckpt_path: the checkpoint's {part} cannot be restored: {kind}: {one_line(error)}")
    # by name: importing torch._dynamo takes longer than parsing the command line
    if any(cls.__module__.startswith(("torch._dynamo", "torch._inductor")) for cls in type(error).__mro__):
        line = str(error).partition("\n")[0]
        return ConfigurationError(f"model.compile: {line}; leave it out, or install what is missing")
    return ConfigurationError(f"trainer: {error}") if is_of_trainer(error) else None


# what callbacks, loggers and PyTorch raise for a setting of the user, and what to say of it
_PROBLEMS = {
    r"The filesystem tracking backend": (
        "trainer.logger: MLflow 3 keeps runs in a database, give --trainer.logger.tracking_uri sqlite:///mlflow.db"
    ),
    r"Problem with given class_path '(?:[\w.]+\.)?(\w+)':\n[\s-]*(.*)": r"\1: \2",  # of its constructor
    # of a logger, or of one of several
    r"Subtypes: .*\.Logger'>.*\nErrors:\n(?:  - Not a valid subclass.*\n(?: {4}.*\n)*)?  - (?!Expected)(.*)": (
        r"trainer.logger: \1"
    ),
    r"Expected more than 1 value per channel when training": (
        "data.batch_size: 1 image on a rank is too few for batch normalisation behind a global pooling, give 2 or more"
    ),
    r"You restored a checkpoint with current_epoch=(\d+), but you have set Trainer\(max_epochs=(\d+)\)": (
        r"trainer.max_epochs: \2 is not allowed, the checkpoint has \1 epochs behind it: give \1 or more"
    ),
    r"You requested to check ([\d.]+) of the `(\w+)_dataloader`": (
        r"trainer.limit_\2_batches or overfit_batches: \1 of the batches is less than one, give their number"
    ),
    r"view size is not compatible with input tensor's size and stride": (
        "model.channels_last: true does not suit the optimizer or a callback, give false"
    ),
}


def _known_problem(error: BaseException) -> str | None:
    if isinstance(error, ImportError):  # a package that a callback needs
        return one_line(error)
    if isinstance(error, argparse.ArgumentError):  # see `explain`
        return None
    found = ((re.search(pattern, str(error)), line) for pattern, line in _PROBLEMS.items())
    return next((match.expand(line) for match, line in found if match), None)


def is_of_trainer(error: BaseException) -> bool:
    """Returns whether Lightning raised an error about what it was given, with a message for its user."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__")) if frames else ""
    # a RuntimeError may be anything, except in callbacks: EarlyStopping raises one for an unknown metric
    own = "lightning.pytorch.callbacks." if isinstance(error, RuntimeError) else "lightning.pytorch."
    return isinstance(error, (ValueError, RuntimeError)) and module.startswith(own)


def being_restored(error: BaseException) -> str | None:
    """Returns which part of a checkpoint Lightning was restoring when an error was raised; None if it was not.

    The table of `runs.checkpoint_schema` does not describe the states of all callbacks and loops.
    """
    # private in lightning 2.6; tests/cli/test_parse_errors.py fails when it has another name
    connector = "lightning.pytorch.trainer.connectors.checkpoint_connector"
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_code.co_name for frame in frames if frame.f_globals.get("__name__") == connector]
    parts = [name.removeprefix("restore_") for name in names if name.startswith(("restore_", "resume_start"))]
    return parts[-1].replace("_", " ") if parts else None


def unknown_metric(message: str) -> str | None:
    """Returns a line with the metrics that ModelCheckpoint or EarlyStopping can monitor; None for another message."""
    match = re.search(r"ModelCheckpoint\(monitor='(.+?)'\)` could not find .* metrics: \[(.*?)\]", message)
    match = match or re.search(r"Early stopping conditioned on metric `(.+?)` .* following: (.*)", message)
    if match is None:
        return None
    known = re.findall(r"[`']([^`']+)[`']", match[2])
    usual = ", ".join(name for name in known if name.startswith("val/"))
    return f"monitor: there is no metric {match[1]}{did_you_mean(match[1], known) or f', give one such as {usual}'}"

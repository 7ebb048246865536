"""What is wrong with a command line, in one line: the parser often reports twenty lines of types."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from cifar_resnets.cli.default_callbacks import known_keys
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.datamodule import ImageDataModule, parameter_names
from cifar_resnets.errors import ConfigurationError, UserError
from cifar_resnets.training.schedules import Schedule

MANY = 12  # names, more than which are not listed


def explain(message: str, keys: Collection[str], choices: Mapping[str, Sequence[str]]) -> str:
    """One line: the key, what is wrong with its value, what is allowed.

    Args:
        message: of an error of jsonargparse.
        keys: all keys there are, to say which was meant.
        choices: names of the classes that a key takes.
    """
    message = _without_base_class(message)
    path = ".".join(_innermost(re.findall(r'Parser key "([^"]+)"', message)))
    problem = _Problem(message, path, [*keys, *_keys_of_classes(path, message)], choices)
    for explanation in (_missing, _no_value, _stray, _misspelt, _no_class, _unknown_class, _no_section, _wrong_value):
        if line := explanation(problem):
            return line
    return " ".join(message.split())


def unknown_key(key: str, keys: Collection[str]) -> str:
    """Says which key a misspelt one may have been."""
    near = difflib.get_close_matches(key, set(keys) - {key}, n=3)
    return f"{key}: there is no such key" + (f", did you mean {' or '.join(near)}?" if near else "")


class _Problem(NamedTuple):
    message: str
    path: str  # of the key, as the user would write it
    keys: Sequence[str]
    choices: Mapping[str, Sequence[str]]

    @property
    def given(self) -> str:
        """The value, as far as the message tells it."""
        match = re.search(r"Got value: (.*)|Given value: (?:NestedArg\(key='[^']*', val=)?(.*)", self.message)
        value = (match[1] or (match[2] or "").removesuffix(")")) if match else "the value"
        return value or "an empty value"

    def key_below(self, section: str) -> str | None:
        """A key of a section, as an example."""
        return next((f"--{key}" for key in self.keys if key.startswith(f"{section}.")), None)


def is_of_trainer(error: BaseException) -> bool:
    """Whether Lightning itself has refused what it was given, in words for its user."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__")) if frames else ""
    # a RuntimeError may be anything, but for those of callbacks: EarlyStopping without its figure
    own = "lightning.pytorch.callbacks." if isinstance(error, RuntimeError) else "lightning.pytorch."
    return isinstance(error, (ValueError, RuntimeError)) and module.startswith(own)


def unknown_figure(message: str) -> str | None:
    """Says which figure a callback may have been meant to monitor; None for a message about something else.

    Args:
        message: of an error of Lightning's ModelCheckpoint or EarlyStopping, which lists every figure.
    """
    match = re.search(r"ModelCheckpoint\(monitor='(.+?)'\)` could not find .* metrics: \[(.*?)\]", message)
    match = match or re.search(r"Early stopping conditioned on metric `(.+?)` .* following: (.*)", message)
    if match is None:
        return None
    known = re.findall(r"[`']([^`']+)[`']", match[2])
    names = difflib.get_close_matches(match[1], known, n=3) or [name for name in known if name.startswith("val/")]
    return f"monitor: there is no figure {match[1]}, give one such as {', '.join(names)}"


def _missing(problem: _Problem) -> str | None:
    match = re.search(r"the following arguments are required: (?:\w+\.)*(\w+)", problem.message)
    key = ".".join(filter(None, [problem.path, match[1]])) if match else ""
    return match and f"{key} is missing: give --{key}, or a recipe with it by -c"


def _no_value(problem: _Problem) -> str | None:
    match = re.search(r"argument (\S+): expected (?:one|at least one) argument", problem.message)
    if match is None:
        return None
    flag = match[1].rpartition("/")[2]
    below = f", or after a key below it such as {key}" if (key := problem.key_below(flag.lstrip("-"))) else ""
    return f"{flag}: a value is missing after it{below}"


def _stray(problem: _Problem) -> str | None:
    """What is no key, or begins with other hyphens."""
    match = re.search(r"[Uu]nrecognized arguments: (\S+)", problem.message)
    if match is None or match[1].startswith("--"):
        return None
    given, name = match[1], match[1].lstrip("-\u2013\u2014")
    if name != given:
        return f"{given}: a key begins with two hyphens, give --{name}"
    return f"{given}: there is no key before it" + (f", give -c {given}" if given.endswith((".yaml", ".yml")) else "")


def _misspelt(problem: _Problem) -> str | None:
    if match := re.search(r"[Oo]ption '([^']+)' is not accepted|not accept option '([^']+)'", problem.message):
        return unknown_key(".".join(filter(None, [problem.path, match[1] or match[2]])), problem.keys)
    match = re.search(r"[Uu]nrecognized arguments: --([^\s=]+)", problem.message)
    return match and unknown_key(match[1], problem.keys)


def _no_class(problem: _Problem) -> str | None:
    """A key of a class that is still to be chosen."""
    match = re.search(r"Given value: NestedArg\(key='([^']+)'", problem.message)
    if match is None or "is abstract" not in problem.message:
        return None
    names = ", ".join(problem.choices.get(problem.path, ()))
    return f"{problem.path}.{match[1]}: a key of which class? Give --{problem.path} before it, one of {names}"


def _unknown_class(problem: _Problem) -> str | None:
    dotted = re.search(r"Expected a dot import path string: (.*)", problem.message)
    if dotted is None and "Not a valid subclass of" not in problem.message:
        return None
    start = f"{problem.path}: {repr(dotted[1]) if dotted else problem.given} is not"
    names = problem.choices.get(problem.path, ())
    if 0 < len(names) <= MANY:
        return f"{start} known, give one of {', '.join(names)}"
    if key := problem.key_below(problem.path):
        return f"{start} allowed, give the keys below it such as {key}"
    near = difflib.get_close_matches(dotted[1], names, n=3) if dotted else []
    return f"{start} known, " + (
        f"did you mean {' or '.join(near)}?" if near else "give the name of a class, or its import path"
    )


def _no_section(problem: _Problem) -> str | None:
    """A value where there are only keys below."""
    match = re.search(r"Unable to load config '(.*)'$", problem.message, re.MULTILINE)
    key = problem.key_below(problem.path)
    if match is None or key is None:
        return None
    return f"{problem.path}: {match[1]} is not allowed, give the keys below it such as {key}"


def _wrong_value(problem: _Problem) -> str | None:
    expected = _expected(problem.message)
    if not (problem.path and expected):
        return None
    return f"{problem.path}: {problem.given} is not allowed, give {' or '.join(expected)}"


def _without_base_class(message: str) -> str:
    # a callback that was appended is tried as the base class, too: what that does not take says nothing
    base = r"^ *- Problem with given class_path 'lightning.Callback':\n *Option '\w+' is not accepted\n"
    return re.sub(base, "", message, flags=re.MULTILINE)


def _innermost(path: Sequence[str]) -> list[str]:
    # the parser of a subcommand repeats the key of its parent, also as a part of its own
    path = [key.removeprefix(f"{path[i - 1]}.") if i else key for i, key in enumerate(path)]
    return [key for i, key in enumerate(path) if i == 0 or key != path[i - 1]]


def _keys_of_classes(path: str, message: str) -> Iterator[str]:
    """The keys of the classes that a message speaks of, which the parser has imported."""
    for module, name in re.findall(r"Problem with given class_path '([\w.]+)\.(\w+)'", message):
        if isinstance(cls := getattr(sys.modules.get(module), name, None), type):
            yield from (f"{path}.{parameter}" for parameter in inspect.signature(cls).parameters)


def _expected(message: str) -> list[str]:
    kinds = re.findall(r"^([ -]*)Expected an? (.+?)(?:\. Got value.*)?$", message, re.MULTILINE)
    deepest = max((len(indent) for indent, _ in kinds), default=0)
    # what is less indented was expected of an enclosing key
    return list(dict.fromkeys(_plain(kind) for indent, kind in kinds if len(indent) == deepest))


def _plain(kind: str) -> str:
    """A type as a user would call it."""
    if match := re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind):
        return {"NoneType": "null"}.get(match[1], match[1])
    if match := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return match[1].replace("'", "")
    return kind


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


def _subclasses(base: type) -> list[type]:
    """The classes that can be built, of a base."""
    children: list[type] = base.__subclasses__()
    found = [cls for child in children for cls in (child, *_subclasses(child))]
    return [cls for cls in found if not inspect.isabstract(cls)]

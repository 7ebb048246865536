"""What a checkpoint may hold: one table of its keys, checked before anything of it is used.

A checkpoint may come from a stranger. It holds tensors and plain values; nothing in it names a file outside its run's
folder, or an address. Classes that it names are checked where they would be imported, in `cli/checkpoint_args.py`.
"""

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifar_resnets.models.registry import weights_elsewhere
from cifar_resnets.runs.plain_values import describe, short

DEPTHS = ("depth", "depths", "layers", "num_layers", "num_blocks")  # arguments of networks that count layers
EVENTS = "events.out.tfevents.*"  # files of TensorBoard
KEY = "continuation"  # of the part of a checkpoint that callbacks/exact_resume.py adds


class Kind(NamedTuple):
    """What a single value must be: a description, and whether a value is that."""

    name: str
    fits: Callable[[Any], bool]


class Maybe(NamedTuple):
    """Nothing, or what a rule allows."""

    rule: Any


class Each(NamedTuple):
    """A mapping with any keys of a kind, and values of one rule, or of a function from the key to a rule."""

    key: Kind
    rule: Any


class Only(NamedTuple):
    """A mapping with these keys alone."""

    rules: dict[str, Any]


class Many(NamedTuple):
    """A list with values of one rule, one at least if not given otherwise."""

    rule: Any
    least: int = 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


ANY = Kind("a value", lambda value: True)
TEXT = Kind("a text", lambda value: type(value) is str and len(value) < 10_000)
NAME = Kind("a text in UTF-8", lambda value: TEXT.fits(value) and re.search("[\ud800-\udfff]", value) is None)
FLAG = Kind("true or false", lambda value: type(value) is bool)
COUNT = Kind("a number from 0", lambda value: type(value) is int and 0 <= value < 2**63)
NUMBER = Kind("a number", _is_number)
POSITIVE = Kind("a number above 0", lambda value: _is_number(value) and value > 0)
NOT_NEGATIVE = Kind("a number from 0", lambda value: _is_number(value) and value >= 0)
FLOAT = Kind("a number", lambda value: type(value) in (int, float))  # or NaN: the accuracy of a class without images
TENSOR = Kind("a tensor", lambda value: isinstance(value, Tensor))
SCALAR = Kind("a tensor of one number", lambda value: isinstance(value, Tensor) and value.ndim == 0)
CORRECT = Kind("counts of the classes", lambda value: isinstance(value, Tensor) and value.dtype is torch.int64)
RATE = Kind("a number", lambda value: _is_number(value) or SCALAR.fits(value))
PLAIN = Kind("a plain value", lambda value: value is None or isinstance(value, (bool, int, float, str)))
KEYS = Kind("keys with values", lambda value: isinstance(value, Mapping))
EVENT_FILE = Kind(
    f"the name of a file {EVENTS}",
    lambda value: TEXT.fits(value) and fnmatch.fnmatchcase(value, EVENTS) and value == PurePath(value).name,
)
VERSION = Kind("a version 2.x", lambda value: TEXT.fits(value) and re.fullmatch(r"2\.[\w.+-]{1,50}", value) is not None)
WEIGHTS = Kind(
    "balanced, or a list of numbers above 0",
    lambda value: value == "balanced" or (type(value) in (list, tuple) and all(map(POSITIVE.fits, value))),
)
NAMES = Kind("names", lambda value: all(map(TEXT.fits, value if type(value) in (list, tuple) else [value])))
PLACE = Kind("batch, validation or epoch", lambda value: value in ("batch", "validation", "epoch"))

CLASS = {"class_path": TEXT, "init_args?": KEYS}
# of `ImageClassifier`: tests/runs/test_checkpoint_schema.py compares them
HYPER_PARAMETERS = {
    "class_names": Many(NAME),
    "network": TEXT,
    "network_args?": KEYS,
    "init?": Many(TEXT, 0),
    "freeze?": Maybe(NAMES),
    "unfreeze_epoch?": Maybe(COUNT),
    "label_smoothing?": NOT_NEGATIVE,
    "class_weights?": Maybe(WEIGHTS),
    "optimizer?": TEXT,
    "lr?": POSITIVE,
    "weight_decay?": NOT_NEGATIVE,
    "decay_norm_and_bias?": FLAG,
    "norm_bias_scale?": POSITIVE,
    "layer_decay?": POSITIVE,
    "optimizer_args?": KEYS,
    "schedule?": CLASS,
    "channels_last?": FLAG,
    "compile?": Maybe(TEXT),
    "fast?": FLAG,
    "tta?": Many(TEXT, 0),
}
SOURCE = {
    **dict.fromkeys(("batch_size?", "eval_batch_size?", "split_seed?"), COUNT),
    "val_fraction?": NUMBER,
    "num_train?": Maybe(COUNT),
    "balance?": FLAG,
    "classes?": Maybe(Many(TEXT)),
    "augment?": Maybe(KEYS),
    **dict.fromkeys(("mean?", "std?"), Maybe(Many(NUMBER))),
    **dict.fromkeys(("root?", "background?", "resize?"), TEXT),
    "image_size?": Maybe(COUNT),
    **{"test_fraction?": Maybe(NUMBER), "split_file?": Maybe(TEXT), "urls?": Kind("null", lambda value: value is None)},
}
# of Lightning 2.6, which takes over the counters as attributes
COUNTS = Only({"ready": COUNT, "completed": COUNT, "started?": COUNT, "processed?": COUNT})
PROGRESS = Only({"total": COUNTS, "current": COUNTS, "is_last_batch?": FLAG})
LOOPS = {
    "epoch_loop.state_dict": {"_batches_that_stepped": COUNT},
    "epoch_loop.batch_progress": PROGRESS,
    "epoch_loop.scheduler_progress": PROGRESS,
    "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": PROGRESS, "zero_grad": PROGRESS}},
    "epoch_loop.manual_optimization.optim_step_progress": PROGRESS,
    "epoch_loop.val_loop.batch_progress": PROGRESS,
    "epoch_progress": PROGRESS,
    "state_dict": {"combined_loader?": Many(KEYS, 0)},
}
OF_IMAGES = {"state_dict?": KEYS, "batch_progress": PROGRESS}
CALLBACKS = {
    "ModelCheckpoint": {
        "dirpath": TEXT,
        "best_model_path": TEXT,
        "kth_best_model_path": TEXT,
        "last_model_path": TEXT,
        "best_model_score": Maybe(SCALAR),
        "current_score": Maybe(SCALAR),
        "kth_value": Maybe(SCALAR),
        "best_k_models": Each(TEXT, SCALAR),
    },
    "Dashboard": {"best": Maybe(NUMBER), "num_images": COUNT, "seconds": Many(NUMBER)},
    "NonfiniteGuard": {"num_skipped": COUNT},
    "Misclassified": {"same_images?": Many(COUNT, 0)},
    "EarlyStopping": {"wait_count": COUNT, "stopped_epoch": COUNT, "patience": COUNT, "best_score": SCALAR},
}
DIGEST = {"number": COUNT, "images": TEXT, "labels": TEXT}
CONTINUATION = {
    "place": PLACE,
    "should_stop": FLAG,
    "metrics": Each(TEXT, SCALAR),
    "row": Maybe({"metrics": Each(TEXT, FLOAT), "step": Kind("a number", lambda value: type(value) is int)}),
    "training": Many(
        {"loss": SCALAR, "correct": CORRECT, "images": CORRECT, "losses": Many(SCALAR, 0), "num_batches": COUNT}
    ),
    "rates": Each(TEXT, NUMBER),
    "configured": {"lr": POSITIVE, "schedule": CLASS},
    "settings?": Each(TEXT, PLAIN),
    "images?": Maybe({"train": DIGEST, "val": DIGEST}),
    "total_steps": COUNT,
    "epoch_steps?": COUNT,
    "run_dir": Maybe(TEXT),
    "logged": Maybe({"events": Each(EVENT_FILE, COUNT), "rows": COUNT}),
}
SCHEMA = {
    "epoch?": COUNT,
    "global_step?": COUNT,
    "pytorch-lightning_version?": VERSION,
    "val_acc?": Maybe(NUMBER),
    "state_dict?": Each(TEXT, TENSOR),
    "hyper_parameters?": HYPER_PARAMETERS,
    "data?": {"class_path": TEXT, "init_args": SOURCE},
    "loops?": {"fit_loop": LOOPS, "validate_loop?": OF_IMAGES, "test_loop?": OF_IMAGES, "predict_loop?": OF_IMAGES},
    "callbacks?": Each(TEXT, lambda name: CALLBACKS.get(name.partition("{")[0], KEYS)),
    "optimizer_states?": Many({"state": Each(COUNT, KEYS), "param_groups": Many({"lr": RATE, "params": Many(COUNT)})}),
    "lr_schedulers?": Many({"last_epoch": COUNT}),
    f"{KEY}?": CONTINUATION,
}


def problem_of(content: Mapping[str, Any]) -> str | None:
    """Returns the first key of a checkpoint of `fit` that holds something else than it should, and what; or None."""
    settings = (_no_settings(content[name], name) for name in ("hyper_parameters", "data") if name in content)
    found = chain(_problems(content, SCHEMA, "the checkpoint"), *settings, _unknown(content), _outside(content))
    return next(found, None) or _contradiction(content)


def _problems(value: Any, rule: Any, place: str) -> Iterator[str]:
    """Yields what a rule of the table forbids, with the dotted key."""
    if isinstance(rule, Maybe):
        yield from () if value is None else _problems(value, rule.rule, place)
    elif isinstance(rule, Kind):
        if not rule.fits(value):
            yield f"{short(place)} is {describe(value)}, not {rule.name}"
    elif isinstance(rule, Many):
        yield from _of_list(value, rule, place)
    elif not isinstance(value, Mapping):
        yield f"{short(place)} is {describe(value)}, not {KEYS.name}"
    elif isinstance(rule, Each):
        for key, item in value.items():
            yield from _problems(key, rule.key, f"a key of {place}")
            yield from _problems(item, rule.rule(str(key)) if callable(rule.rule) else rule.rule, f"{place}.{key}")
    else:
        if isinstance(rule, Only):
            yield from (
                f"{short(f'{place}.{key}')} is unknown" for key in value if not {key, f"{key}?"} & rule.rules.keys()
            )
            rule = rule.rules
        yield from _of_mapping(value, rule, "" if place == "the checkpoint" else f"{place}.")


def _of_list(value: Any, rule: Many, place: str) -> Iterator[str]:
    if not (type(value) in (list, tuple) and len(value) >= rule.least):
        yield f"{short(place)} is {describe(value)}, not a list of {getattr(rule.rule, 'name', KEYS.name)}"
        return
    for index, item in enumerate(value):
        yield from _problems(item, rule.rule, f"{place}.{index}")


def _of_mapping(value: Mapping[Any, Any], rules: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, rule in rules.items():
        if (name := key.removesuffix("?")) in value:
            yield from _problems(value[name], rule, f"{prefix}{name}")
        elif name == key:
            yield f"{prefix}{name} is missing"


def _no_settings(value: Any, place: str) -> Iterator[str]:
    """Yields what a recipe cannot hold, such as a tensor."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from (
                _no_settings(item, f"{place}.{key}") if TEXT.fits(key) else [f"{place} has a key that is no text"]
            )
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from _no_settings(item, f"{place}.{index}")
    elif not (value is None or FLAG.fits(value) or TEXT.fits(value) or _is_number(value)):
        yield f"{short(place)} is {describe(value)}, not a setting"


def _unknown(content: Mapping[str, Any]) -> Iterator[str]:
    """Yields hyperparameters that the network's class does not have, and those that name weights elsewhere."""
    if isinstance(given := content.get("hyper_parameters"), Mapping):
        for name in given:
            if f"{name}?" not in HYPER_PARAMETERS and name not in HYPER_PARAMETERS:
                yield f"hyper_parameters.{short(str(name))} is unknown to this version"
        for name in weights_elsewhere(given.get("network_args")):
            yield f"hyper_parameters.network_args.{short(name)} names weights elsewhere, a checkpoint has its own"


def _outside(content: Mapping[str, Any]) -> Iterator[str]:
    """Yields paths of a ModelCheckpoint that lead out of its folder."""
    callbacks = content.get("callbacks")
    for name, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and isinstance(folder := state.get("dirpath"), str):
            paths = [state.get(key) for key in ("best_model_path", "kth_best_model_path", "last_model_path")]
            paths += state["best_k_models"] if isinstance(state.get("best_k_models"), Mapping) else []
            for path in paths:
                inside = str(path).removeprefix(folder)
                if inside != path and ".." in PurePath(inside).parts:
                    yield f"callbacks.{short(name)} names {short(str(path))}, a file outside of its folder"


def _too_large(content: Mapping[str, Any]) -> str | None:
    """Returns the argument of a network that would take hours to build, or fill the memory: each layer has weights."""
    weights = content["state_dict"].values()
    most = max(1000, sum(value.numel() for value in weights))
    for key, value in (content["hyper_parameters"].get("network_args") or {}).items():
        numbers = [each for each in (value if isinstance(value, (list, tuple)) else [value]) if type(each) is int]
        if max(numbers, default=0) > most or (key in DEPTHS and sum(numbers) > len(weights)):
            return str(key)
    return None


def _contradiction(content: Mapping[str, Any]) -> str | None:
    """Returns what is wrong in a checkpoint whose single keys are right."""
    classes = content["hyper_parameters"]["class_names"] if "hyper_parameters" in content else None
    other = content["data"]["init_args"].get("classes") if "data" in content else None
    if classes and other and list(classes) != list(other):
        return f"hyper_parameters.class_names {short(str(classes))} are not data.init_args.classes, {short(str(other))}"
    weights = content["hyper_parameters"].get("class_weights") if classes else None
    if classes and isinstance(weights, (list, tuple)) and len(weights) != len(classes):
        return f"hyper_parameters.class_weights are {len(weights)} numbers for {len(classes)} classes"
    is_ours = classes and ":" not in content["hyper_parameters"]["network"]  # the user trusts a function of a module
    if is_ours and "state_dict" in content and (key := _too_large(content)):
        return f"hyper_parameters.network_args.{short(key)} is larger than the network that the weights are of"
    for state in content[KEY]["training"] if KEY in content else ():
        if classes is not None and not len(state["correct"]) == len(state["images"]) == len(classes):
            return f"{KEY}.training counts other classes than hyper_parameters.class_names"
    return None

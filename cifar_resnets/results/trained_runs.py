"""Finds the runs below a folder, with the settings and the accuracy of each."""

import errno
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cifar_resnets.results.comparison import flat_settings
from cifar_resnets.results.csv_files import read_history
from cifar_resnets.results.json_files import Evaluation, read_config, read_evaluation, read_json, read_record
from cifar_resnets.results.run_folder import Files, natural_order

EVALUATIONS = ("validate", "test", "predict")  # subcommands that train nothing
SECTIONS = ("seed_everything", "trainer", "model", "data", "name", "ckpt_path")  # the last one is near the end
NOT_COMPARED = (
    *("seed_everything", "name", "ckpt_path", "weights_only", "on_changed_data"),
    "model.class_names",  # those of the data
    *("explain", "last_checkpoint", "checkpoint.dirpath", "checkpoint.verbose"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.benchmark"),
    *("trainer.default_root_dir", "trainer.logger", "trainer.log_every_n_steps", "trainer.profiler"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary"),
)
# keys that were added since version 0.1.0, with the value that stands for what was done before
ADDED = {
    **dict.fromkeys(("model.class_weights", "model.freeze", "model.unfreeze_epoch"), "null"),
    **dict.fromkeys(("model.pretrained", "model.weights_strict", "data.init_args.balance"), "false"),
    **dict.fromkeys(("data.init_args.test_fraction", "data.init_args.split_file"), "null"),
    **dict.fromkeys(("data.init_args.augment.crop_ratio", "data.init_args.augment.crop_scale"), "null"),
    **{"model.layer_decay": "1.0", "data.init_args.resize": "squash"},
}
CIFAR = "cifar_resnets.data.cifar."  # wherever it comes from, the images are the same
FINDER = ".LRFinder"
LR_MIN = "model.schedule.init_args.lr_min"


@dataclass(frozen=True)
class Setup:
    """The setup of a run from `config.yaml`; the settings as `comparable_settings` returns them."""

    name: str
    network: str
    seed: int
    settings: dict[str, str]


@dataclass(frozen=True)
class TrainedRun:
    """A run as a collection shows it.

    Args:
        started: time of the last start or resume, in seconds since 1970.
        accuracy: of the test images, from 0 to 1.
        val_accuracy: the best of the training, from 0 to 1; None if unknown.
        problem: why there is no accuracy; empty if there is one.
        notes: what else could not be read.
    """

    folder: Path
    setup: Setup | None = None
    started: float = 0.0
    commit: str = ""
    accuracy: float = math.nan
    val_accuracy: float | None = None
    problem: str = ""
    notes: list[str] = field(default_factory=list)


def find_runs(roots: Iterable[Path]) -> list[TrainedRun]:
    """Finds the runs in folders and below them, at any depth and each once: `version_N`, or with a `run.json`.

    Links to folders are followed within a folder that is given. A link that leads out of it, and a folder without read
    permission, is returned as a run with a problem: a link to /proc never ends.
    """
    runs: list[TrainedRun] = []
    seen: set[str] = set()

    def note(error: OSError) -> None:
        runs.append(TrainedRun(Path(error.filename), problem=f"it cannot be read: {error.strerror}"))

    roots = list(roots)
    inside = tuple(os.path.join(os.path.realpath(root), "") for root in roots)
    for root in roots:
        for folder, inner, files in os.walk(root, onerror=note, followlinks=True):
            real = os.path.realpath(folder)
            if not os.path.join(real, "").startswith(inside):
                runs.append(TrainedRun(Path(folder), problem=f"it is a link out of {root}, give it as well"))
                inner.clear()
                continue
            is_run = re.fullmatch(r"version_\d+", os.path.basename(real)) is not None or "run.json" in files
            if is_run and real not in seen:
                runs.append(read_trained(Path(folder)))
            if is_run or real in seen:
                inner.clear()
            seen.add(real)
            inner.sort(key=natural_order)  # which of two links is followed must not depend on the file system
    return sorted({run.folder: run for run in runs}.values(), key=lambda run: natural_order(str(run.folder)))


def read_trained(folder: Path) -> TrainedRun:
    """Reads a run's folder; missing and damaged files become its `problem` or a note."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return TrainedRun(folder, problem=f"it cannot be read: {os.strerror(errno.EACCES)}")
    files = Files(folder)
    record = files.read("run.json", read_record)
    subcommand = next((word for word in record.command[1:] if not word.startswith("-")), "") if record else ""
    if subcommand in EVALUATIONS:
        return TrainedRun(folder, problem=f"it was made by `{subcommand}`, which trains nothing")
    setup = files.read("config.yaml", read_setup)
    if setup is None or record is None:
        missing = " and no ".join(name for name in ("config.yaml", "run.json") if not (folder / name).exists())
        problem = "; ".join([*files.notes, *([f"there is no {missing}"] if missing else [])])
        return TrainedRun(folder, setup, problem=problem)
    started = files.read("run.json", read_last_start) or 0.0
    run = TrainedRun(folder, setup, started, record.commit, notes=files.notes)
    result = files.read("test.json", read_evaluation)
    if problem := _problem(run, result):
        return replace(run, problem=problem, notes=[])
    assert result is not None and result.total.accuracy is not None
    return replace(run, accuracy=result.total.accuracy, val_accuracy=_val_accuracy(files))


def _problem(run: TrainedRun, result: Evaluation | None) -> str:
    """Returns why a run has no accuracy; empty if it has one."""
    if run.notes:
        return "; ".join(run.notes)
    if result is not None and result.total.accuracy is None:
        return "test.json is about no images"
    if result is not None and not result.complete:
        return f"test.json is about {result.total.images:,} images, not all, by trainer.limit_test_batches"
    if result is not None and _modified(run.folder / "test.json") >= run.started:
        return ""
    newest = time.localtime(max(map(_modified, run.folder.iterdir())))
    # the second one is a finished run that was resumed
    why = "there is no test.json" if result is None else "test.json is older than its last start"
    return f"it has not finished: {why}; last written {time.strftime('%Y-%m-%d %H:%M:%S', newest)}"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a run that is training replaces its files
        return 0.0


def read_last_start(path: Path) -> float:
    """Reads from `run.json` when a run was last started or resumed, in seconds since 1970."""
    record = read_json(path)
    starts = [record["started"], *(again["started"] for again in record.get("resumed", []))]
    return max(datetime.strptime(start, "%Y-%m-%dT%H:%M:%S%z").timestamp() for start in starts)


def _val_accuracy(files: Files) -> float | None:
    history = files.read("metrics.csv", lambda path: read_history(path, files.notes)) or {}
    known = history["val/acc"].y.tolist() if "val/acc" in history else []
    return max((each for each in known if 0 <= each <= 1), default=None)


def read_setup(path: Path) -> Setup:
    """Reads `config.yaml`, and raises ValueError if it is cut off, which may still be YAML."""
    config = read_config(path)
    if missing := [key for key in SECTIONS if key not in config]:
        raise ValueError(f"it is not whole, there is no {missing[0]}")
    seed, network = config["seed_everything"], str(config["model"]["network"])
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"its seed_everything, {seed}, is no number")
    return Setup(str(config["name"] or network), network, seed, comparable_settings(config))


def comparable_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings that distinguish runs, by their dotted keys; the callbacks as one class with arguments.

    Left out are the seed (not that of the split, which selects the images), paths of folders except an image folder's,
    the checkpoint that a run was resumed from, devices and strategy (a batch is divided among devices; the precision
    counts), and settings of display and storage. With an LRFinder the learning rate is `found`, and so is a number that
    replaced `lr_min: found`. Keys that earlier versions lack are left out while they change nothing.
    """
    callbacks = config["trainer"].get("callbacks") or []
    as_one: dict[str, Any] = {"class_path": ", ".join(each["class_path"] for each in callbacks) or "none"}
    if callbacks:
        as_one["init_args"] = {str(index): each.get("init_args") for index, each in enumerate(callbacks)}
    settings = flat_settings({**config, "trainer": {**config["trainer"], "callbacks": as_one}})
    if any(each["class_path"].endswith(FINDER) for each in callbacks):
        settings["model.lr"] = "found"
        settings |= {LR_MIN: "found"} if settings.get(LR_MIN, "null") != "null" else {}
    places = ["data.init_args.root", "data.init_args.urls"] if settings["data.class_path"].startswith(CIFAR) else []
    left_out = [*NOT_COMPARED, *places]
    compared = {key: value for key, value in settings.items() if ADDED.get(key) != value}
    return {key: value for key, value in compared.items() if not any(_is_below(key, each) for each in left_out)}


def _is_below(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")

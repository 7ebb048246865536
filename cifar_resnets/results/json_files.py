"""Reads the JSON, YAML and NumPy files of a run, and checks what a report uses of them.

A reader raises one of `run_folder.DAMAGE` for a file that is damaged, or another one.
"""

import json
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.support.bounded_yaml import load_bounded
from cifar_resnets.support.former_names import current_names

MISTAKES = ("index", "label", "predicted", "p_label", "p_predicted", "images")
LARGEST_CONFIG = 2**20  # bytes; the parser takes seconds for more
LARGEST_JSON = 2**24  # bytes; lists take twenty times as much memory
LARGEST_ARRAYS = 2**31  # bytes
KINDS = {"integers": "iu", "floats": "f"}  # of NumPy's types


@dataclass(frozen=True)
class Proportion:
    """Correctly classified images of a class, or of all; without images, accuracy and interval are None."""

    name: str
    correct: int
    images: int
    accuracy: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Evaluation:
    """The contents of `test.json` or `val.json`; losses in nats; not complete with `trainer.limit_test_batches`.

    Version 0.1.0 wrote neither the balanced accuracy nor the macro F1 score.
    """

    checkpoint: str
    total: Proportion
    classes: list[Proportion]
    loss: float | None
    top5: float | None
    complete: bool = True
    balanced_accuracy: float | None = None
    macro_f1: float | None = None


@dataclass(frozen=True)
class Mistakes:
    """Misclassified images, the most confidently wrong ones first.

    Args:
        index: position in the data (m,).
        label, predicted: classes (m,).
        p_label, p_predicted: their probabilities (m,).
        images: uint8 (m, h, w, 3).
        heat: heatmaps of the predicted and of the true class, each (m, h, w) from 0 to 1; None if not computed.
        source: layer and method of the heatmaps.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    p_label: NDArray[np.float32]
    p_predicted: NDArray[np.float32]
    images: NDArray[np.uint8]
    heat: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    source: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Record:
    """How a run was started, from `run.json`: empty where the file has no value; `changed` since the commit of git."""

    command: list[str] = field(default_factory=list)
    started: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    platform: str = ""
    commit: str = ""
    changed: list[str] = field(default_factory=list)
    seed: str = ""


def read_config(path: Path) -> dict[str, Any]:
    """Reads `config.yaml`, with the class paths of today."""
    return _mapping(current_names(_mapping(load_bounded(read_config_text(path)))))


def read_config_text(path: Path) -> str:
    """Reads `config.yaml` as it is."""
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"it is larger than {LARGEST_CONFIG:,} bytes")
    return path.read_text(encoding="utf-8")


def read_record(path: Path) -> Record:
    """Reads `run.json`."""
    data = _mapping(read_json(path))
    git = data.get("git") or {}
    versions = {"cifar_resnets": data.get("cifar_resnets"), "python": data.get("python"), **data.get("packages", {})}
    return Record(
        command=_texts(data.get("command", [])),
        started=str(data.get("started", "")),
        versions={name: str(version) for name, version in versions.items() if version is not None},
        platform=str(data.get("platform", "")),
        commit=str(git.get("commit", "")),
        changed=_texts(git.get("changed", [])),
        seed="" if data.get("seed") is None else str(data["seed"]),
    )


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError("it holds something else than a list of words")
    return [str(each) for each in value]


def read_evaluation(path: Path) -> Evaluation:
    """Reads `test.json` or `val.json`."""
    data = _mapping(read_json(path))
    classes = [_proportion(row) for row in data["classes"]]
    total = _proportion({**data, "name": "all"})
    loss, top5 = (None if data[key] is None else float(data[key]) for key in ("loss", "top5"))
    checkpoint = str(data["checkpoint"])  # "None" where the weights of the last step were tested
    complete = data.get("complete") is not False  # version 0.1.0 does not say
    known = {name: _part(data[name]) for name in ("balanced_accuracy", "macro_f1") if data.get(name) is not None}
    return Evaluation("" if checkpoint == "None" else checkpoint, total, classes, loss, top5, complete, **known)


def _proportion(row: Mapping[str, Any]) -> Proportion:
    accuracy, interval = row["accuracy"], row["interval"]
    return Proportion(
        str(row["name"]),
        int(row["correct"]),
        int(row["images"]),
        None if accuracy is None else _part(accuracy),
        None if interval is None else (_part(interval[0]), _part(interval[1])),
    )


def _part(value: Any) -> float:
    part = float(value)
    if not -1e-9 <= part <= 1 + 1e-9:  # NaN too
        raise ValueError(f"an accuracy of {part:g} is not from 0 to 1")
    return part


def read_mistakes(path: Path) -> Mistakes:
    """Reads `mistakes.npz`."""
    with _load(path) as file:
        return Mistakes(**_arrays({name: file[name] for name in MISTAKES}))


def read_gallery(path: Path) -> Mistakes:
    """Reads `gallery.npz`."""
    with _load(path) as file:
        arrays = _arrays({name: file[name] for name in MISTAKES})
        heat = tuple(file[name].astype(np.float32) for name in ("heat_predicted", "heat_true"))
        source = (str(file["layer"]), str(file["method"]))
    if not len(heat[0]):  # there was none, or nothing to compute it for
        return Mistakes(**arrays)
    if any(each.shape != arrays["images"].shape[:3] for each in heat):
        raise ValueError("heat and images are of different sizes")
    return Mistakes(**arrays, heat=(heat[0], heat[1]), source=source)


def _load(path: Path) -> Any:
    """Opens an archive of arrays; a megabyte of it may stand for a gigabyte of zeros."""
    with zipfile.ZipFile(path) as archive:
        if sum(record.file_size for record in archive.infolist()) > LARGEST_ARRAYS:
            raise ValueError(f"its arrays are larger than {LARGEST_ARRAYS:,} bytes")
    return np.load(path, allow_pickle=False)


def _arrays(arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays after checking their shapes and types."""
    images = arrays["images"]
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:]:
        raise ValueError("its images are no uint8 array (m, h, w, 3)")
    if any(len(array) != len(images) for array in arrays.values()):
        raise ValueError("its arrays are of different lengths")
    for name, kind in zip(MISTAKES, ("integers",) * 3 + ("floats",) * 2, strict=False):
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in KINDS[kind]:
            raise ValueError(f"its {name} is no array of {kind} (m,)")
    return arrays


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises OSError or ValueError for one that is missing, damaged, or made to exhaust a reader."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")  # reading a pipe would never end
    if status.st_size > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it is no mapping of keys to values")
    return value

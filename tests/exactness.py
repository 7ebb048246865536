"""Runs that are killed at a chosen point, and whether what a resumed run leaves is what an uninterrupted one does."""

from __future__ import annotations

import csv
import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from cifar_resnets.runs.checkpoint_file import read_checkpoint_file

# everything that has a state of its own: 200 images, 5 steps an epoch
RICH = """
name: rich
model:
  network: cifar_resnet20
  network_args: {depths: [2], widths: [8], stem_width: 8, drop_path_rate: 0.3}
  lr: 0.05
  class_weights: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
  schedule: {class_path: OneCycle, init_args: {lr_min: found}}
data:
  class_path: Digits
  init_args:
    batch_size: 40
    num_train: 200
    balance: true
    augment: {crop_padding: 2, flip: true, cutout_size: 6, mixup_alpha: 0.4}
last_checkpoint: {every_n_steps: 1}
trainer:
  accelerator: cpu
  max_epochs: 3
  callbacks:
    - {class_path: LRFinder, init_args: {num_steps: 20}}
    - {class_path: EMAWeightAveraging, init_args: {decay: 0.9}}
    - {class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 9}}
"""
CLOCK = ("time/", "epoch_seconds", "images_per_second")


def kill_when(owner: type, method: str, call: int) -> None:
    """Kills this process and its other ranks with signal 9 at the end of a call of a method, counted from 1."""
    die_when(owner, method, call, functools.partial(os.killpg, 0, signal.SIGKILL))


def die_when(owner: type, method: str, call: int, die: Callable[[], object]) -> None:
    """Does something at the end of a call of a method, counted from 1."""
    original, calls = getattr(owner, method), 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = original(*args, **kwargs)
        calls += 1
        if calls == call:
            die()
        return result

    setattr(owner, method, counting)


def differences(one: Path, other: Path, checkpoints: Sequence[str] = ("last.ckpt", "best.ckpt")) -> list[str]:
    """What differs in two runs' folders, but for clocks and paths: checkpoints, table, scalars of TensorBoard."""
    found = []
    for name in checkpoints:
        parts = (dict(_leaves(read_checkpoint_file(run / "checkpoints" / name))) for run in (one, other))
        found += [f"{name}: {key}" for key in _unequal(*parts)]
    found += [f"metrics.csv: {row}" for row in _unequal(_table(one), _table(other))]
    return found + [f"TensorBoard: {tag}" for tag in _unequal(_scalars(one), _scalars(other))]


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)

    missing = [f"{key} is in one alone" for key in one.keys() ^ other.keys()]
    both = one.keys() & other.keys()
    return missing + [f"{key}: {one[key]} {other[key]}" for key in both if not same(one[key], other[key])]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}/{index}")
    elif not any(word in place for word in (*CLOCK, "logged", "run_dir", "path", "Dashboard", "best_k_models")):
        yield place, value


def _table(run: Path) -> dict[str, Any]:
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in csv.DictReader(file)]
    return {f"row {index}": row for index, row in enumerate(rows)}


def _scalars(run: Path) -> dict[str, Any]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, None if tag.startswith(CLOCK) else event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }

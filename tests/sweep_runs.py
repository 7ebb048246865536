"""Folders of runs of a sweep, with what a collection reads of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

FINDER = {
    "class_path": "cifar_resnets.callbacks.lr_finder.LRFinder",
    "init_args": {"method": "valley", "num_steps": 100},
}
ONE_CYCLE = {
    "class_path": "cifar_resnets.training.schedules.OneCycle",
    "init_args": {"peak_fraction": 0.3, "div_factor": 25.0, "lr_min": None},
}
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu",
        "strategy": "auto",
        "devices": "auto",
        "num_nodes": 1,
        "precision": None,
        "logger": None,
        "callbacks": None,
        "max_epochs": 10,
        "log_every_n_steps": None,
        "benchmark": None,
        "default_root_dir": "logs",
    },
    "model": {
        "network": "cifar_resnet20",
        "network_args": None,
        "lr": 0.05,
        "schedule": {"class_path": "cifar_resnets.training.schedules.Cosine", "init_args": {"warmup_epochs": 0.0}},
    },
    "data": {
        "class_path": "cifar_resnets.data.cifar.CIFAR10",
        "init_args": {"root": "data", "batch_size": 128, "split_seed": 0},
    },
    "name": "tiny",
    "explain": {"report": True},
    "checkpoint": {"dirpath": None, "monitor": "val/acc"},
    "last_checkpoint": {"dirpath": None},
    "ckpt_path": None,
    "weights_only": None,
}


def configuration(**changes: Any) -> dict[str, Any]:
    """A run's configuration, with other values of some dotted keys, `model.lr` for example."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        *sections, last = key.split(".")
        inner = config
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return config


def write_trained(
    folder: Path,
    seed: int = 0,
    accuracy: float | None = 0.5,
    val_accuracy: float | None = 0.6,
    started: str = "2026-11-21T10:00:00+0000",
    commit: str = "0123456789abcdef",
    command: str = "fit",
    **changes: Any,
) -> Path:
    """Writes a run's folder, and returns it; an accuracy of None is a run that has not finished."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(seed_everything=seed, **changes), sort_keys=False))
    words = ["cifar-resnets", command, "-c", "tiny.yaml"]
    record = {"command": words, "started": started, "git": {"commit": commit, "changed": []}, "seed": seed}
    (folder / "run.json").write_text(json.dumps(record))
    rows = [] if val_accuracy is None else [f"0,9,{val_accuracy / 2},\n", f"1,19,{val_accuracy},\n", "1,19,,0.7\n"]
    (folder / "metrics.csv").write_text("".join(["epoch,step,val/acc,train/loss\n", *rows]))
    if accuracy is not None:
        whole = {"correct": round(accuracy * 1000), "images": 1000, "accuracy": accuracy, "interval": [0.0, 1.0]}
        head = {"stage": "test", "checkpoint": "best.ckpt", "network": "cifar_resnet20"}
        (folder / "test.json").write_text(json.dumps({**head, **whole, "top5": None, "loss": 1.0, "classes": []}))
    return folder

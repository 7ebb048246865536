"""Folders of runs for the tests of reports: all files that there may be, with figures that fit each other."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from cifar_resnets.evaluation.metrics import wilson_interval

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</style><b>&amp;",
    "}body{display:none",
    "猫",
)
ANIMALS = ("cat", "dog", "bird")
LAYERS = """\
layer,type,kernel_size,padding,stride,image_size_in,jump_in,jump_out,image_size_out,receptive_field_in,\
receptive_field_out,in_channels,out_channels,parameters,dilation,groups,min_receptive_field_in,\
min_receptive_field_out,start,multiply_adds,exceeds_image
conv1,Conv2d,3,1,1,32,1,1,32,1,3,3,16,432,1,1,1,3,0.5,442368,false
bn1,BatchNorm2d,1,0,1,32,1,1,32,3,3,16,16,32,1,1,3,3,0.5,0,false
global_pool.pool,AdaptiveAvgPool2d,32,0,1,32,1,32,1,3,inf,16,16,0,1,1,3,34,16,0,true
fc,Linear,1,0,1,1,32,32,1,34,34,16,10,170,1,1,34,34,16,160,true
"""


def write_run(
    folder: Path,
    names: Sequence[str] = ANIMALS,
    num_test: int = 60,
    num_epochs: int = 3,
    seed: int = 0,
    skill: float = 2.0,
    size: int = 8,
    num_gallery: int = 4,
    paths: Sequence[str] = (),
) -> Path:
    """Writes a run's folder, and returns it. The images are the same for the same seed of numpy's data, 0.

    With paths, which take turns, all images are files.
    """
    folder.mkdir(parents=True)
    labels = np.random.default_rng(0).integers(0, len(names), num_test)
    rng = np.random.default_rng(seed + 1)
    logits = rng.normal(size=(num_test, len(names)))
    logits[np.arange(num_test), labels] += skill
    logits[:, 1] += 1.5 * (labels == 0)  # the first class is taken for the second
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    files = [f"{number}/{paths[number % len(paths)]}" for number in range(num_test)] if paths else None
    write_predictions(folder, names, labels, probabilities, paths=files)
    write_evaluation(folder, names, labels, probabilities)
    write_history(folder, names, num_epochs, rng)
    write_record(folder, seed, num_epochs)
    write_pictures(folder, labels, probabilities, size, num_gallery, files)
    write_search(folder)
    (folder / "layers.csv").write_text(LAYERS)
    return folder


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_predictions(
    folder: Path,
    names: Sequence[str],
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    stage: str = "test",
    paths: Sequence[str] | None = None,
) -> None:
    predicted = probabilities.argmax(axis=1)
    rows = [
        [index, *([] if paths is None else [paths[index]]), names[label], names[other], *(f"{p:.6f}" for p in row)]
        for index, (label, other, row) in enumerate(zip(labels, predicted, probabilities, strict=True))
    ]
    header = ["index", *([] if paths is None else ["path"]), "label", "predicted", *(f"p({name})" for name in names)]
    write_rows(folder / f"{stage}_predictions.csv", header, rows)


def write_evaluation(folder: Path, names: Sequence[str], labels: NDArray[Any], probabilities: NDArray[Any]) -> None:
    right = probabilities.argmax(axis=1) == labels

    def proportion(of: NDArray[Any]) -> dict[str, Any]:
        correct, images = int(right[of].sum()), int(of.sum())
        known = images > 0
        interval = list(wilson_interval(correct, images)) if known else None
        return {"accuracy": correct / images if known else None, "correct": correct, "images": images,
                "interval": interval}  # fmt: skip

    classes = [{"name": name, **proportion(labels == label)} for label, name in enumerate(names)]
    head = {"stage": "test", "checkpoint": "logs/a/version_0/checkpoints/best.ckpt", "network": "cifar_resnet20"}
    figures = {**proportion(np.ones_like(right)), "top5": None, "loss": 0.25, "classes": classes}
    (folder / "test.json").write_text(json.dumps({**head, **figures}))


def write_history(folder: Path, names: Sequence[str], num_epochs: int, rng: np.random.Generator) -> None:
    """As Lightning's CSVLogger does: two rows an epoch, and one of the test."""
    header = ["epoch", "step", "lr", "momentum", "train/loss", "train/acc", "val/loss", "val/acc", "test/acc"]
    header += [f"val_class_acc/{name}" for name in names] + ["time/epoch_seconds", "time/images_per_second"]
    rows: list[list[Any]] = []
    for epoch in range(num_epochs):
        done = (epoch + 1) / num_epochs
        step, noise = 10 * epoch + 9, rng.normal(0, 0.02, 2)
        loss, accuracy = 2.3 * np.exp(-3 * done), 0.9 - 0.8 * np.exp(-4 * done)
        classes = [f"{accuracy:.4f}"] * len(names)
        rows.append([epoch, step, *[""] * 4, loss + 0.2 + noise[0], accuracy - abs(noise[1]), "", *classes, "", ""])
        rate, momentum = 0.1 * np.sin(np.pi * done), 0.95 - 0.1 * np.sin(np.pi * done)
        rows.append([epoch, step, rate, momentum, loss, accuracy, *["", "", ""], *[""] * len(names), 12.5, 400 + epoch])
    rows.append([num_epochs, 10 * num_epochs, *[""] * 6, 0.9, *[""] * len(names), "", ""])
    write_rows(folder / "metrics.csv", header, rows)


def write_record(folder: Path, seed: int, num_epochs: int) -> None:
    record = {
        "command": ["/usr/bin/cifar-resnets", "fit", "-c", "my recipe.yaml", "--seed_everything", str(seed)],
        "started": f"2026-11-21T10:0{seed % 10}:00+0000",
        "cifar_resnets": "0.1.0",
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "packages": {"torch": "2.15.0", "timm": None},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "changed": [" M cifar_resnets/cli/train.py"]},
        "seed": seed,
    }
    (folder / "run.json").write_text(json.dumps(record))
    schedule = {"class_path": "cifar_resnets.training.schedules.OneCycle", "init_args": {"peak_epoch": None}}
    model = {"network": "cifar_resnet20", "network_args": None, "optimizer": "SGD", "lr": 0.1, "weight_decay": 5e-4}
    data = {"class_path": "cifar_resnets.data.digits.Digits", "init_args": {"batch_size": 64, "num_train": 400}}
    config = {"seed_everything": seed, "model": {**model, "schedule": schedule}, "data": data}
    trainer = {"max_epochs": num_epochs, "max_steps": -1, "precision": None}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "trainer": trainer}))


def write_search(folder: Path) -> None:
    rates = np.geomspace(1e-4, 10, 40)
    losses = 2.3 - 1.5 * np.exp(-((np.log10(rates) + 0.5) ** 2)) + np.where(rates > 2, rates, 0)
    rows = [[0, step, rate, loss + 0.05 * (-1) ** step, loss] for step, (rate, loss) in enumerate(zip(rates, losses))]  # noqa: B905
    write_rows(folder / "lr_finder.csv", ["run", "step", "lr", "loss", "smoothed_loss"], rows)


def write_pictures(
    folder: Path,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    size: int,
    num_gallery: int,
    paths: Sequence[str] | None = None,
) -> None:
    predicted, everything = probabilities.argmax(axis=1), np.arange(len(labels))
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(probabilities[wrong, labels[wrong]], kind="stable")][:500]
    images = np.random.default_rng(0).integers(0, 255, (len(labels), size, size, 3), dtype=np.uint8)
    arrays = {
        "index": order,
        "label": labels[order],
        "predicted": predicted[order],
        "p_label": probabilities[everything, labels][order].astype(np.float32),
        "p_predicted": probabilities.max(axis=1)[order].astype(np.float32),
        "images": images[order],
    }
    if paths is not None:
        arrays["path"] = np.array([paths[index] for index in order])
    np.savez(folder / "mistakes.npz", **arrays)
    ramp = np.linspace(0, 1, size * size, dtype=np.float16).reshape(size, size)
    shown = {name: array[:num_gallery] for name, array in arrays.items()}
    heat = np.broadcast_to(ramp, (len(shown["index"]), size, size))
    np.savez(folder / "gallery.npz", **shown, heat_predicted=heat, heat_true=heat[:, ::-1], layer="layer3",
             method="gradcam")  # fmt: skip

"""The dashboard: what is in the event file and in metrics.csv, and that a run with it is the run without it."""

from __future__ import annotations

import csv
import random
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from finder_runs import Fidgety, digits, foreign, forgetful, small, trained
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from support import TINY_NETWORK
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from cifar_resnets.callbacks import dashboard
from cifar_resnets.callbacks.dashboard import Dashboard, Stopwatch, scalars_layout

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

NAMES = [str(digit) for digit in range(10)]


class Script(pl.Callback):
    """Gives each validation of a fit the accuracy that it names."""

    def __init__(self, *accuracies: float) -> None:
        self.accuracies = list(accuracies)

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            right = round(self.accuracies.pop(0) * 100)
            confusion = torch.zeros(10, 10, dtype=torch.long)
            confusion[0, :2] = torch.tensor([right, 100 - right])
            pl_module.val_metrics.confusion.compute = lambda: confusion


def fit(folder: Path, *callbacks: pl.Callback, module: Any = None, data: Any = None, ckpt: Any = None, **changes: Any):
    """A fit of two epochs of five steps with the dashboard and both loggers."""
    loggers = [TensorBoardLogger(folder, name="", version=""), CSVLogger(folder, name="", version="")]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2}
    quiet |= {"enable_checkpointing": False, "logger": loggers}
    trainer = pl.Trainer(callbacks=[Dashboard(), *callbacks], **quiet | changes)
    trainer.fit(module or small(), data or digits(), ckpt_path=ckpt)
    return trainer


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 6)) for event in events(folder).Scalars(tag)]


def rows(folder: Path, column: str) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row[column]]


def layout_of(folder: Path) -> dict[str, dict[str, list[str]]]:
    [event] = events(folder).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {part.title: {chart.title: list(chart.multiline.tag) for chart in part.chart} for part in layout.category}


def graph_of(folder: Path) -> dict[str, Any]:
    return {node.name: node for node in GraphDef.FromString(events(folder).Graph().SerializeToString()).node}


# The layout.


def test_each_chart_finds_its_tags_and_no_other(tmp_path: Path) -> None:
    names = ["cat", "cat (big)+", "a.b", "axb", "<b>", "über $x$", "[", "c", "8", "\\"]
    fit(tmp_path, module=small_with(names))
    tags = events(tmp_path).Tags()["scalars"]
    # the server's own way to find tags: tensorboard/plugins/custom_scalar/custom_scalars_plugin.py
    found = {
        title: [tag for tag in tags if re.compile("|".join(f"({each})" for each in patterns)).match(tag)]
        for charts in layout_of(tmp_path).values()
        for title, patterns in charts.items()
    }
    assert {title: sorted(each) for title, each in found.items()} == {
        "loss": ["train/loss", "val/loss"],
        "accuracy": ["train/acc", "val/acc"],
        "balanced accuracy": ["val/acc_balanced"],
        "macro F1": ["val/f1_macro"],
        "learning rate": ["lr"],
        "momentum": ["momentum"],
        "images per second": ["time/images_per_second"],
        "seconds per epoch": ["time/epoch_seconds"],
        "all classes": sorted(f"val_class_acc/{name}" for name in names),
    } | {name: [f"train_class_acc/{name}", f"val_class_acc/{name}"] for name in names}
    assert {"val/acc_best", "val/acc_top5"} <= set(tags)


def small_with(names: list[str]) -> Any:
    from cifar_resnets.classifier import ImageClassifier

    return ImageClassifier(names, network_args=TINY_NETWORK)


def test_many_classes_are_shown_ten_a_chart() -> None:
    names = [f"class {i:03}" for i in range(23)]
    charts = scalars_layout(names)["validation accuracy of each class"]
    assert list(charts) == ["class 000 to class 009", "class 010 to class 019", "class 020 to class 022"]
    assert [len(tags) for _, tags in charts.values()] == [10, 10, 3]
    tags = [tag for _, chart in charts.values() for tag in chart]
    assert all(re.match(tag, f"val_class_acc/{name}") for tag, name in zip(tags, names, strict=True))


def test_test_accuracy_is_in_the_chart_of_accuracies() -> None:
    assert "^test/acc$" in scalars_layout(NAMES)["training"]["accuracy"][1]


# The graph.


def test_graph_shows_layers_shapes_and_settings(tmp_path: Path) -> None:
    fit(tmp_path)
    nodes = graph_of(tmp_path)
    tops = dict.fromkeys(name.split("/")[0] for name in nodes)
    assert list(tops) == [
        "images",
        "conv1",
        "bn1",
        "act1",
        "layer1",
        "global_pool",
        "flatten",
        "head_drop",
        "fc",
        "logits",
    ]
    conv = nodes["layer1/0/conv1"]
    assert (conv.op, list(conv.input)) == ("Conv2d", ["act1"])
    assert [dim.size for dim in conv.attr["_output_shapes"].list.shape[0].dim] == [1, 8, 32, 32]
    assert conv.attr["settings"].s == b"8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False"
    assert list(nodes["layer1/0/shortcut"].input) == ["act1", "layer1/0/bn2"]


class Unruly(nn.Sequential):
    """Fails on a single image, such as a network that needs two views."""

    def forward(self, images):
        if len(images) == 1:
            raise ValueError("two images are needed\nat least")
        return super().forward(images)


def test_a_network_without_a_graph_trains_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    network = Unruly(nn.Flatten(), nn.Linear(3072, 10))
    fit(tmp_path, module=small(network=network), data=foreign(), max_epochs=1)
    [message] = [r.getMessage() for r in caplog.records if r.name == "cifar_resnets.callbacks.dashboard"]
    assert message == "graph tab: cifar_resnet20 cannot be shown: two images are needed"
    assert "graph" not in [tag for tag, there in events(tmp_path).Tags().items() if there is True]
    assert len(scalars(tmp_path, "train/loss")) == 1


def test_compiled_network(tmp_path: Path) -> None:
    module = small()
    module.network.compile(backend="eager")
    fit(tmp_path, module=module, max_epochs=1)
    assert "layer1/0/conv1" in graph_of(tmp_path)


# The best accuracy.


def test_best_accuracy_stands_beside_each_accuracy(tmp_path: Path) -> None:
    fit(tmp_path, Script(0.3, 0.5, 0.4, 0.5, 0.6), max_epochs=5)
    assert scalars(tmp_path, "val/acc") == [(4, 0.3), (9, 0.5), (14, 0.4), (19, 0.5), (24, 0.6)]
    assert scalars(tmp_path, "val/acc_best") == [(4, 0.3), (9, 0.5), (14, 0.5), (19, 0.5), (24, 0.6)]
    best, accuracy = rows(tmp_path, "val/acc_best"), rows(tmp_path, "val/acc")
    assert [(row["step"], row["epoch"]) for row in best] == [(row["step"], row["epoch"]) for row in accuracy]
    assert [float(row["val/acc_best"]) for row in best] == pytest.approx([0.3, 0.5, 0.5, 0.5, 0.6])


@pytest.mark.parametrize(
    "changes",
    [
        {"val_check_interval": 2},
        {"val_check_interval": 1, "accumulate_grad_batches": 2},
        {"max_epochs": -1, "max_steps": 7},
        {"check_val_every_n_epoch": 2, "max_epochs": 4},
        {"limit_train_batches": 3},
    ],
)
def test_at_the_same_steps_whenever_is_validated(tmp_path: Path, changes: dict[str, Any]) -> None:
    fit(tmp_path, **changes)
    accuracy, best = scalars(tmp_path, "val/acc"), scalars(tmp_path, "val/acc_best")
    assert [step for step, _ in best] == [step for step, _ in accuracy] != []
    highest = [max(value for _, value in accuracy[: i + 1]) for i in range(len(accuracy))]
    assert [value for _, value in best] == highest
    assert len(scalars(tmp_path, "time/epoch_seconds")) == len(scalars(tmp_path, "train/loss"))


def test_a_resumed_run_goes_on_with_its_best(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=False)
    fit(tmp_path / "first", Script(0.3, 0.7), keep, enable_checkpointing=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Dashboard"]
    assert state["best"] == pytest.approx(0.7)  # as in checkpoints of version 0.1.0
    fit(tmp_path / "second", Script(0.4, 0.8), max_epochs=4, ckpt=tmp_path / "last.ckpt")
    assert scalars(tmp_path / "second", "val/acc_best") == [(14, 0.7), (19, 0.8)]
    # the epoch whose validation the checkpoint follows ends in the second run
    assert [step for step, _ in scalars(tmp_path / "second", "time/epoch_seconds")] == [9, 14, 19]
    assert "layer1/0/conv1" in graph_of(tmp_path / "second")
    assert "training" in layout_of(tmp_path / "second")


def test_another_run_begins_anew(tmp_path: Path) -> None:
    again = Dashboard()
    again.best = 0.99
    trainer = pl.Trainer(
        callbacks=[again, Script(0.2)],
        **{"max_epochs": 1, "logger": CSVLogger(tmp_path, name="", version=""), "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
    )
    trainer.fit(small(), digits())
    assert again.best == pytest.approx(0.2)
    trainer.validate(small(), digits(), verbose=False)
    assert again.best == pytest.approx(0.2)
    assert len(rows(tmp_path, "val/acc_best")) == 1


# Time and throughput.


class Clock(pl.Callback):
    """A clock of its own: 2 s before a batch, 3 s in it, 100 s in each validation, 1,000 s until the epoch ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(dashboard.time, "monotonic", lambda: self.now)

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.now += 2

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.now += 3

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.now += 2 * (batch_idx < 4)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.now += 100

    def on_validation_end(self, trainer, pl_module) -> None:
        self.now += 1000


@pytest.mark.parametrize(
    ("changes", "validations"), [({}, 1), ({"val_check_interval": 1}, 5), ({"limit_val_batches": 0}, 0)]
)
def test_validation_is_part_of_the_epoch_but_not_of_the_throughput(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], validations: int
) -> None:
    fit(tmp_path, Clock(monkeypatch), **changes)
    steps = [step for step, _ in scalars(tmp_path, "train/loss")]
    assert scalars(tmp_path, "time/epoch_seconds") == [(step, 25 + 1100 * validations) for step in steps]
    assert scalars(tmp_path, "time/images_per_second") == [(step, 200 / 25) for step in steps]
    assert [float(row["time/epoch_seconds"]) for row in rows(tmp_path, "train/loss")] == [25 + 1100 * validations] * 2


def test_a_run_that_is_resumed_within_an_epoch_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = ModelCheckpoint(tmp_path, filename="step", every_n_train_steps=2, save_top_k=-1, save_last=False)
    first = Clock(monkeypatch)
    fit(tmp_path / "first", first, keep, max_epochs=-1, max_steps=2, enable_checkpointing=True, limit_val_batches=0)
    fit(tmp_path / "second", Clock(monkeypatch), max_epochs=1, ckpt=tmp_path / "step.ckpt")
    [(_, seconds)], [(_, speed)] = (
        scalars(tmp_path / "second", f"time/{tag}") for tag in ("epoch_seconds", "images_per_second")
    )
    # as without an interruption: five batches of 3 s, 2 s before each; validation comes on top of the epoch
    assert (seconds, speed) == (1125, 200 / 25)


def test_a_stopwatch_that_is_stopped_twice_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 4.0, 10.0, 15.0])
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: next(times))
    watch = Stopwatch()
    watch.pause()
    watch.restart()
    watch.resume()
    watch.pause()
    watch.pause()
    watch.resume()
    watch.pause()
    assert watch.seconds == 9
    assert not watch.is_running


# No trace, nothing where nothing is wanted, two ranks.


@pytest.mark.parametrize("network", [None, forgetful, lambda: nn.Sequential(Fidgety(), *forgetful())])
def test_weights_are_the_same_without_it(tmp_path: Path, network) -> None:
    def run(name: str, *callbacks: pl.Callback) -> dict[str, Any]:
        module = small(network=network and network())
        random.seed(0)
        np.random.seed(0)
        logger = TensorBoardLogger(tmp_path / name, name="", version="")
        options = {"limit_val_batches": 1.0, "num_sanity_val_steps": 2, "logger": logger}
        final = trained(tmp_path / f"{name}.ckpt", module, digits(), *callbacks, **options)
        drawn = torch.rand(1), torch.tensor([random.random(), np.random.rand()])  # where the generators stand now
        return final | {"/state_dict/torch": drawn[0], "/state_dict/others": drawn[1]}

    torch.manual_seed(0)
    with_it, without = run("with", Dashboard()), run("without")
    assert events(tmp_path / "with").Graph().node
    compared = [key for key in without if key.startswith(("/state_dict", "/optimizer_states"))]
    assert len(compared) > 10
    for key in compared:
        same = (
            torch.equal(with_it[key], without[key]) if torch.is_tensor(without[key]) else with_it[key] == without[key]
        )
        assert same, key


def test_nothing_in_a_dry_run_and_nothing_without_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for changes in ({"fast_dev_run": True}, {"logger": False}):
        trainer = fit(tmp_path / "logs", **changes)
        assert not [name for name in trainer.callback_metrics if name.startswith("time/")]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_other_loggers_get_the_figures_too(tmp_path: Path) -> None:
    fit(tmp_path, logger=CSVLogger(tmp_path, name="", version=""))
    assert len(rows(tmp_path, "val/acc_best")) == len(rows(tmp_path, "time/images_per_second")) == 2
    assert not list(tmp_path.glob("events*"))


def test_loaders_that_are_not_ours(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        callbacks=[Dashboard()],
        **{"max_epochs": 1, "logger": TensorBoardLogger(tmp_path, name="", version=""), "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"},
    )
    trainer.fit(small(), foreign(), foreign())
    assert "layer1/0/conv1" in graph_of(tmp_path)
    assert len(scalars(tmp_path, "val/acc_best")) == len(scalars(tmp_path, "time/images_per_second")) == 1


@pytest.mark.process
def test_two_ranks_write_once_and_count_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=30))
    fit(tmp_path, Clock(monkeypatch), strategy=fork, devices=2)
    assert scalars(tmp_path, "time/images_per_second") == [(4, 8.0), (9, 8.0)]
    (_, first), (_, second) = accuracy = scalars(tmp_path, "val/acc")
    assert scalars(tmp_path, "val/acc_best") == [(4, first), (9, max(first, second))]
    assert [step for step, _ in accuracy] == [4, 9]
    assert "layer1/0/conv1" in graph_of(tmp_path)
    assert list(layout_of(tmp_path)) == list(scalars_layout(NAMES))
    assert len(list(tmp_path.glob("events*"))) == 1

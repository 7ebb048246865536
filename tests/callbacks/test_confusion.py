"""The figures of an evaluation in runs: read back from event files, JSON and CSV, and compared with scikit-learn."""

from __future__ import annotations

import csv
import gc
import io
import json
import logging
import math
import weakref
from pathlib import Path

import lightning.pytorch as pl
import matplotlib
import numpy as np
import pytest
import torch
from finder_runs import changed, digits, foreign, perceptron, small, snapshot, trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix
from support import read_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_resnets.callbacks import confusion
from cifar_resnets.callbacks.collectors import Outputs
from cifar_resnets.callbacks.confusion import Confusion, Evaluated, class_accuracy
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.errors import ConfigurationError

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

FIGURES = ["calibration", "class_accuracy", "matrix", "pairs", "precision_recall"]
QUICK = {"limit_train_batches": 2, "limit_val_batches": 1.0, "max_epochs": 1}


PLOTS = ["plot_confusion", "plot_class_accuracy", "plot_confused_pairs", "plot_reliability", "plot_precision_recall"]


@pytest.fixture
def seen(monkeypatch) -> dict[str, tuple]:
    """What the figures are made of, which are empty ones: most tests are not about how they look."""
    given: dict[str, tuple] = {}

    def noting(name: str):
        return lambda *args: given.__setitem__(name, args) or Figure((0.1, 0.1))

    for name in PLOTS:
        monkeypatch.setattr(confusion, name, noting(name))
    return given


def varied() -> ImageClassifier:
    """A classifier that says something else of each image, unlike a deep network before its training."""
    module = small(network=perceptron())
    with torch.no_grad():
        module.network[-1].weight.mul_(8)
    return module


def tags(stage: str) -> list[str]:
    return [f"{stage}_confusion/{name}" for name in FIGURES]


def board(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False)


def images(folder: Path) -> dict[str, list[int]]:
    """The steps of each tag of images."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: [image.step for image in events.Images(tag)] for tag in sorted(events.Tags()["images"])}


def fit(folder: Path, callback: Confusion | None = None, *others: pl.Callback, data=None, **changes) -> pl.Trainer:
    callbacks = [callback or Confusion(), *others]
    run = trainer(*callbacks, **{"logger": board(folder)} | QUICK | changes)
    run.fit(small(), data or digits())
    return run


def expected(module: ImageClassifier, loader) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, in the simplest words."""
    module.eval()
    with torch.no_grad():
        parts = [(labels, module(images).double().softmax(dim=1)) for images, labels in loader]
    labels, probabilities = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    return labels, probabilities


def check_files(folder: Path, stage: str, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Compares what was written with scikit-learn and torchmetrics."""
    rows = list(csv.reader((folder / f"{stage}_predictions.csv").open(newline="")))
    names = list("0123456789")
    assert rows[0] == ["index", "label", "predicted", *(f"p({name})" for name in names)]
    assert [row[:3] for row in rows[1:]] == [
        [str(i), names[label], names[best]]
        for i, (label, best) in enumerate(zip(labels, probabilities.argmax(axis=1), strict=True))
    ]
    np.testing.assert_allclose(np.array(rows[1:])[:, 3:].astype(float), probabilities, atol=2e-6)
    found = read_json(folder / f"{stage}_calibration.json")
    both = torch.from_numpy(probabilities), torch.from_numpy(labels)
    assert found["ece"] == pytest.approx(multiclass_calibration_error(*both, num_classes=10).item(), abs=1e-5)
    assert sum(each["images"] for each in found["bins"]) == len(labels) and len(found["bins"]) == 15
    assert found["ece"] > 0.02
    for label, each in enumerate(found["classes"]):
        area = average_precision_score(labels == label, probabilities[:, label])
        assert (each["name"], each["average_precision"]) == (names[label], pytest.approx(area, abs=1e-5))
    counts = confusion_matrix(labels, probabilities.argmax(axis=1), labels=list(range(10)))
    for pair in found["pairs"]:
        true, predicted = int(pair["true"]), int(pair["predicted"])
        assert pair["images"] == counts[true, predicted] and true != predicted
        assert pair["percent"] == pytest.approx(100 * counts[true, predicted] / counts[true].sum())
    assert len(found["pairs"]) == min(10, np.count_nonzero(counts - np.diag(counts.diagonal())))


# What there is after a run.


@pytest.mark.usefixtures("seen")
def test_a_fit_has_its_figures_and_no_files_of_numbers(tmp_path):
    fit(tmp_path, max_epochs=3)
    assert images(tmp_path) == dict.fromkeys(tags("val"), [2, 4, 6])
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if "events" not in path.name)
    assert names == ["figures", *(f"figures/val_confusion_{name}.png" for name in FIGURES), "hparams.yaml"]


@pytest.mark.parametrize("stage", ["val", "test"])
def test_an_evaluation_has_figures_and_numbers(tmp_path, stage):
    run, module, data = trainer(Confusion(), logger=board(tmp_path), limit_val_batches=1.0), varied(), digits()
    evaluate, loader = (run.validate, data.val_dataloader) if stage == "val" else (run.test, data.test_dataloader)
    evaluate(module, data, verbose=False)
    assert images(tmp_path) == dict.fromkeys(tags(stage), [0])
    check_files(tmp_path, stage, *expected(module, loader()))
    [shown] = EventAccumulator(str(tmp_path)).Reload().Images(f"{stage}_confusion/matrix")
    with Image.open(io.BytesIO(shown.encoded_image_string)) as image:
        assert (image.width, image.height) == (shown.width, shown.height)
        assert 500 < image.width < 800 and 500 < image.height < 800
        file = Image.open(tmp_path / "figures" / f"{stage}_confusion_matrix.png")
        np.testing.assert_array_equal(image, file)


def test_the_figures_are_given_the_numbers_of_the_run(tmp_path, seen):
    module, data = varied(), digits()
    trainer(Confusion(), logger=board(tmp_path)).test(module, data, verbose=False)
    labels, probabilities = expected(module, data.test_dataloader())
    counts = confusion_matrix(labels, probabilities.argmax(axis=1), labels=list(range(10)))
    np.testing.assert_array_equal(seen["plot_confusion"][0], counts)
    np.testing.assert_array_equal(counts, module.evaluations["test"].confusion)
    np.testing.assert_allclose(seen["plot_class_accuracy"][0], module.evaluations["test"].class_accuracy)
    report = module.evaluations["test"].to_dict(module.class_names)
    np.testing.assert_allclose(seen["plot_class_accuracy"][1], [each["interval"] for each in report["classes"]])
    assert seen["plot_confused_pairs"][0][0].count == (counts - np.diag(counts.diagonal())).max()
    assert seen["plot_reliability"][0].counts.sum() == len(labels) == 364
    assert len(seen["plot_precision_recall"][0]) == 10
    assert all(args[-1] == module.class_names for name, args in seen.items() if name != "plot_reliability")


# When.


@pytest.mark.usefixtures("seen")
def test_every_n_epochs_and_the_last(tmp_path):
    fit(tmp_path, Confusion(every_n_epochs=2), max_epochs=5)
    assert images(tmp_path)["val_confusion/matrix"] == [4, 8, 10]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_epochs": 20}, [4 * i for i in range(1, 11)]),
        ({"max_epochs": None, "max_steps": 3}, [2, 3]),
        ({"num_sanity_val_steps": 2}, [2]),
        ({"limit_val_batches": 0}, []),
        ({"num_sanity_val_steps": 2, "max_epochs": 2, "check_val_every_n_epoch": 5}, []),
        ({"max_epochs": 2, "val_check_interval": 0.5}, [1, 2, 3, 4]),
        ({"max_epochs": 5, "check_val_every_n_epoch": 2}, [4, 8]),
        ({"max_epochs": 2, "check_val_every_n_epoch": None, "val_check_interval": 3}, [3]),
    ],
)
@pytest.mark.usefixtures("seen")
def test_steps_of_the_figures(tmp_path, changes, steps):
    fit(tmp_path, **changes)
    assert images(tmp_path).get("val_confusion/matrix", []) == steps


@pytest.mark.usefixtures("seen")
def test_a_dry_run_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback, module, data = Confusion(), small(), digits()
    callback.run_dir = tmp_path
    run = trainer(callback, logger=board(tmp_path), fast_dev_run=True)
    run.fit(module, data)
    run.validate(module, data, verbose=False)
    run.test(module, data, verbose=False)
    assert list(tmp_path.rglob("*.*")) == []


class StopAfter(pl.Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epoch


@pytest.mark.usefixtures("seen")
def test_a_run_that_ends_early_shows_its_last_validation(tmp_path):
    fit(tmp_path / "a", Confusion(every_n_epochs=2), StopAfter(3), max_epochs=9)
    assert images(tmp_path / "a")["val_confusion/matrix"] == [4, 6]
    stop = EarlyStopping("val/acc", patience=1, min_delta=2.0)
    fit(tmp_path / "b", Confusion(every_n_epochs=50), stop, max_epochs=9)
    assert images(tmp_path / "b")["val_confusion/matrix"] == [4]
    # the last validation was before the last epoch: the figures are those of its weights
    fit(tmp_path / "c", Confusion(every_n_epochs=50), StopAfter(5), max_epochs=20, check_val_every_n_epoch=2)
    assert images(tmp_path / "c")["val_confusion/matrix"] == [8]


@pytest.mark.usefixtures("seen")
def test_an_interrupted_run_leaves_nothing_for_the_next(tmp_path):
    class Interrupt(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            if trainer.current_epoch == 1:
                raise RuntimeError("interrupted")

    callback = Confusion(every_n_epochs=5)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(tmp_path / "a", callback, Interrupt(), max_epochs=9)
    fit(tmp_path / "b", callback, limit_val_batches=0)
    assert images(tmp_path / "a") == images(tmp_path / "b") == {}


# Surroundings.


@pytest.mark.usefixtures("seen")
def test_loaders_of_others(tmp_path):
    module, run = varied(), trainer(Confusion(), logger=board(tmp_path), **QUICK)
    run.fit(module, foreign(), foreign())
    run.test(module, foreign(), verbose=False)
    assert list(images(tmp_path)) == tags("test") + tags("val")
    check_files(tmp_path, "test", *expected(module, foreign()))


@pytest.mark.usefixtures("seen")
def test_limited_batches(tmp_path):
    data = digits(eval_batch_size=50)
    run = trainer(Confusion(), logger=board(tmp_path), limit_test_batches=2)
    run.test(small(), data, verbose=False)
    rows = (tmp_path / "test_predictions.csv").read_text().splitlines()
    assert len(rows) - 1 == sum(len(labels) for _, labels in list(data.test_dataloader())[:2]) < 110


@pytest.mark.usefixtures("seen")
def test_without_a_logger_there_are_files_if_a_folder_is_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, data = varied(), digits()
    trainer(Confusion()).test(module, data, verbose=False)
    assert list(tmp_path.iterdir()) == []
    callback = Confusion()
    callback.run_dir = tmp_path / "run" / "deep"
    trainer(callback).test(module, data, verbose=False)
    check_files(callback.run_dir, "test", *expected(module, data.test_dataloader()))
    assert len(list((callback.run_dir / "figures").iterdir())) == 5


@pytest.mark.usefixtures("seen")
def test_several_loggers_and_the_folder_of_the_run(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv", ""), board(tmp_path / "a"), board(tmp_path / "b")]
    callback = Confusion()
    callback.run_dir = tmp_path / "run"
    fit(tmp_path, callback, logger=loggers)
    assert images(tmp_path / "a") == images(tmp_path / "b") == dict.fromkeys(tags("val"), [2])
    assert {path.parent for path in tmp_path.rglob("*.png")} == {tmp_path / "run" / "figures"}


@pytest.mark.usefixtures("seen")
def test_half_precision(tmp_path):
    run, module, data = (
        trainer(Confusion(), logger=board(tmp_path), precision="bf16-mixed", **QUICK),
        varied(),
        digits(),
    )
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert list(images(tmp_path)) == tags("test") + tags("val")
    found = np.genfromtxt(tmp_path / "test_predictions.csv", delimiter=",", skip_header=1)[:, 3:]
    np.testing.assert_allclose(found, expected(module, data.test_dataloader())[1], atol=0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.usefixtures("seen")
def test_logits_that_are_not_finite_are_a_line_in_the_log(tmp_path, caplog, value):
    class Broken(ImageClassifier):
        def forward(self, images):
            logits = super().forward(images)
            logits[0, 3] = value
            return logits

    with caplog.at_level(logging.WARNING):
        trainer(Confusion(), logger=board(tmp_path)).test(small(Broken), digits(), verbose=False)
    lines = [record.message for record in caplog.records if "Confusion" in record.message]
    assert lines == ["Confusion: 1 of 364 test images have logits that are not finite, nothing is drawn"]
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("*.json"))


@pytest.mark.usefixtures("seen")
def test_a_masked_class_is_finite(tmp_path):
    class Masked(ImageClassifier):
        def forward(self, images):
            return super().forward(images).index_fill(1, torch.tensor([3]), -math.inf)

    trainer(Confusion(), logger=board(tmp_path)).test(small(Masked), digits(), verbose=False)
    assert list(images(tmp_path)) == tags("test")


@pytest.mark.process
def test_two_ranks_draw_once_what_one_rank_draws(tmp_path):
    data = digits(eval_batch_size=100)  # 364 images, batches that differ in size
    fork = DDPStrategy(start_method="fork", process_group_backend="gloo")
    module = varied()
    for name, changes in (("one", {}), ("two", {"strategy": fork, "devices": 2})):
        trainer(Confusion(), logger=board(tmp_path / name), **changes).test(module, data, verbose=False)
        assert images(tmp_path / name) == dict.fromkeys(tags("test"), [0])
        check_files(tmp_path / name, "test", *expected(module, data.test_dataloader()))
    files = [sorted(path.name for path in (tmp_path / name / "figures").iterdir()) for name in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 5


@pytest.mark.usefixtures("seen")
@pytest.mark.process
def test_two_ranks_fit_and_end_early(tmp_path):
    fork = DDPStrategy(start_method="fork", process_group_backend="gloo")
    fit(tmp_path, Confusion(every_n_epochs=2), StopAfter(3), strategy=fork, devices=2, max_epochs=9)
    assert images(tmp_path) == dict.fromkeys(tags("val"), [4, 6])


# What it leaves.


def test_it_changes_nothing(tmp_path):
    states = []
    for callbacks in ([], [Confusion(every_n_epochs=1)]):
        module = small()
        torch.manual_seed(3)
        np.random.seed(3)
        run = trainer(*callbacks, **{"logger": board(tmp_path / str(len(callbacks)))} | QUICK | {"max_epochs": 2})
        run.fit(module, digits())
        states.append(snapshot(module))
    assert changed(*states) == []
    assert len(images(tmp_path / "1")) == 5 and images(tmp_path / "0") == {}


def test_nothing_accumulates(tmp_path, monkeypatch):
    settings, callback = dict(matplotlib.rcParams), Confusion(every_n_epochs=3)
    figures, held, genuine = [], [], confusion.publish

    def noting(trainer, folder, tag, figure, step) -> None:
        figures.append(weakref.ref(figure))
        genuine(trainer, folder, tag, figure, step)

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            held.append(len(callback._collector))

    monkeypatch.setattr(confusion, "publish", noting)
    fit(tmp_path, callback, Watch(), max_epochs=7)
    gc.collect()
    assert held == [1, 1, 0, 1, 1, 0, 0]
    assert [figure() for figure in figures] == [None] * 15
    assert dict(matplotlib.rcParams) == settings


# Numbers without a run.


def test_classes_without_images_have_no_numbers(tmp_path):
    labels = torch.tensor([0, 0, 2])
    probabilities = torch.eye(3)[[0, 1, 2]] * 0.625 + 0.125
    evaluated = Evaluated(Outputs(labels, probabilities), ["a", "b", "c"])
    evaluated.write(tmp_path, "test")
    found = json.loads((tmp_path / "test_calibration.json").read_text(), parse_constant=pytest.fail)
    assert found["classes"][1] == {"name": "b", "average_precision": None}
    assert found["pairs"] == [{"true": "a", "predicted": "b", "images": 1, "percent": 50.0}]
    [filled] = [each for each in found["bins"] if each["images"]]
    assert filled == {
        **{"low": pytest.approx(11 / 15), "high": pytest.approx(12 / 15), "images": 3},
        **{"confidence": pytest.approx(0.75), "accuracy": pytest.approx(2 / 3)},
    }
    assert {each["accuracy"] for each in found["bins"] if not each["images"]} == {None}
    values, intervals = class_accuracy(evaluated.confusion)
    assert values[[0, 2]].tolist() == [0.5, 1.0] and np.isnan(values[1]) and np.isnan(intervals[1]).all()


def test_classes_whose_letters_cannot_be_drawn_are_told_apart(seen):
    names = ["猫", "犬", "cat"]
    for draw in Evaluated(Outputs(torch.tensor([0, 1, 2]), torch.eye(3)), names).figures().values():
        draw()
    for name in PLOTS:
        if name != "plot_reliability":  # it has no names
            assert seen[name][-1] == ["class 0", "class 1", "cat"]


@pytest.mark.parametrize("value", [0, -3])
def test_a_number_below_one_is_refused(value):
    with pytest.raises(
        ConfigurationError, match=rf"^Confusion\.every_n_epochs: {value} is not allowed, give 1 or more$"
    ):
        Confusion(every_n_epochs=value)


def test_links_in_the_place_of_the_files_are_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("precious")
    for name in ("val_predictions.csv", "val_calibration.json"):
        (tmp_path / name).symlink_to(victim)
    Evaluated(Outputs(torch.tensor([0, 1]), torch.eye(2)), ["a", "b"]).write(tmp_path, "val")
    assert victim.read_text() == "precious"
    assert json.loads((tmp_path / "val_calibration.json").read_text())["ece"] == 0

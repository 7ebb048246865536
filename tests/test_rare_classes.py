"""Rare classes on the command line: weights and balanced epochs, and the figures that say what they bring."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from sklearn.metrics import balanced_accuracy_score, f1_score
from support import TINY, Result, read_json, write_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnets.__main__ import main
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.image_folder import ImageFolder
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file

pytestmark = pytest.mark.usefixtures("one_thread")
RARE = 4  # training images of red, of 24 of the others


def recipe(root: Path, **model: Any) -> str:
    content = yaml.safe_load(TINY)
    content["data"] = {"class_path": "ImageFolder"}
    content["data"]["init_args"] = {"root": str(root), "image_size": 16, "batch_size": 13, "val_fraction": 0.25}
    content["model"] |= model
    content["trainer"]["max_epochs"] = 3
    return yaml.safe_dump(content | {"explain": {"misclassified": None, "confusion": None}})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("images"), num_train=24)
    for path in sorted((folder / "train/red").iterdir())[RARE:]:
        path.unlink()
    return folder


class Fitted(NamedTuple):
    """The run's folder, and what the fit has printed."""

    run: Path
    out: str


@pytest.fixture(scope="module")
def weighted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A fit with balanced weights, whose checkpoint is chosen by the balanced accuracy."""
    folder, out = tmp_path_factory.mktemp("fitted"), io.StringIO()
    (folder / "r.yaml").write_text(recipe(root, class_weights="balanced", label_smoothing=0.1))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(folder)
        patch.setenv("CIFAR_RESNETS_CACHE", str(folder / "cache"))
        main(["fit", "-c", "r.yaml", "--checkpoint.monitor", "val/acc_balanced"])
    return Fitted(folder / "logs/tiny/version_0", out.getvalue())


def test_the_weights_are_those_of_the_training_images(weighted: Fitted) -> None:
    # three quarters of 4, 24 and 24 are trained on
    assert f"class weights: {39 / 3 / 18:.3g} (blue) to {39 / 3 / 3:.3g} (red)" in weighted.out
    content = read_checkpoint_file(weighted.run / "checkpoints/best.ckpt")
    assert content["hyper_parameters"]["class_weights"] == "balanced"
    assert not any("class_weights" in name for name in content["state_dict"])


def test_the_checkpoint_is_chosen_by_the_balanced_accuracy(weighted: Fitted) -> None:
    with (weighted.run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/acc_balanced"]]
    best = max(rows, key=lambda row: float(row["val/acc_balanced"]))
    content = read_checkpoint_file(weighted.run / "checkpoints/best.ckpt")
    assert content["epoch"] == int(best["epoch"])
    [state] = [each for name, each in content["callbacks"].items() if name.startswith("ModelCheckpoint")]
    assert state["best_model_score"].item() == pytest.approx(float(best["val/acc_balanced"]))
    assert read_json(weighted.run / "test.json")["checkpoint"].endswith("best.ckpt")


def test_every_place_shows_the_figures_of_scikit_learn(weighted: Fitted) -> None:
    with (weighted.run / "test_predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    truth, predicted = ([row[name] for row in rows] for name in ("label", "predicted"))
    balanced, f1 = balanced_accuracy_score(truth, predicted), f1_score(truth, predicted, average="macro")
    found = read_json(weighted.run / "test.json")
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    assert found["macro_f1"] == pytest.approx(f1)
    page = (weighted.run / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    for name, value in (("balanced accuracy", balanced), ("macro F1", f1)):
        shown = f"{value:.2%}".replace("%", " %")
        assert any(name in line and shown in line for line in weighted.out.splitlines())
        assert name in page and shown in page
    events = EventAccumulator(str(weighted.run)).Reload()
    assert events.Scalars("test/acc_balanced")[0].value == pytest.approx(balanced)
    assert events.Scalars("test/f1_macro")[0].value == pytest.approx(f1)
    assert len(events.Scalars("val/acc_balanced")) == len(events.Scalars("val/f1_macro")) == 3


def test_an_evaluation_has_no_weights(weighted: Fitted, root: Path) -> None:
    module = ImageClassifier.load_from_checkpoint(weighted.run / "checkpoints/best.ckpt", map_location="cpu")
    assert module.class_weights is None
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(module.loss(logits, labels), expected)


def test_an_epoch_that_is_balanced_has_as_many_steps(root: Path) -> None:
    plain, balanced = (ImageFolder(root=str(root), image_size=16, batch_size=9, balance=each) for each in (False, True))
    counts = []
    for data in (plain, balanced):
        data.setup("fit")
        loader = data.train_dataloader()
        assert len(loader) == data.num_train_batches == 5
        counts.append(torch.bincount(torch.cat([labels for _, labels in loader]), minlength=3).tolist())
    assert counts[0][2] <= RARE and min(counts[1]) >= 12
    assert sum(balanced.class_frequencies) == pytest.approx(1) and set(balanced.class_frequencies) == {1 / 3}
    assert plain.class_frequencies == pytest.approx([22 / 47, 22 / 47, 3 / 47])
    assert balanced.describe()["init_args"]["balance"] is True


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model.class_weights", "[1, 2]"], "model.class_weights: [1.0, 2.0] is not allowed, give balanced, or 3"),
        (["--model.class_weights", "rare"], "model.class_weights: rare is not allowed, give balanced or list or null"),
        (["--data.balance", "often"], "data.balance: often is not allowed, give bool"),
        (["--model.class_weights", "balanced", "--data.balance", "true"], "model.class_weights: data.balance true"),
        (["--checkpoint.monitor", "val/f1_macro", "--checkpoint.mode", "min"], "checkpoint.mode: min is not allowed"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    root: Path, cli: Callable[..., Result], flags: list[str], line: str, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(recipe(root))
    result = cli("fit", "-c", "r.yaml", *flags)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1 and line in result.err, result.err
    assert not (tmp_path / "logs").exists()

"""A run with classes whose names break lines, tables and tags, from the fit to the tables of several runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from image_samples import noise, save
from support import TINY, Result

from cifar_resnets.results.csv_files import read_history, read_predictions

pytestmark = pytest.mark.long

NAMES = sorted(
    ["dog\u2028old", "cat\x85young", "frog\x0bgreen", "ship\nred", "ape\rgrey", "elk\x0c", '=1,"ox"', "ü\x1b[1m"]
)
RECIPE = TINY.replace("class_path: Digits", "class_path: ImageFolder").replace(
    "batch_size: 40, num_train: 200", "root: images, image_size: 16, batch_size: 8"
)


@pytest.mark.usefixtures("one_thread")
def test_names_of_classes_may_hold_anything(cli: Callable[..., Result], tmp_path: Path) -> None:
    for split, num in (("train", 4), ("test", 2)):
        for name in NAMES:
            for number in range(num):
                save(tmp_path / "images" / split / name / f"{number}.png", noise(16, 16, 3))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    first = cli("fit", "-c", "recipe.yaml")
    assert (first.status, first.err) == (0, ""), first.err
    last = str(tmp_path / "logs/tiny/version_0/checkpoints/last.ckpt")
    again = cli("fit", "-c", "recipe.yaml", "--ckpt_path", last, "--trainer.max_epochs", "2")
    assert (again.status, again.err) == (0, ""), again.err
    run, notes = tmp_path / "logs/tiny/version_1", []
    history = read_history(run / "metrics.csv", notes)
    assert all(len(history[f"val_class_acc/{name}"].x) == 2 for name in NAMES)
    assert [*read_predictions(run / "test_predictions.csv", notes).class_names] == NAMES
    assert [each["name"] for each in json.loads((run / "test.json").read_text())["classes"]] == NAMES
    assert not notes
    for command in (["report", str(run)], ["collect"], ["test", "--ckpt_path", str(run / "checkpoints/best.ckpt")]):
        result = cli(*command)
        assert (result.status, result.err) == (0, ""), result.err

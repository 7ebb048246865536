"""Each image keeps the name of its file, from the folder to everything that a command writes."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import processes
import pytest
from image_samples import noise, save
from PIL import Image
from support import TINY

ODD = ["a b.png", "c\"d'&<e>.png", "two\nlines.png", "猫.png", os.fsdecode(b"no\xfftext.png"), "deep/er/one.png"]
RECIPE = TINY.replace("Digits", "ImageFolder").replace(
    "batch_size: 40, num_train: 200", "root: images, image_size: 8, batch_size: 6, eval_batch_size: 5"
)
TWO_RANKS = ("--trainer.devices", "2", "--trainer.strategy", "ddp_fork")


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline="", encoding="utf-8")))


@pytest.mark.process
def test_everything_that_is_written_says_the_names_of_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("cat", "dog", "emu"):
            for name in ODD:
                save(tmp_path / "images" / split / kind / name, noise(8, 8, 3))
    (tmp_path / "recipe.yaml").write_text(f"{RECIPE}explain: {{misclassified: {{num_samples: 4}}, confusion: null}}\n")
    done = processes.run("fit", "-c", "recipe.yaml", "--data.classes", "[emu,cat]", cwd=tmp_path)
    assert done.status == 0, done.err
    run = tmp_path / "logs/tiny/version_0"
    rows = rows_of(run / "test_predictions.csv")
    escaped = [name.replace("\udcff", r"\xff") for name in ODD]
    assert {row["path"] for row in rows} == {f"test/{kind}/{name}" for kind in ("cat", "emu") for name in escaped}
    assert all(row["path"].split("/")[1] == row["label"] for row in rows)
    for written in ("mistakes.npz", "gallery.npz"):
        with np.load(run / written, allow_pickle=False) as file:
            assert len(file["path"]) == len(file["images"]) > 0
            for index, path, image in zip(file["index"], file["path"], file["images"], strict=True):
                assert rows[index]["path"] == path
                original = tmp_path / "images" / path.replace(r"\xff", "\udcff")
                assert np.abs(np.asarray(Image.open(original)).astype(int) - image).max() <= 1
    best = str(run / "checkpoints/best.ckpt")
    predicted = processes.run("predict", "--ckpt_path", best, *TWO_RANKS, cwd=tmp_path)
    assert predicted.status == 0, predicted.err
    again = rows_of(tmp_path / "logs/tiny/version_1/predictions.csv")
    assert [row["path"] for row in again] == [row["path"] for row in rows]
    assert [row["predicted"] for row in again] == [row["predicted"] for row in rows]
    assert processes.run("validate", "--ckpt_path", best, cwd=tmp_path).status == 0
    validated = rows_of(tmp_path / "logs/tiny/version_2/val_predictions.csv")
    assert all(row["path"].startswith(f"train/{row['label']}/") for row in validated)
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "c&#34;d&#39;&amp;&lt;e&gt;.png</bdi></details>" in report or "two\\nlines.png</bdi>" in report

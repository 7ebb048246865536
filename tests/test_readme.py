"""The Python examples of README.md, run as they are printed."""

from __future__ import annotations

import csv
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_samples import noise, save
from support import TINY, Result

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CLASSES = ("frog", "ship")
RECIPE = TINY.replace("class_path: Digits", "class_path: ImageFolder").replace(
    "batch_size: 40, num_train: 200", "root: images, batch_size: 4"
)


def example(word: str) -> str:
    (found,) = [text for text in EXAMPLES if word in text]
    return found


def test_all_examples_are_tested_here() -> None:
    assert len(EXAMPLES) == 2


@pytest.mark.process
def test_networks_are_registered_by_the_import_that_is_printed() -> None:
    code = example("timm.create_model") + "print(sum(p.numel() for p in network.parameters()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    # 269,722 with option A and ten classes, in the table; B has two 1x1 projections with their norms
    assert int(done.stdout) == 269_722 - 3 * 65 + (16 * 32 + 64) + (32 * 64 + 128), done.stderr


@pytest.fixture
def trained(cli: Callable[..., Result], tmp_path: Path) -> Path:
    """A folder with `best.ckpt` and `photos`, which are the test images."""
    for split, num in (("train", 8), ("test", 1)):
        for kind, name in enumerate(CLASSES):
            for number in range(num):
                pixels = noise(40, 50, 3) // 2
                pixels[..., kind] += 100
                path = tmp_path / "images" / split / name / (f"{name}.jpg" if split == "test" else f"{number}.png")
                save(path, pixels)
    (tmp_path / "recipe.yaml").write_text(RECIPE + "explain: null\n")
    assert cli("fit", "-c", "recipe.yaml").status == 0
    shutil.copy(tmp_path / "logs/tiny/version_0/checkpoints/best.ckpt", tmp_path)
    (tmp_path / "photos").mkdir()
    for name in CLASSES:
        shutil.copy(tmp_path / f"images/test/{name}/{name}.jpg", tmp_path / "photos")
    return tmp_path


def test_a_checkpoint_gives_the_probabilities_of_predict(trained: Path, cli: Callable[..., Result]) -> None:
    assert cli("predict", "--ckpt_path", "best.ckpt", "--name", "again").status == 0
    (written,) = trained.glob("logs/*/version_*/predictions.csv")
    rows = list(csv.DictReader(written.open(newline="")))
    found: dict = {}
    exec(example("load_from_checkpoint"), found)
    expected = [[float(row[f"p({name})"]) for name in CLASSES] for row in rows]
    assert found["classifier"].class_names == [*CLASSES]
    np.testing.assert_allclose(found["probabilities"].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("call", re.findall(r"`(\w+)\([^`]*\)` from\s+`([\w.]+)`", README), ids="from ".join)
def test_functions_that_are_named_can_be_imported(call: tuple[str, str]) -> None:
    assert callable(getattr(importlib.import_module(call[1]), call[0]))

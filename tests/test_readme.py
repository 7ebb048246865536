"""The Python examples of README.md and the commands about a trained network, run as they are printed."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from image_samples import noise, save
from support import Result

from cifar_resnets.cli.checkpoint_args import given_checkpoint
from cifar_resnets.cli.export import _parser as export_parser

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


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
def used(checkpoint: Path, cli: Callable[..., Result], tmp_path: Path) -> Path:
    """A folder with `best.ckpt` and the images that the section about a trained network names."""
    shutil.copy(checkpoint, tmp_path / "best.ckpt")
    for name in ("cat.jpg", "photos/a.jpg", "photos/deep/b c.jpg", "more/x/d.png"):
        save(tmp_path / name, noise(40, 50, 3))
    return tmp_path


def test_the_commands_about_a_trained_network(
    used: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = README.partition("## Use a trained network\n")[2].partition("\n## ")[0]
    one, several, piped = re.findall(r"^    (.*cifar-resnets predict .*)$", section, re.MULTILINE)
    line = cli(*shlex.split(one, comments=True)[1:]).out
    assert re.fullmatch(r"cat\.jpg: \w+ [\d.]+ %, \w+ [\d.]+ %\n", line)  # as the comment has it
    assert cli(*shlex.split(several)[1:]).status == 0
    (written,) = used.glob("logs/*/version_0/predictions.csv")
    paths = [row["path"] for row in csv.DictReader(written.open(newline=""))]
    assert paths == ["photos/a.jpg", "photos/deep/b c.jpg", "more/x/d.png"]
    assert len(list((used / "heat").iterdir())) == 3 and written.with_suffix(".html").exists()
    find, _, command = piped.partition(" | ")
    found = subprocess.run(shlex.split(find), capture_output=True, check=True).stdout
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(found)))
    rows = json.loads(cli(*shlex.split(command)[1:]).out)
    assert sorted(row["path"] for row in rows) == ["photos/a.jpg", "photos/deep/b c.jpg"]


def test_the_commands_about_exports_and_public_weights_are_parsed() -> None:
    section = README.partition("## Use a trained network\n")[2].partition("\n## ")[0].replace("\\\n", "")
    exports = re.findall(r"^    cifar-resnets export (.*)$", section, re.MULTILINE)
    found = [export_parser().parse_args(shlex.split(each, comments=True)) for each in exports]
    assert [each.format for each in found] == ["onnx", "torch_export", "safetensors"]
    (command,) = re.findall(r"^    cifar-resnets (test .*)$", section, re.MULTILINE)
    assert given_checkpoint(shlex.split(command)).checkpoint is None


@pytest.mark.process
def test_a_trained_network_is_used_from_python_without_lightning(used: Path) -> None:
    before = """
import numpy as np
from PIL import Image
pil_image = Image.open("photos/a.jpg")
array = np.asarray(pil_image)
"""
    after = """
import sys
assert "lightning" not in sys.modules and len(prediction.probabilities) == 3
"""
    done = subprocess.run(
        [sys.executable, "-c", before + example("load") + after], cwd=used, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[1] == lines[2] and re.match(r"(red|green|blue) [\d.]+ \{'blue': ", lines[0])


@pytest.mark.parametrize("call", re.findall(r"`(\w+)\([^`]*\)` from\s+`([\w.]+)`", README), ids="from ".join)
def test_functions_that_are_named_can_be_imported(call: tuple[str, str]) -> None:
    assert callable(getattr(importlib.import_module(call[1]), call[0]))

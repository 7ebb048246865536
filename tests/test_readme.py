"""The commands of README.md about a trained network, and the examples beside them, run as they are printed.

`test_documentation.py` parses the commands of all pages.
"""

from __future__ import annotations

import csv
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
from documentation import examples, section
from image_samples import noise, save
from support import Result


@pytest.mark.process
def test_networks_are_registered_by_the_import_that_is_printed() -> None:
    (example,) = examples("docs/networks.md")
    code = example + "print(sum(p.numel() for p in network.parameters()))"
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
    used_section = section("README.md", "Use a trained network")
    one, several, piped = re.findall(r"^    (.*cifar-resnets predict .*)$", used_section, re.MULTILINE)
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
    (example,) = examples("README.md")
    done = subprocess.run([sys.executable, "-c", before + example + after], cwd=used, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[1] == lines[2] and re.match(r"(red|green|blue) [\d.]+ \{'blue': ", lines[0])

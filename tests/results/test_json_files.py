"""What the project's own writers write is what is read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_resnets.callbacks.publish import write_arrays
from cifar_resnets.callbacks.run_record import run_record
from cifar_resnets.evaluation.metrics import Evaluation
from cifar_resnets.results import json_files
from cifar_resnets.results.json_files import (
    read_config,
    read_config_text,
    read_evaluation,
    read_gallery,
    read_mistakes,
    read_record,
)


def test_an_evaluation(tmp_path: Path) -> None:
    figures = Evaluation(float("nan"), torch.tensor([[8, 2], [0, 0]]), None).to_dict(["cat", "dog"])
    (tmp_path / "test.json").write_text(json.dumps({"checkpoint": "None", **figures}))
    found = read_evaluation(tmp_path / "test.json")
    assert (found.total.correct, found.total.images, found.total.accuracy) == (8, 10, 0.8)
    assert (found.loss, found.top5, found.checkpoint) == (None, None, "")
    assert (found.balanced_accuracy, found.macro_f1) == (0.8, figures["macro_f1"])
    cat, dog = found.classes
    assert cat.interval is not None
    assert 0 < cat.interval[0] < 0.8 < cat.interval[1] < 1
    assert (dog.name, dog.accuracy, dog.interval, dog.images) == ("dog", None, None, 0)


def test_an_evaluation_of_version_0_1_0(tmp_path: Path) -> None:
    figures = Evaluation(0.5, torch.tensor([[8, 2], [0, 0]]), None).to_dict(["cat", "dog"])
    del figures["balanced_accuracy"], figures["macro_f1"]
    (tmp_path / "test.json").write_text(json.dumps({"checkpoint": "None", **figures}))
    found = read_evaluation(tmp_path / "test.json")
    assert (found.total.accuracy, found.balanced_accuracy, found.macro_f1) == (0.8, None, None)


def test_a_record(tmp_path: Path) -> None:
    written = run_record()
    (tmp_path / "run.json").write_text(json.dumps({**written, "seed": 3}))
    found = read_record(tmp_path / "run.json")
    assert found.command == written["command"]
    assert found.seed == "3"
    assert found.versions["torch"] == written["packages"]["torch"]
    assert found.commit == (written["git"] or {}).get("commit", "")
    (tmp_path / "run.json").write_text(json.dumps({**written, "git": None, "seed": None}))
    assert (read_record(tmp_path / "run.json").commit, read_record(tmp_path / "run.json").seed) == ("", "")


def test_arrays(tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    columns = {name: np.arange(2) for name in ("index", "label", "predicted")}
    columns |= {name: np.array([0.25, 0.5], np.float32) for name in ("p_label", "p_predicted")}
    write_arrays(tmp_path / "mistakes.npz", images=images, **columns)
    assert (read_mistakes(tmp_path / "mistakes.npz").images == images).all()
    heat = np.full((2, 4, 4), 0.5, np.float16)
    write_arrays(
        tmp_path / "gallery.npz",
        **{**columns, "images": images, "heat_predicted": heat, "heat_true": heat, "layer": "a", "method": "b"},
    )
    found = read_gallery(tmp_path / "gallery.npz")
    assert found.heat is not None
    assert found.heat[0].tolist() == heat.tolist()
    assert found.source == ("a", "b")
    assert found.path is None  # as in version 0.1.0
    write_arrays(tmp_path / "mistakes.npz", images=images, path=np.array(["test/a b.png", "猫"]), **columns)
    again = read_mistakes(tmp_path / "mistakes.npz")
    assert again.path is not None
    assert again.path.tolist() == ["test/a b.png", "猫"]
    for damaged in (np.array(["one"]), np.array([1, 2]), np.array([["a"], ["b"]])):
        write_arrays(tmp_path / "mistakes.npz", images=images, path=damaged, **columns)
        with pytest.raises(ValueError, match="path|lengths"):
            read_mistakes(tmp_path / "mistakes.npz")


def test_a_configuration_is_data_and_no_code(tmp_path: Path) -> None:
    import pytest
    import yaml

    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(yaml.YAMLError):
        read_config(tmp_path / "config.yaml")


def test_files_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mistakes.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(2**20))
    monkeypatch.setattr(json_files, "LARGEST_ARRAYS", 2**19)
    with pytest.raises(ValueError, match="arrays are larger than"):
        read_mistakes(path)
    path.write_bytes(b"#" * (2**24 + 1))
    for read in (read_record, read_config_text):
        with pytest.raises(ValueError, match="is larger than"):
            read(path)

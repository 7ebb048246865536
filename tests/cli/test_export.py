"""`export` as a user runs it: files that other programs read, or one line and no file."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exports import random_images, write_small
from PIL import Image
from support import TINY, Result, read_json

from cifar_resnets.__main__ import main
from cifar_resnets.export import files
from cifar_resnets.inference.classifier import load

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The checkpoint of a fit."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "tiny.yaml").write_text(TINY)
        main(["fit", "-c", "tiny.yaml"])
    yield folder / "logs/tiny/version_0/checkpoints/best.ckpt"


@pytest.fixture
def small(tmp_path: Path) -> str:
    return str(write_small(tmp_path / "small.ckpt"))


def test_onnx_predicts_photographs_as_predict_does(cli: Run, best: Path, tmp_path: Path) -> None:
    result = cli("export", "--ckpt_path", str(best), "--format", "onnx", "--out", "a.onnx")
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "ONNX, opset 18: uint8 (1, height, width, 3), RGB -> probabilities (1, 10)"
    assert re.fullmatch(r"proof: onnxruntime [\d.]+ predicts the same class for all 143 validation images", lines[1])
    assert lines[-1] == "written: a.onnx" and max(map(len, lines)) <= 80
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.onnx"]
    session = onnxruntime.InferenceSession("a.onnx")
    images = random_images(1, 60, 90)
    (found,) = session.run(None, {"images": images})
    expected = load(best).predict([Image.fromarray(images[0])])[0]
    assert session.get_modelmeta().custom_metadata_map["network"] == "cifar_resnet20"
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    assert names[int(found.argmax())] == expected.name
    np.testing.assert_allclose(found.max(), expected.probability, atol=1e-5)


def test_a_program_is_written_beside_the_checkpoint(cli: Run, small: str) -> None:
    args = ("export", "--ckpt_path", small, "--format", "torch_export", "--dynamic_batch", "--num_images", "4")
    result = cli(*args)
    assert (result.status, result.err) == (0, "")
    assert "proof: torch" in result.out and "all 4 validation images" in result.out
    program = torch.export.load("small.pt2").module()
    assert program(torch.from_numpy(random_images(7, 50, 20))).shape == (7, 10)
    again = cli(*args)
    assert (again.status, again.err.count("\n")) == (2, 1)
    assert "--out: " in again.err and "small.pt2 exists, give another name or remove it" in again.err


def test_the_folder_of_timm_tells_of_its_run(cli: Run, best: Path, tmp_path: Path) -> None:
    result = cli("export", "--ckpt_path", str(best), "--format", "safetensors", "--out", "net", "--license", "mit")
    assert (result.status, result.err) == (0, "")
    assert sorted(each.name for each in Path("net").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card, tested = Path("net/README.md").read_text(), read_json(best.parents[1] / "test.json")
    low, high = (100 * each for each in tested["interval"])
    assert f"**{100 * tested['accuracy']:.2f} %** of 364 test images" in card and f"{low:.2f} to {high:.2f} %" in card
    for row in tested["classes"]:
        assert f"| {row['name']} | {100 * row['accuracy']:.2f} % |" in card
    ece = read_json(best.parents[1] / "test_calibration.json")["ece"]
    assert f"calibration error in 15 bins is {100 * ece:.2f} %" in card
    assert "license: mit" in card and "| epochs | 1 |" in card and "| learning rate | 0.05 |" in card
    assert "| schedule | Cosine |" in card


def test_the_example_of_the_model_card_runs(cli: Run, best: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli("export", "--ckpt_path", str(best), "--format", "safetensors", "--out", "net").status == 0
    Image.fromarray(random_images(1, 47, 64)[0]).save("image.png")
    (code,) = re.findall(r"```python\n(.*?)```", Path("net/README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    name, probability = capfd.readouterr().out.split()
    (expected,) = load(best, device="cpu").predict(["image.png"])
    assert name == expected.name
    np.testing.assert_allclose(float(probability), expected.probability, atol=1e-4)


def test_a_checkpoint_without_its_run_has_a_card_that_says_so(cli: Run, small: str) -> None:
    assert cli("export", "--ckpt_path", small, "--format", "safetensors", "--num_images", "2").status == 0
    card = Path("small-timm/README.md").read_text()
    assert "Not known: the files of its run hold no test of this checkpoint" in card
    assert "license: unknown" in card and "No licence of the weights has been stated" in card


@pytest.mark.parametrize("name", ["torch_export", "safetensors"])
def test_an_export_that_fails_its_proof_leaves_no_file(
    cli: Run, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for runner in (files, files.hub_folder):
        for function in ("program_runner", "folder_runner"):
            if hasattr(runner, function):
                monkeypatch.setattr(runner, function, lambda _: lambda images: np.ones((len(images), 10)) / 10)
    result = cli("export", "--ckpt_path", small, "--format", name, "--num_images", "9")
    assert (result.status, result.err.count("\n")) == (4, 1), result
    assert "the exported network is not the checkpoint's: " in result.err
    assert [each.name for each in tmp_path.iterdir()] == ["small.ckpt"]


@pytest.mark.parametrize(
    ("args", "status", "culprit"),
    [
        ([], 2, "export: the following arguments are required: --ckpt_path"),
        (["--ckpt_path", "small.ckpt", "--format", "tflite"], 2, "--format: invalid choice: 'tflite'"),
        (["--ckpt_path", "gone.ckpt", "--format", "torch_export"], 4, "there is no file gone.ckpt"),
        (["--ckpt_path", "small.ckpt", "--format", "onnx", "--out", "no/a.onnx"], 6, "--out: no is no folder"),
        (["--ckpt_path", "small.ckpt", "--format", "safetensors", "--raw"], 2, "--raw: safetensors holds weights"),
        (["--ckpt_path", "small.ckpt", "--format", "onnx", "--license", "mit"], 2, "--license: onnx has no model card"),
        (["--ckpt_path", "small.ckpt", "--format", "onnx", "--num_images", "0"], 2, "0 is not allowed, give 1 or more"),
        (["--ckpt_path", "small.ckpt", "--format", "safetensors", "--run", "no"], 2, "--run: there is no folder no"),
        (
            ["--ckpt_path", "small.ckpt", "--format", "safetensors", "--license", "x\ny: z"],
            2,
            "x\\ny: z is not allowed",
        ),
        (["--ckpt_path", "small.ckpt", "--format", "torch_export", "--data_root", "x"], 2, "--data_root: "),
        (["--ckpt_path", "small.ckpt", "--format", "safetensors", "--out", "w" * 252], 6, f" {'w' * 252}: File name"),
        (["--ckpt_path", "small.ckpt", "--format", "onnx", "--out", "small.ckpt"], 2, "--out: small.ckpt exists"),
    ],
)
def test_mistakes_are_one_line(
    cli: Run, small: str, tmp_path: Path, args: list[str], status: int, culprit: str
) -> None:
    result = cli("export", *args)
    assert (result.status, result.err.count("\n")) == (status, 1), result
    assert culprit in result.err
    assert [each.name for each in tmp_path.iterdir()] == ["small.ckpt"]


def test_without_the_extra_a_line_says_how_to_install_it(cli: Run, small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    result = cli("export", "--ckpt_path", small, "--format", "onnx")
    assert result.status == 2
    line = "--format onnx: onnx, onnxscript, onnxruntime is not installed: pip install .[export]"
    assert result.err == f"cifar-resnets: {line}\n"


def test_a_package_that_cannot_be_imported_is_one_line(
    cli: Run, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo.so:\\n no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    result = cli("export", "--ckpt_path", small, "--format", "onnx")
    line = "--format onnx: onnxruntime cannot be imported (libfoo.so: no such file): pip install"
    assert result.status == 2 and result.err.startswith(f"cifar-resnets: {line} ") and result.err.count("\n") == 1

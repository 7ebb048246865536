"""The command line as a user runs it: whole processes, one rank and two, digits, image files, real images."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from processes import run
from support import WITHOUT_PICTURES, Result, read_json, shell, terminal

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
SMALL = [
    *("-c", "quickstart", "-c", "cpu"),  # by name, which ranks that Lightning starts have to find as well
    *("--model.network_args", "{depths: [1], widths: [16]}", "--data.num_train", "300", "--trainer.max_epochs", "2"),
]
TWO_RANKS = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
FIGURES = ("accuracy", "correct", "images", "top5", "classes")


def succeeded(result: Result) -> Result:
    assert result.status == 0, result.err
    assert result.err == ""
    return result


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    succeeded(shell("fit", *SMALL, cwd=folder))
    return folder


def test_fit_ends_with_both_figures_and_the_dashboard(digits: Path, tmp_path: Path) -> None:
    folder = digits / "logs/quickstart/version_0"
    result = succeeded(run("test", "--ckpt_path", str(folder / "checkpoints/best.ckpt"), cwd=tmp_path))
    again = read_json(tmp_path / "logs/quickstart/version_0/test.json")
    first = read_json(folder / "test.json")
    assert {figure: again[figure] for figure in FIGURES} == {figure: first[figure] for figure in FIGURES}
    assert f"{first['accuracy']:.2%}".replace("%", " %") in result.out


def test_what_a_terminal_shows(tmp_path: Path) -> None:
    result = terminal("fit", *SMALL, *WITHOUT_PICTURES, cwd=tmp_path)
    assert result.status == 0, result.out
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.out)
    lines = [line.split("\r")[-1] for line in plain.split("\r\n")]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("│ all ") and " 364 │" in line for line in lines)  # above a bar that is still shown
    assert any(line.startswith("epoch 2/2  loss ") for line in lines)
    assert "Epoch 2/2 ━" in plain
    assert " object at 0x" not in plain


def test_two_ranks_test_as_one(digits: Path, tmp_path: Path) -> None:
    folder = digits / "logs/quickstart/version_0"
    # 364 images in batches of 100 over two ranks: parts of different sizes
    args = ["--ckpt_path", str(folder / "checkpoints/best.ckpt"), "--data.eval_batch_size", "100"]
    result = succeeded(run("test", *args, *TWO_RANKS, *WITHOUT_PICTURES, cwd=tmp_path))
    assert result.out.count("Test images") == 1
    two, one = read_json(tmp_path / "logs/quickstart/version_0/test.json"), read_json(folder / "test.json")
    assert {figure: two[figure] for figure in FIGURES} == {figure: one[figure] for figure in FIGURES}
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_two_ranks_train_into_one_folder(tmp_path: Path) -> None:
    result = succeeded(shell("fit", *SMALL, *TWO_RANKS, *WITHOUT_PICTURES, cwd=tmp_path))
    assert result.out.count("epoch 2/2") == 1
    assert [path.name for path in (tmp_path / "logs/quickstart").iterdir()] == ["version_0"]
    assert read_json(tmp_path / "logs/quickstart/version_0/test.json")["images"] == 364


def test_the_same_seed_gives_the_same_weights_and_another_does_not(digits: Path, tmp_path: Path) -> None:
    succeeded(run("fit", *SMALL, *WITHOUT_PICTURES, cwd=tmp_path))
    succeeded(run("fit", *SMALL, *WITHOUT_PICTURES, "--seed_everything", "1", cwd=tmp_path))
    first, again, other = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (digits / "logs/quickstart/version_0", *sorted((tmp_path / "logs/quickstart").iterdir()))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["network.fc.weight"], other["network.fc.weight"])


def test_image_files(image_folder: Path, tmp_path: Path) -> None:
    # colours are learnt at once: anything but a perfect test means that labels or images are mixed up
    source = ["--data", "ImageFolder", "--data.root", str(image_folder), "--data.batch_size", "12"]
    args = [*SMALL[:6], *source, "--trainer.max_epochs", "4", "--name", "colours", *WITHOUT_PICTURES]
    succeeded(run("fit", *args, cwd=tmp_path))
    report = read_json(tmp_path / "logs/colours/version_0/test.json")
    assert [row["name"] for row in report["classes"]] == ["blue", "green", "red"]
    assert report["accuracy"] == 1.0


def test_broken_images_are_named_before_training(image_folder: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for path in (image_folder / split).rglob("*.png"):
            target = tmp_path / "images" / path.relative_to(image_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (tmp_path / "images/test/red/3.png").write_bytes(b"")
    (tmp_path / "images/train/blue/5.png").write_bytes((image_folder / "train/blue/5.png").read_bytes()[:200])
    result = run("fit", *SMALL[:4], "--data", "ImageFolder", "--data.root", "images", cwd=tmp_path)
    assert (result.status, result.err.count("\n")) == (3, 1), result.err
    assert "3.png" in result.err
    assert "5.png" in result.err
    assert "epoch" not in result.out


SHORT_SEARCH = "trainer: {callbacks: [{class_path: LRFinder, init_args: {method: slide, num_steps: 100}}]}"


def test_real_images(real_images: Path, tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(SHORT_SEARCH)
    for split, num in (("train", 300), ("test", 100)):
        for folder in (real_images / split).iterdir():
            shutil.copytree(folder, tmp_path / split / folder.name, ignore=lambda _, names, n=num: sorted(names)[n:])
    args = ["--data", "ImageFolder", "--data.root", str(tmp_path), "--data.val_fraction", "0.02"]
    args += ["--data.batch_size", "32", "--trainer.max_epochs", "3"]
    args += ["--model.network_args", "{depths: [1, 1, 1], widths: [8, 16, 32], stem_width: 8}", *WITHOUT_PICTURES]
    recipe, hardware = ROOT / "configs/recipes/resnet20_onecycle.yaml", ROOT / "configs/hardware/cpu.yaml"
    configs = ["-c", str(recipe), "-c", str(hardware), "-c", "short.yaml"]
    result = succeeded(run("fit", *configs, *args, cwd=tmp_path))
    assert 0.05 < float(result.out.partition("learning rate: ")[2].split()[0]) < 1
    report = read_json(tmp_path / "logs/resnet20_onecycle/version_0/test.json")
    assert report["images"] == 1000
    assert [row["images"] for row in report["classes"]] == [100] * 10
    assert report["accuracy"] > 0.2  # a tenth by chance

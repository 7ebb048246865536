"""Runs that are resumed with other settings or on other images, and tested on other classes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import TINY, WITHOUT_PICTURES, Result, read_json, write_images

from cifar_resnets.__main__ import main
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file

Run = Callable[..., Result]
RUN = Path("logs/tiny/version_0")
CYCLE = TINY.replace("lr: 0.05", "lr: 0.05\n  schedule: {class_path: OneCycle}") + "explain: null\n"
FOLDER = TINY.replace("class_path: Digits", "class_path: ImageFolder").replace(
    "{batch_size: 40, num_train: 200}", "{batch_size: 16, root: images, image_size: 16}"
) + "explain: null\n"  # fmt: skip
UNTESTED = ("--trainer.limit_test_batches", "0")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


def fitted(folder: Path, text: str, *args: str) -> Path:
    (folder / "tiny.yaml").write_text(text)
    with contextlib.chdir(folder):
        main(["fit", "-c", "tiny.yaml", *UNTESTED, *args])
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, with a checkpoint after each step."""
    every = ("--checkpoint.every_n_train_steps=3", "--checkpoint.monitor=null", "--checkpoint.filename=within")
    return fitted(tmp_path_factory.mktemp("digits"), CYCLE, *every)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on an image folder of red, green and blue images."""
    folder = tmp_path_factory.mktemp("photographs")
    write_images(folder / "images")
    return fitted(folder, FOLDER)


@pytest.fixture
def place(photographs: Path, tmp_path: Path) -> Path:
    shutil.copytree(photographs, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resumed(cli: Run, folder: Path, *args: str, name: str = "last") -> Result:
    path = str(folder / RUN / f"checkpoints/{name}.ckpt")
    return cli("fit", "-c", str(folder / "tiny.yaml"), "--ckpt_path", path, "--trainer.max_epochs=2", *UNTESTED, *args)


def refused(result: Result, status: int, *words: str) -> None:
    assert (result.status, result.err.count("\n")) == (status, 1), result
    assert all(word in result.err for word in words), result.err


# Settings.


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("--data.split_seed=7", "data.split_seed 0 -> 7"),
        ("--data.val_fraction=0.2", "data.val_fraction 0.1 -> 0.2"),
        ("--data.num_train=100", "data.num_train 200 -> 100"),
        ("--data.classes=[1,0,2,3,4,5,6,7,8,9]", "(1, 0, 2, 3, 4, 5, 6, 7, 8, 9)"),
    ],
)
def test_another_split_is_refused(cli: Run, digits: Path, tmp_path: Path, arg: str, words: str) -> None:
    refused(resumed(cli, digits, arg), 2, words)
    assert not (tmp_path / "logs").exists()


def test_what_else_has_changed_is_listed(cli: Run, digits: Path) -> None:
    changes = {
        "--seed_everything": "seed_everything 0 -> 1",
        "--model.label_smoothing": "model.label_smoothing 0.0 -> 0.1",
        "--model.network_args.drop_path_rate": "model.network_args.drop_path_rate None -> 0.1",
        "--model.weight_decay": "model.weight_decay 0.0005 -> 0.001",
        "--data.mean": "data.mean [",
        "--data.std": "data.std [",
        "--data.augment.cutout_size": "data.augment.cutout_size 0 -> 4",
        "--trainer.precision": "trainer.precision 32-true -> bf16-mixed",
        "--trainer.gradient_clip_val": "trainer.gradient_clip_val None -> 0.5",
    }
    values = ("1", "0.1", "0.1", "0.001", "[0.5,0.5,0.5]", "[0.5,0.5,0.5]", "4", "bf16-mixed", "0.5")
    result = resumed(cli, digits, *(f"{key}={value}" for key, value in zip(changes, values, strict=True)))
    assert (result.status, result.err) == (0, ""), result
    (line,) = (each for each in result.out.splitlines() if each.startswith("resumed with other settings: "))
    assert all(text in line for text in [*changes.values(), "the run's length 5 -> 10 steps"]), line
    assert line.count(" -> ") == len(changes) + 1


def test_nothing_is_listed_of_a_run_that_goes_on_as_it_was(cli: Run, digits: Path) -> None:
    result = cli(
        "fit", "-c", str(digits / "tiny.yaml"), *UNTESTED, "--ckpt_path", str(digits / RUN / "checkpoints/last.ckpt")
    )
    assert (result.status, result.err) == (0, ""), result
    assert "resumed" not in result.out and "checkpoint is" not in result.out


@pytest.mark.parametrize("arg", ["--trainer.accumulate_grad_batches=2", "--data.batch_size=20"])
def test_a_cycle_ends_with_another_number_of_steps_in_an_epoch(cli: Run, digits: Path, arg: str) -> None:
    whole = resumed(cli, digits, "--name", "whole")
    result = resumed(cli, digits, arg)
    assert (result.status, result.err) == (0, ""), result
    last = [torch.load(f"logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "tiny")]
    left = [content["continuation"]["total_steps"] - content["lr_schedulers"][0]["last_epoch"] for content in last]
    assert (whole.status, left[0]) == (0, left[1])
    steps = {"--trainer.accumulate_grad_batches=2": 3, "--data.batch_size=20": 10}[arg]
    assert last[1]["global_step"] == 5 + steps
    # resumed once more, nothing has changed but what the recipe says
    shutil.copy(digits / "tiny.yaml", ".")
    again = resumed(cli, Path(), arg, "--trainer.max_epochs=3")
    assert (again.status, again.err) == (0, ""), again
    assert f"other settings: the run's length {2 * steps} -> {3 * steps} steps\n" in again.out
    refused(resumed(cli, digits, arg, name="within"), 2, "within an epoch", "end of an epoch")


@pytest.mark.parametrize("arg", ["--model.optimizer_args={amsgrad: true}", "--model.optimizer=SGD"])
def test_the_state_of_another_optimizer_starts_anew(cli: Run, tmp_path: Path, arg: str) -> None:
    fitted(tmp_path, CYCLE, "--model.optimizer=AdamW")
    result = resumed(cli, tmp_path, "--model.optimizer=AdamW", arg)
    assert (result.status, result.err) == (0, ""), result


# Images.


def test_an_image_that_is_gone(cli: Run, place: Path) -> None:
    config = place / RUN / "config.yaml"
    before = config.read_bytes()
    (place / "images/train/red/3.png").unlink()
    args = ("fit", "-c", "tiny.yaml", "--trainer.max_epochs=2", *UNTESTED, "--ckpt_path", "last")
    refused(cli(*args), 3, "training images (", " then, ", "have changed since", "--on_changed_data accept")
    assert config.read_bytes() == before
    result = resumed(cli, place, "--on_changed_data", "accept")  # this process still has the lock of the folder
    assert (result.status, result.err) == (0, ""), result
    assert "have changed since the checkpoint was written\n" in result.out
    assert "data.mean [" in result.out


def test_images_that_may_have_been_trained_on_are_not_validated_in_silence(
    cli: Run, place: Path, photographs: Path
) -> None:
    validate = ("validate", "--ckpt_path", str(RUN / "checkpoints/last.ckpt"), *WITHOUT_PICTURES)
    line = "have changed since the checkpoint was written: some of the validation images may have been trained on\n"
    assert line not in cli(*validate).out
    image = photographs / "images/train/red/3.png"  # where the run has read it, as its checkpoint says
    image.rename(place / "3.png")
    result = cli(*validate)
    (place / "3.png").rename(image)
    assert (result.status, result.err) == (0, ""), result
    assert line in result.out
    (place / "images/train/red/3.png").unlink()
    assert line not in cli(*validate, "--data.root", "images").out  # these are other images


def test_a_cycle_ends_on_more_images_within_an_epoch(cli: Run, place: Path) -> None:
    every = ("--checkpoint.every_n_train_steps=2", "--checkpoint.monitor=null", "--checkpoint.filename=within")
    cycle = "--model.schedule=OneCycle"
    assert cli("fit", "-c", "tiny.yaml", cycle, *every, *UNTESTED, "--name=cycle").status == 0
    for split in ("train", "test"):
        for name in ("red", "green", "blue"):
            folder = place / "images" / split / name
            for path in sorted(folder.iterdir()):
                shutil.copy(path, folder / f"more{path.name}")
    within = "logs/cycle/version_0/checkpoints/within.ckpt"
    args = ("fit", "-c", "tiny.yaml", cycle, "--ckpt_path", within, "--name=more", *UNTESTED)
    result = cli(*args, "--on_changed_data", "accept")
    assert (result.status, result.err) == (0, ""), result
    last = read_checkpoint_file(Path("logs/more/version_0/checkpoints/last.ckpt"))
    assert last["lr_schedulers"][0]["last_epoch"] == last["continuation"]["total_steps"] == last["global_step"]


def test_an_image_of_another_class(cli: Run, place: Path) -> None:
    # the last of one class becomes the first of the next: no image changes its place
    shutil.move(place / "images/train/blue/9.png", place / "images/train/green/-1.png")
    refused(resumed(cli, place), 3, "--ckpt_path: the ", "have changed since the checkpoint was written")


def test_a_class_of_another_name(cli: Run, place: Path) -> None:
    for split in ("train", "test"):
        (place / f"images/{split}/red").rename(place / f"images/{split}/scarlet")
    refused(resumed(cli, place), 2, "(blue, green, red)", "(blue, green, scarlet)", "--model.class_names")
    result = resumed(cli, place, "--model.class_names=[blue, green, scarlet]")
    assert (result.status, result.err) == (0, ""), result
    assert "model.class_names [blue, green, red] -> [blue, green, scarlet]" in result.out
    names = read_checkpoint_file(Path("logs/tiny/version_1/checkpoints/last.ckpt"))["hyper_parameters"]["class_names"]
    assert names == ["blue", "green", "scarlet"]


# Classes that are tested.


def correct(folder: Path) -> dict[str, tuple[int, int]]:
    """The correct images and all images of each class, of the newest test."""
    newest = max(folder.glob("logs/*/*/test.json"), key=lambda path: path.stat().st_mtime_ns)
    return {row["name"]: (row["correct"], row["images"]) for row in read_json(newest)["classes"]}


def test_a_subset_is_tested_as_a_subset(cli: Run, digits: Path, tmp_path: Path) -> None:
    test = ("test", "--ckpt_path", str(digits / RUN / "checkpoints/last.ckpt"), *WITHOUT_PICTURES)
    assert cli(*test).status == 0
    whole = correct(tmp_path)
    result = cli(*test, "--data.classes=[3,7]")
    assert (result.status, result.err) == (0, ""), result
    assert "evaluated on 2 of the network's 10 classes: 3, 7\n" in result.out
    assert correct(tmp_path) == {name: row if name in "37" else (0, 0) for name, row in whole.items()}
    refused(cli(*test, "--data.classes=[7,3]"), 2, "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)", "(7, 3)")


def test_a_test_folder_with_fewer_and_with_more_classes(cli: Run, place: Path) -> None:
    test = ("test", "--ckpt_path", str(RUN / "checkpoints/last.ckpt"), "--data.root", "images")
    assert cli(*test, *WITHOUT_PICTURES).status == 0
    whole = correct(place)
    shutil.copytree(place / "images/test/red", place / "images/test/ape")
    result = cli(*test, *WITHOUT_PICTURES)
    assert (result.status, result.err) == (0, ""), result
    assert "are left out: ape\n" in result.out
    assert correct(place) == whole
    shutil.rmtree(place / "images/test/ape")
    shutil.rmtree(place / "images/test/green")
    result = cli(*test)
    assert (result.status, result.err) == (0, ""), result
    assert "evaluated on 2 of the network's 3 classes: blue, red\n" in result.out
    assert correct(place) == {**whole, "green": (0, 0)}
    shutil.rmtree(place / "images/test/blue")
    assert cli(*test).status == 0
    assert correct(place) == {"blue": (0, 0), "green": (0, 0), "red": whole["red"]}
    (place / "images/test/red").rename(place / "images/test/scarlet")
    refused(cli(*test), 2, "(blue, green, red)", "(scarlet)", "--model.class_names")
    assert cli(*test, "--model.class_names=[blue, green, scarlet]", *WITHOUT_PICTURES).status == 0
    assert correct(place)["scarlet"] == whole["red"]

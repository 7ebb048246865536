"""`ImageFolder` on one folder of classes, from the folder to the loaders."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from image_samples import message_of, noise, save, source
from sklearn.model_selection import StratifiedShuffleSplit
from support import TINY

from cifar_resnets.data import image_folder
from cifar_resnets.data.folder_split import split_by_name
from cifar_resnets.data.image_files import scan
from cifar_resnets.data.image_folder import ImageFolder
from cifar_resnets.errors import ConfigurationError, DataError


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, "cifar_resnets.data")
    return caplog


@pytest.fixture
def photos(tmp_path):
    """Two classes of 40 and 20 images, each with its number in the first pixel."""
    number = 0
    for name, num in (("cat", 40), ("dog", 20)):
        for index in range(num):
            pixels = noise(8, 8, 3)
            pixels[0, 0, 0], number = number, number + 1
            save(tmp_path / "photos" / name / f"{name}{index}.png", pixels)
    return tmp_path / "photos"


def opened(root, stage="fit", **kwargs):
    data = source(root, batch_size=2, **kwargs)
    data.prepare_data()
    data.setup(stage)
    return data


def numbers(data, *names):
    """The images of sets, by the number in their first pixel."""
    return [sorted(data._set(name)[0][:, 0, 0, 0].tolist()) for name in names]


def test_each_image_is_in_one_set_as_the_names_say(photos):
    data = opened(photos, test_fraction=0.3)
    data.setup("test")
    train, val, test = numbers(data, "train", "val", "test")
    assert sorted(train + val + test) == list(range(60))
    sides = split_by_name(scan(photos, ["cat", "dog"])[0], [], 0.3)
    in_order = [sides[path] for path in sorted(sides)]
    read = {path: np.asarray(image_folder.decode(photos, [path], 8))[0, 0, 0, 0] for path in sides}
    assert test == sorted(int(read[path]) for path in sides if sides[path] == "test")
    assert in_order.count("test") == len(test)
    labels = data._set("test")[1]
    assert labels.tolist() == [int(number >= 40) for number in data._set("test")[0][:, 0, 0, 0]]


def test_the_validation_images_are_stratified_as_scikit_learn_does_it(photos):
    data = opened(photos, test_fraction=0.3, val_fraction=0.25)
    train, val = (torch.bincount(data._set(name)[1]).tolist() for name in ("train", "val"))
    labels = np.repeat([0, 1], np.add(train, val))
    _, index = next(StratifiedShuffleSplit(1, test_size=sum(val)).split(labels, labels))
    assert val == np.bincount(labels[index]).tolist()


def test_another_fraction_decodes_nothing(photos, log, monkeypatch):
    opened(photos, test_fraction=0.3)
    monkeypatch.setattr(image_folder, "decode", None)
    data = opened(photos, test_fraction=0.1)
    assert any(line.startswith(f"{photos}: 5") and "split by their names" in line for line in log.messages)
    assert len(data._set("train")[0]) + len(data._set("val")[0]) > 50


def test_nothing_is_tested_with_a_fraction_of_0(photos):
    data = opened(photos, test_fraction=0.0)
    assert not data.has_test_images and "54 training and 6 validation images" in data.summary()
    message = f"data.test_fraction: 0 leaves no test images in {photos}"
    assert message_of(lambda: data.load("test")) == message


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range(photos, fraction):
    with pytest.raises(ConfigurationError, match=r"data.test_fraction: \S+ is not allowed, give 0 to below 1"):
        source(photos, test_fraction=fraction)


def test_a_folder_that_is_split_already(photos):
    shutil.copytree(photos, photos / "Train")
    with pytest.raises(ConfigurationError) as caught:
        source(photos, test_fraction=0.2).class_names  # noqa: B018
    assert str(caught.value) == (
        f"data.test_fraction: {photos} is split already, it has Train with folders in it: give --data.test_fraction "
        f"null to use them, or --data.root {photos / 'Train'} to split that one"
    )


def test_a_class_may_be_called_train(photos):
    (photos / "cat").rename(photos / "train")
    assert source(photos, test_fraction=0.2).class_names == ["dog", "train"]


def test_without_the_key_the_folder_says_what_to_give(photos):
    line = message_of(source(photos).prepare_data)
    assert line.endswith("belong into train/<class>/ and test/<class>/, or into <class>/ with data.test_fraction")


def test_empty_classes_and_what_is_not_read(photos, log):
    (photos / "ape").mkdir()
    (photos / "cat/notes.txt").touch()
    assert f"{photos}: no images in the class folders 'ape';" in message_of(lambda: opened(photos, test_fraction=0.2))
    opened(photos, test_fraction=0.2, classes=["cat", "dog"])
    assert f"{photos}: 1 folders are not used: 'ape'" in log.messages
    assert any(line.startswith(f"{photos}: 1 files are not used: 1 .txt") for line in log.messages)


def test_classes_of_one_image(photos):
    save(photos / "ape/0.png", noise(8, 8, 3))
    remedy = "two or more are needed to validate on one: add some, or give --data.val_fraction 0"
    with pytest.raises(DataError, match=f"class 'ape': 1 training images, {remedy}"):
        opened(photos, test_fraction=0.2)
    save(photos / "ape/1.png", noise(8, 8, 3))
    data = opened(photos, "test", test_fraction=0.2)
    assert 0 not in data._set("test")[1]


def test_a_batch_that_is_too_large_is_noticed_before_an_image_is_decoded(photos, log):
    data = source(photos, test_fraction=0.3, batch_size=50)
    with pytest.raises(ConfigurationError, match="data.batch_size: 50 is more than the .* training images"):
        data.check_batch_size()
    assert not log.messages


def test_too_few_images_to_validate_on_are_no_matter_of_the_batch(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / name / "0.png", noise(8, 8, 3))
    data = source(tmp_path, test_fraction=0.3, batch_size=4)
    data.check_batch_size()
    with pytest.raises(DataError, match="class 'cat': 1 training images, two or more are needed"):
        data.setup("fit")


# Equal files.


def test_equal_files_are_said_and_stay_on_one_side(photos, log):
    for number in range(20):
        shutil.copy(photos / f"cat/cat{number}.png", photos / f"cat/copy{number}.png")
    shutil.copy(photos / "cat/cat30.png", photos / "dog/copy.png")
    data = opened(photos, test_fraction=0.4)
    data.setup("test")
    train, val, test = numbers(data, "train", "val", "test")
    assert not {*train, *val} & {*test}
    (line,) = [line for line in log.messages if "byte-equal" in line]
    assert line == (
        f"{photos}: 42 files are byte-equal to others, with which they stay on one side of the split: 'cat/cat0.png' = "
        "'cat/copy0.png', ...; 1 images are in several classes: 'dog/copy.png' = 'cat/cat30.png'"
    )


def test_two_folders_with_an_image_in_common_say_so(photos, log, tmp_path):
    root = tmp_path / "root"
    for split in ("train", "test", "val"):
        shutil.copytree(photos, root / split)
        for path in (root / split).rglob("*.png"):
            save(path, noise(8, 8, 3))
    shutil.copy(root / "train/cat/cat3.png", root / "test/dog/x.png")
    shutil.copy(root / "train/cat/cat4.png", root / "val/cat/y.png")
    shutil.copy(root / "train/cat/cat4.png", root / "train/cat/z.png")
    opened(root)
    (line,) = [line for line in log.messages if "byte-equal" in line]
    assert line == (
        f"{root}: byte-equal images are on several sides, 1 in train and test, 1 in train and val: "
        "'train/cat/cat3.png' = 'test/dog/x.png', ...; remove one of each, or the accuracy is too high"
    )


def test_files_are_compared_once(photos, monkeypatch):
    opened(photos, test_fraction=0.3)
    monkeypatch.setattr("cifar_resnets.data.duplicates._digests", None)
    opened(photos, test_fraction=0.3)


# The file of splits.


def test_fit_writes_the_file_and_adds_what_it_lacks(photos, tmp_path, log):
    file = tmp_path / "splits.csv"
    first = opened(photos, test_fraction=0.3, split_file=str(file))
    assert f"{photos}: the splits of 60 images were written to {file}" in log.messages
    written = file.read_text()
    assert written.splitlines()[:2] == ["path,split", f"cat/cat0.png,{first._one_folder.sides['cat/cat0.png']}"]
    save(photos / "dog/new.png", noise(8, 8, 3))
    second = opened(photos, test_fraction=0.3, split_file=str(file))
    assert file.read_text().startswith(written) and file.read_text().count("\n") == 62
    assert first._one_folder.sides.items() <= second._one_folder.sides.items()
    before = file.stat().st_mtime_ns
    alone = opened(photos, split_file=str(file))
    assert alone._one_folder.sides == second._one_folder.sides and file.stat().st_mtime_ns == before


def test_the_file_decides_also_on_validation_images(photos, tmp_path):
    rows = [f"cat/cat{index},train\ndog/dog{index},train\n".replace(",", ".png,") for index in range(20)]
    rows += [f"cat/cat{index}.png,{'val' if index < 33 else 'test'}\n" for index in range(20, 40)]
    (tmp_path / "splits.csv").write_text("path,split\n" + "".join(rows))
    data = opened(photos, split_file=str(tmp_path / "splits.csv"))
    data.setup("test")
    train = [*range(20), *range(40, 60)]
    assert numbers(data, "train", "val", "test") == [train, [*range(20, 33)], [*range(33, 40)]]


def test_files_that_the_file_lacks(photos, tmp_path):
    (tmp_path / "splits.csv").write_text("path,split\ncat/cat0.png,train\n")
    line = message_of(lambda: opened(photos, split_file=str(tmp_path / "splits.csv")))
    assert line == (
        f"data.split_file: {tmp_path / 'splits.csv'} lacks 'cat/cat1.png' and 58 more: add the files, or give "
        "--data.test_fraction to split them by their names"
    )
    line = message_of(lambda: opened(photos, split_file=str(tmp_path / "absent.csv")))
    assert line.startswith(f"data.split_file: {tmp_path / 'absent.csv'} is missing")


def test_a_file_in_a_folder_that_is_missing_is_noticed_before_an_image_is_decoded(photos, tmp_path, log):
    data = source(photos, test_fraction=0.3, batch_size=2, split_file=str(tmp_path / "no" / "splits.csv"))
    line = message_of(data.check_batch_size)
    assert line.endswith(f"no/splits.csv cannot be written: there is no folder {tmp_path / 'no'}") and not log.messages


def test_a_file_without_training_images(photos, tmp_path):
    paths = [f"{path.parent.name}/{path.name}" for path in photos.glob("*/*")]
    (tmp_path / "splits.csv").write_text("path,split\n" + "".join(f"{path},test\n" for path in paths))
    data = source(photos, split_file=str(tmp_path / "splits.csv"), mean=[0.5] * 3, std=[0.2] * 3)
    data.setup("test")
    assert len(data._set("test")[0]) == len(paths) == 60
    line = message_of(lambda: data.load("train"))
    assert line == f"data.split_file: {tmp_path / 'splits.csv'} leaves no train images in {photos}"


def test_a_description_holds_the_split(photos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    values = source(photos, test_fraction=0.2, split_file="splits.csv").describe()["init_args"]
    assert (values["test_fraction"], values["split_file"]) == (0.2, str(tmp_path / "splits.csv"))
    again = ImageFolder(**{**values, "augment": None})
    assert again.has_test_images and not (tmp_path / "splits.csv").exists()


# The command line.


@pytest.mark.process
def test_a_checkpoint_is_tested_on_the_images_that_were_left(cli, photos):
    recipe = TINY.replace("class_path: Digits", "class_path: ImageFolder")
    recipe = recipe.replace("batch_size: 40, num_train: 200", "batch_size: 8, root: photos, image_size: 8")
    Path("recipe.yaml").write_text(recipe + "explain: null\n")
    split = ("--data.test_fraction", "0.3", "--data.split_file", "splits.csv")
    result = cli("fit", "-c", "recipe.yaml", *split)
    assert (result.status, result.err) == (0, "")
    tested = Path("splits.csv").read_text().count(",test")
    assert f", {tested} to test (" in result.out and f"written to {Path('splits.csv').absolute()}" in result.out
    checkpoint = ("--ckpt_path", "logs/tiny/version_0/checkpoints/last.ckpt")
    before = Path("splits.csv").read_text()
    save(photos / "dog/new.png", noise(8, 8, 3))
    result = cli("test", *checkpoint)
    assert result.status == 0 and Path("splits.csv").read_text() == before
    result = cli("test", *checkpoint, "--data.test_fraction", "0.5")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "test: data.test_fraction 0.3 -> 0.5 would take images that were trained on, leave it out" in result.err
    result = cli("fit", "-c", "recipe.yaml", *split, *checkpoint, "--data.test_fraction", "0.4")
    assert (result.status, result.err.count("\n")) == (2, 1) and "data.test_fraction 0.3 -> 0.4" in result.err
    Path("splits.csv").unlink()
    result = cli("test", *checkpoint)
    assert (result.status, result.err.count("\n")) == (3, 1) and "splits.csv is missing" in result.err
    Path("splits.csv").write_text(before.replace("test", "tset", 1))
    result = cli("fit", "-c", "recipe.yaml", *split)
    assert (result.status, result.err.count("\n")) == (3, 1) and "'tset' is no split" in result.err
    assert Path("splits.csv").read_text() == before.replace("test", "tset", 1)

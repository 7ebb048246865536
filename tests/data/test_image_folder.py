import logging
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from image_samples import assert_fresh, expected, message_of, noise, save, source, start, write_samples
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from cifar_resnets.data import image_folder
from cifar_resnets.data.image_cache import cache_folder
from cifar_resnets.data.image_folder import ImageFolder
from cifar_resnets.errors import ConfigurationError


@pytest.fixture
def root(tmp_path):
    return write_samples(tmp_path / "root")


def in_stage(data, stage):
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn(stage)))
    return data


def test_both_splits(root):
    assert_fresh(root)
    images, labels = start(root)["train"]
    assert images.shape == (6, 8, 8, 3) and images.dtype == np.uint8 and labels.dtype == np.int64


def test_loaders(root):
    data = source(root, batch_size=2, val_fraction=0.34)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert len(data.test_dataloader()) == 1 and data.num_train_batches == 2


def test_describe(root):
    values = source(root).describe()["init_args"]
    assert values["root"] == str(root) and values["image_size"] == 8 and values["classes"] == ["cat", "dog"]


def test_unreadable_images_of_both_splits_are_in_one_error(root):
    for split, num in (("train", 8), ("test", 5)):
        for number in range(num):
            (root / split / "dog" / f"x{number}.jpg").write_bytes(b"")
    message = message_of(source(root).prepare_data)
    assert message.startswith(f"13 unreadable images in {root}: 'train/dog/x0.jpg', ")
    listed = cache_folder(root) / "unreadable.txt"
    assert f"'train/dog/x7.jpg', 'test/dog/x0.jpg', 'test/dog/x1.jpg' and 3 more, all listed in {listed}; " in message
    lines = listed.read_text().splitlines()
    assert len(lines) == 13 and lines[-1].startswith("test/dog/x4.jpg\tcannot identify image file")


def test_a_list_that_cannot_be_written_is_not_named(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(tmp_path / "file"))
    for number in range(11):
        (root / f"train/dog/x\x1b{number:02}.jpg").touch()
    assert "'train/dog/x\\x1b09.jpg' and 1 more; replace" in message_of(source(root).prepare_data)


def test_missing_folders(root, tmp_path):
    absent = tmp_path / "absent"
    for call in (source(absent).prepare_data, source(absent).source_classes, lambda: source(absent).load("train")):
        assert f"{absent} is no folder" in message_of(call)
    message = message_of(source(root / "train").prepare_data)
    assert f"{root / 'train'} has no folder train or test" in message and "train/<class>/" in message


@pytest.mark.parametrize(
    ("stage", "missing"), [("fit", "train"), ("validate", "train"), ("test", "test"), ("predict", "test")]
)
def test_folder_that_the_stage_needs(root, stage, missing):
    shutil.rmtree(root / missing)
    assert f"{root} has no folder {missing}" in message_of(in_stage(source(root), stage).prepare_data)
    assert f"{root} has no folder {missing}" in message_of(lambda: source(root).load(missing))


@pytest.mark.parametrize(
    ("stage", "missing"), [("test", "train"), ("predict", "train"), ("validate", "test"), ("fit", "test")]
)
def test_folder_that_the_stage_does_not_need(root, stage, missing):
    shutil.rmtree(root / missing)
    data = in_stage(source(root), stage)
    data.prepare_data()
    assert data.has_test_images == (missing != "test")


def test_checkpoint_on_test_images_alone(root):
    full = source(root)
    full.setup("test")
    shutil.rmtree(root / "train")
    arguments = full.describe()["init_args"]
    again = ImageFolder(**{**arguments, "augment": None})
    in_stage(again, "test").prepare_data()
    again.trainer = None
    again.setup("test")
    (images, labels), (expected_images, expected_labels) = again._set("test"), expected(root, "test")
    np.testing.assert_array_equal(images.numpy(), expected_images)
    np.testing.assert_array_equal(labels.numpy(), expected_labels)


def test_differing_classes(root, log):
    save(root / "train/ox/0.png", noise(8, 8))
    save(root / "test/yak/0.png", noise(8, 8))
    message = message_of(source(root).prepare_data)
    assert "train/'ox', test/'yak'" in message
    data = source(root, classes=["dog", "cat"])
    data.prepare_data()
    assert sorted(np.bincount(data.load("test")[1])) == [2, 2]
    # one that is missing in `test` is no reason not to train
    source(root, classes=["dog", "ox"]).prepare_data()
    assert f"{root}: no test images of test/'ox'" in log.messages


def test_chosen_classes(root):
    save(root / "train/ape/0.png", noise(8, 8))
    data = source(root, classes=["dog", "cat"])
    data.prepare_data()
    data.setup("test")
    images, labels = data._set("test")
    np.testing.assert_array_equal(images[labels == 0].numpy(), expected(root, "test")[0][2:])
    np.testing.assert_array_equal(images[labels == 1].numpy(), expected(root, "test")[0][:2])


def test_empty_classes(root):
    for split in ("train", "test"):
        (root / split / "ox").mkdir()
        (root / split / "ox" / "note.txt").touch()
    assert "train/'ox'" in message_of(source(root).prepare_data)
    source(root, classes=["cat", "dog"]).prepare_data()


# Validation images of their own, and what is left out.


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "cifar_resnets.data")
    return caplog


def add_validation(root, names=("cat", "dog"), num=2):
    for name in names:
        for number in range(num):
            save(root / "val" / name / f"{number}.png", noise(8, 8, 3))


def fitted(root, **kwargs):
    data = in_stage(source(root, batch_size=2, **kwargs), "fit")
    data.prepare_data()
    data.trainer = None
    data.setup("fit")
    return data


def test_images_in_val_are_the_validation_images(root, log):
    add_validation(root)
    data = fitted(root)
    for name in ("train", "val"):
        for found, wanted in zip(data._set(name), expected(root, name), strict=True):
            np.testing.assert_array_equal(found.numpy(), wanted)
    assert "6 training and 4 validation images" in data.summary()
    assert len(data.val_dataloader()) == 1
    assert not [message for message in log.messages if "not used" in message]


def test_val_is_left_out_where_nothing_is_validated(root, log):
    add_validation(root)
    data = fitted(root, val_fraction=0)
    assert "6 training and 0 validation images" in data.summary() and not data.val_dataloader()
    assert f"{root}: 1 folders are not used: 'val'" in log.messages


def test_a_class_without_validation_images(root, log):
    add_validation(root, names=("cat",))
    assert "6 training and 2 validation images" in fitted(root).summary()
    assert f"{root}: no validation images of val/'dog'" in log.messages
    shutil.rmtree(root / "val/cat")
    assert "no images in the class folders val/'cat', val/'dog'" in message_of(lambda: fitted(root))


def test_a_subset_of_the_classes_is_taken_of_val_too(root):
    for split in ("train", "test", "val"):
        save(root / split / "ape/0.png", noise(8, 8, 3))
        save(root / split / "ape/1.png", noise(8, 8, 3))
    add_validation(root)
    images, labels = fitted(root, classes=["dog", "cat"])._set("val")
    assert labels.tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(images.numpy(), expected(root, "val")[0][2:])


def test_folders_that_are_not_used_are_listed(root, log):
    for name in ("train/ape", "test/ape", "test/elk\x1b", "valid/cat"):
        save(root / name / "0.png", noise(8, 8, 3))
    data = source(root, classes=["cat", "dog"])
    data.prepare_data()
    data.prepare_data()
    folders = r"'valid', 'train/ape', 'test/ape', 'test/elk\x1b'"
    assert log.messages.count(f"{root}: 4 folders are not used: {folders}") == 1


def test_files_that_are_not_used_are_counted_by_their_endings(root, log):
    for name in ("train/cat/1.heic", "train/cat/2.HEIC", "test/dog/a.txt", "test/dog/README", "train/0.png"):
        (root / name).touch()
    os.mkfifo(root / "train/dog/pipe.png")
    source(root).prepare_data()
    (line,) = [message for message in log.messages if "not used" in message]
    assert line.startswith(f"{root}: 6 files are not used: 2 .heic, 1 beside the class folders, 1 no regular file, 1")
    assert line.endswith("images of formats that Pillow does not decode have to be converted")


def test_a_class_of_files_that_cannot_be_decoded_names_them(root):
    (root / "train/ox").mkdir()
    for number in range(3):
        (root / f"train/ox/{number}.heic").touch()
    shutil.copytree(root / "train/ox", root / "test/ox")
    assert message_of(source(root).prepare_data).endswith("remove them; there are other files: 3 .heic")


def test_image_size_out_of_range(root):
    with pytest.raises(ConfigurationError, match=r"data.image_size: 0 is not allowed, give 1 or more"):
        source(root, image_size=0)


def test_a_background_of_another_color(root):
    save(root / "train/cat/0.png", Image.new("RGBA", (8, 8)))
    assert start(root)["train"][0][0].min() == 255
    assert start(root, background="#000")["train"][0][0].max() == 0
    with pytest.raises(ConfigurationError, match="data.background: 'mauve-ish' is not allowed"):
        source(root, background="mauve-ish")


@pytest.mark.parametrize("name", ["s3://bucket/x", "file:///data", "hf://datasets/a", "gs:/bucket"])
def test_addresses_are_no_folders(name):
    with pytest.raises(ConfigurationError, match=f"^data.root: {name} is an address, give a path"):
        source(name)


@pytest.mark.parametrize(("names", "given", "line"), [
    (["on", "cat"], [True, "cat"], 'YAML reads on as True, quote it: "on"'),
    (["007", "cat"], [7, "cat"], 'YAML reads 007 as 7, quote it: "007"'),
    (["null", "cat"], [None, "cat"], 'YAML reads null as None, quote it: "null"'),
    (["no", "off"], [False, "off"], 'YAML reads no or off as False, quote it: "no"'),
])  # fmt: skip
def test_classes_that_yaml_reads_as_something_else(root, names, given, line):
    for split in ("train", "test"):
        for old, new in zip(("cat", "dog"), names, strict=True):
            (root / split / old).rename(root / split / f"{new}.")
        for path in (root / split).iterdir():
            path.rename(path.with_name(path.name[:-1]))
    with pytest.raises(ConfigurationError, match=f"^data.classes: {line}$"):
        _ = source(root, classes=given).class_names
    assert source(root, classes=names).class_names == names


def test_unknown_class(root):
    with pytest.raises(ConfigurationError, match="ox"):
        source(root, classes=["cat", "ox"]).prepare_data()


def test_other_ranks_load_without_preparing(root, monkeypatch):
    source(root).prepare_data()
    monkeypatch.setattr(image_folder, "decode", None)
    np.testing.assert_array_equal(source(root).load("train")[0], expected(root, "train")[0])


def test_relative_and_home_roots(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root.parent))
    for given in ("root", "~/root", f"{root}/../root/"):
        np.testing.assert_array_equal(ImageFolder(given, image_size=8).load("test")[0], expected(root, "test")[0])


ODD = ["a b.png", "c\"d'&<e>.png", "two\nlines.png", "猫.png", os.fsdecode(b"no\xfftext.png"), "deep/er/one.png"]


def test_names_are_paths_below_the_root_whatever_is_in_them(tmp_path):
    pixels = {}
    for split in ("train", "val", "test"):
        for kind in ("cat", "dog"):
            for name in ODD:
                pixels[f"{split}/{kind}/{name}"] = noise(8, 8, 3)
                save(tmp_path / split / kind / name, pixels[f"{split}/{kind}/{name}"])
    data = ImageFolder(str(tmp_path), image_size=8, batch_size=1, mean=[0.0] * 3, std=[1 / 255] * 3)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        (images,) = [batch for batch, _ in loader]
        escaped = {path.replace("\udcff", "\\xff"): each for path, each in pixels.items() if path.startswith(split)}
        assert sorted(loader.names) == sorted(escaped)
        for name, image in zip(loader.names, images, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).round().byte().numpy(), escaped[name])

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from image_samples import assert_fresh, expected, message_of, noise, save, source, start, write_samples
from lightning.pytorch.trainer.states import TrainerFn

from cifar_resnets.data import image_folder
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
    assert "'train/dog/x7.jpg', 'test/dog/x0.jpg', 'test/dog/x1.jpg' and 3 more; " in message


def test_missing_folders(root, tmp_path):
    absent = tmp_path / "absent"
    for call in (source(absent).prepare_data, source(absent).source_classes, lambda: source(absent).load("train")):
        assert f"{absent} is no folder" in message_of(call)
    message = message_of(source(root / "train").prepare_data)
    assert f"{root / 'train'} has no folder train or test" in message and "train/<class>/" in message


@pytest.mark.parametrize(
    ("stage", "missing"), [("fit", "train"), ("fit", "test"), ("validate", "train"), ("test", "test")]
)
def test_folder_that_the_stage_needs(root, stage, missing):
    shutil.rmtree(root / missing)
    assert f"{root} has no folder {missing}" in message_of(in_stage(source(root), stage).prepare_data)
    assert f"{root} has no folder {missing}" in message_of(lambda: source(root).load(missing))


@pytest.mark.parametrize(("stage", "missing"), [("test", "train"), ("predict", "train"), ("validate", "test")])
def test_folder_that_the_stage_does_not_need(root, stage, missing):
    shutil.rmtree(root / missing)
    in_stage(source(root), stage).prepare_data()


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


def test_differing_classes(root):
    save(root / "train/ox/0.png", noise(8, 8))
    save(root / "test/yak/0.png", noise(8, 8))
    message = message_of(source(root).prepare_data)
    assert "train/'ox', test/'yak'" in message
    data = source(root, classes=["dog", "cat"])
    data.prepare_data()
    assert sorted(np.bincount(data.load("test")[1])) == [2, 2]
    assert "train/'ox'" in message_of(source(root, classes=["dog", "ox"]).prepare_data)


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


def test_image_size_out_of_range(root):
    with pytest.raises(ConfigurationError, match=r"data.image_size: 0 is not allowed, give 1 or more"):
        source(root, image_size=0)


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

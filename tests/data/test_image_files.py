import io
import logging
import os
import shutil

import numpy as np
import pytest
from image_samples import (
    as_another_user,
    assert_fresh,
    message_of,
    noise,
    open_copy,
    save,
    source,
    start,
    write_samples,
)
from PIL import Image

from cifar_resnets.data import image_files
from cifar_resnets.errors import DataError


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, "cifar_resnets.data")
    return caplog


@pytest.fixture
def root(tmp_path):
    return write_samples(tmp_path / "root")


@pytest.fixture
def open_folder(root):
    with open_copy(root) as folder:
        yield folder


# What is read.


def test_files_in_deeper_folders_and_hidden_ones(root, log):
    save(root / "train/cat/more/and more/5.png", noise(8, 8, 3))
    save(root / "train/.hidden/1.png", noise(8, 8, 3))
    for name in ("train/cat/.hidden.png", "train/cat/.hidden/1.png", "train/.DS_Store", "train/cat/._0.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    (images, labels) = start(root)["train"]
    assert labels.tolist() == [0] * 4 + [1] * 3
    last = np.asarray(Image.open(root / "train/cat/more/and more/5.png"))
    np.testing.assert_array_equal(images[3], last)
    assert not [message for message in log.messages if "not used" in message]


def test_other_files_are_counted(root, log):
    for name in ("train/readme.txt", "train/cat/labels.csv", "train/dog/deep/no_ending", "test/cat/a.pdf"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    start(root)
    assert [m for m in log.messages if f"{root}: 4 files are not used: " in m]


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "gif", "jpg", "JPeG", "tif", "webp", "ppm", "tga", "jp2"])
def test_formats(root, ending):
    path = root / f"train/cat/3.{ending}"
    save(path, noise(8, 8, 3))
    images, labels = start(root)["train"]
    assert len(labels) == 7
    np.testing.assert_array_equal(images[3], np.asarray(Image.open(path).convert("RGB")))


def test_resized_and_converted(root, log):
    pixels = noise(40, 20, 3)
    save(root / "train/cat/0.png", pixels)
    save(root / "train/dog/0.png", noise(8, 8))
    images, _ = start(root)["train"]
    shrunk = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images[0], np.asarray(shrunk))
    # antialiased: every pixel of the original counts, so that the mean is nearly kept
    assert np.abs(images[0].mean((0, 1)) - pixels.mean((0, 1))).max() < 3
    assert log.messages[0] == f"decoded 6 images of {root / 'train'}: 1 converted to RGB, 1 resized to 8x8"


def test_more_images_than_a_block(root, monkeypatch):
    monkeypatch.setattr(image_files, "_BLOCK", 4)
    assert_fresh(root)


def test_links(root):
    save(root.parent / "elsewhere/9.png", noise(8, 8, 3))
    (root / "train/cat/linked").symlink_to(root.parent / "elsewhere")
    (root / "train/cat/loop").symlink_to(root / "train/cat")
    (root / "train/dog/7.png").symlink_to(root / "train/dog/0.png")
    (root / "linked").mkdir()
    images, labels = start(root)["train"]
    assert labels.tolist() == [0] * 4 + [1] * 4
    np.testing.assert_array_equal(images[3], np.asarray(Image.open(root.parent / "elsewhere/9.png")))
    np.testing.assert_array_equal(images[7], images[4])


def test_linked_class_folders(root):
    shutil.move(root / "train/cat", root.parent / "cats")
    (root / "train/cat").symlink_to(root.parent / "cats")
    assert len(start(root)["train"][0]) == 6


def test_a_class_folder_that_is_no_text_is_refused(root):
    os.rename(os.fsencode(root / "train/cat"), os.fsencode(root / "train") + b"/\xff\xfecat")
    with pytest.raises(DataError, match=r"no UTF-8: '\\udcff\\udcfecat'"):
        start(root)


def test_pipes_are_not_waited_for(root):
    os.mkfifo(root / "train/cat/pipe.png")
    assert len(start(root)["train"][0]) == 6


# Modes; see `test_image_modes.py`.


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_files(root, ending):
    values = noise(8, 8, dtype=np.uint16)
    save(root / f"train/cat/0.{ending}", Image.fromarray(values))
    images, labels = start(root)["train"]
    at = 1 if ending == "tif" else 0  # after 0.png
    np.testing.assert_array_equal(images[at], np.rint(values / 257.0)[..., None].repeat(3, axis=-1))


def test_large_image_is_read_without_a_warning(root, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    save(root / "train/dog/large.png", noise(20, 20, 3))
    assert len(start(root)["train"][0]) == 7
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]


def test_images_without_a_white_level_are_counted(root, log):
    save(root / "train/cat/0.tif", noise(8, 8).astype(np.float32))
    save(root / "train/dog/0.tif", noise(8, 8).astype(np.int32))
    save(root / "train/dog/1.tif", noise(8, 8, dtype=np.uint16))
    images, _ = start(root)["train"]
    assert images[1].max() == 255
    (line,) = [message for message in log.messages if "32-bit" in message]
    assert line.startswith(f"{root / 'train'}: 2 images of 32-bit integers, or of floats outside 0 to 1,")


def test_images_of_12_bits_in_files_of_16_are_counted(root, log):
    save(root / "train/cat/0.tif", noise(8, 8, dtype=np.uint16) // 16)
    start(root)
    assert f"{root / 'train'}: 1 images of 16 bits use a 16th of them, and so are nearly black" in log.messages


# Unreadable images.


def truncated(image_format):
    file = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(file, image_format)
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(
    "content",
    [b"", b"text", truncated("PNG"), truncated("JPEG"), truncated("BMP"), truncated("TIFF"), truncated("GIF")],
    ids=["empty", "text", "png", "jpeg", "bmp", "tiff", "gif"],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_unreadable(root, split, content):
    (root / split / "cat" / "bad.png").write_bytes(content)
    for _ in range(2):
        message = message_of(source(root).prepare_data)
        assert f"1 unreadable images in {root}: '{split}/cat/bad.png'; " in message
        assert message.count(str(root)) == 1
    (root / split / "cat" / "bad.png").unlink()
    assert_fresh(root)


def test_links_to_themselves_are_unreadable(root):
    (root / "train/cat/self.png").symlink_to("self.png")
    (root / "train/cat/self").symlink_to("self")
    assert "'train/cat/self.png'" in message_of(source(root).prepare_data)


def test_links_to_nothing_are_unreadable(root):
    (root / "test/cat/lost.png").symlink_to(root / "nowhere.png")
    assert "'test/cat/lost.png'" in message_of(source(root).prepare_data)


def test_decompression_bomb(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    save(root / "train/dog/bomb.png", noise(20, 20))
    message = message_of(source(root).prepare_data)
    assert "1 unreadable images" in message and "'train/dog/bomb.png'" in message and "bomb" in message.split(";")[1]


def test_any_exception_of_pillow(root, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(image_files.Image, "open", broken)
    assert "10 unreadable images" in message_of(source(root).prepare_data)


# Folders.


def test_too_few_classes(root):
    shutil.rmtree(root / "train/dog")
    assert f"{root / 'train'}: two or more class folders" in message_of(source(root).source_classes)
    shutil.rmtree(root / "train/cat")
    assert "there are 0" in message_of(source(root).prepare_data)


@pytest.mark.parametrize("twin", ["Cat", "cat ", "c at", "CAT", "ｃａｔ"])
def test_names_that_look_alike(root, twin):
    (root / "train" / twin).mkdir()
    message = message_of(source(root).source_classes)
    assert repr(twin) in message and "'cat'" in message and "'dog'" not in message


def test_folder_that_cannot_be_read(open_folder):
    closed = open_folder / "root/train/cat"
    closed.chmod(0o000)
    with as_another_user():
        message = message_of(source(open_folder / "root").prepare_data)
    assert f"{closed} cannot be read: Permission denied" in message

import contextlib
import io
import logging
import os
import shutil
import tempfile
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from cifar_resnets.data import image_folder
from cifar_resnets.data.image_folder import ImageFolder, to_rgb
from cifar_resnets.errors import ConfigurationError, DataError

RNG = np.random.default_rng(0)
MODULE = "cifar_resnets.data.image_folder"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, MODULE)
    return caplog


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Two classes of 8x8 PNG files: 3 + 3 to train, 2 + 2 to test."""
    folder = tmp_path / "root"
    for split, num in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(num):
                save(folder / split / name / f"{number}.png", noise(8, 8, 3))
    return folder


def source(root, image_size=8, **kwargs):
    return ImageFolder(str(root), image_size=image_size, **kwargs)


def start(root, image_size=8, **kwargs):
    """What a start of the program does; all images and labels."""
    data = source(root, image_size, **kwargs)
    data.prepare_data()
    return {split: data.load(split) for split in ("train", "test") if (root / split).is_dir()}


def expected(root, split, size=8):
    """The same images, read one by one."""
    images, labels = [], []
    for label, folder in enumerate(sorted(path for path in (root / split).iterdir() if path.is_dir())):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix == ".png"):
            images.append(np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
            labels.append(label)
    return np.stack(images), np.array(labels)


def assert_fresh(root, **kwargs):
    for split, (images, labels) in start(root, **kwargs).items():
        np.testing.assert_array_equal(images, expected(root, split)[0])
        np.testing.assert_array_equal(labels, expected(root, split)[1])


def num_decoded(log):
    """How many splits were decoded."""
    return sum(message.startswith("decoded ") for message in log.messages)


def message_of(call):
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_stage(data, stage):
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn(stage)))
    return data


# What is read.


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
    assert not [message for message in log.messages if "ignored" in message]


def test_other_files_are_counted(root, log):
    for name in ("train/readme.txt", "train/cat/labels.csv", "train/dog/deep/no_ending", "test/cat/a.pdf"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    start(root)
    assert [m for m in log.messages if "ignored" in m] == [f"{root}: 4 files are no images and were ignored"]


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
    monkeypatch.setattr(image_folder, "_BLOCK", 4)
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


def test_pipes_are_not_waited_for(root):
    os.mkfifo(root / "train/cat/pipe.png")
    assert len(start(root)["train"][0]) == 6


# Modes.

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def grey_rgb(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bits_are_scaled(mode):
    levels = np.concatenate([np.arange(0, 65536, 257), [0, 128, 129, 65406, 65407, 65535] + [40000] * 26])
    data = levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    image = Image.frombytes(mode, (16, 18), data)
    rgb = np.asarray(to_rgb(image))
    np.testing.assert_array_equal(rgb, grey_rgb(np.rint(levels / 65535 * 255)).reshape(18, 16, 3))
    assert rgb.max() == 255 and rgb.min() == 0


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_files(root, ending):
    values = noise(8, 8, dtype=np.uint16)
    save(root / f"train/cat/0.{ending}", Image.fromarray(values))
    images, labels = start(root)["train"]
    at = 1 if ending == "tif" else 0  # after 0.png
    np.testing.assert_array_equal(images[at], grey_rgb(np.rint(values / 257.0)))


@pytest.mark.parametrize(
    ("values", "as_bytes"),
    [
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 1 << 20, 1 << 21]], np.int32), [0, 128, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 2.4, 255]], np.float32), [0, 2, 255]),
        (np.array([[0, 257, 65535]], np.float32), [0, 1, 255]),
        (np.array([[-0.25, 0, 0.25]], np.float32), [0, 128, 255]),
        (np.array([[-3, -3, -3]], np.float32), [0, 0, 0]),
        (np.array([[np.nan, 0, 1]], np.float32), [0, 0, 255]),
    ],
)
def test_32_bit_levels(values, as_bytes):
    rgb = np.asarray(to_rgb(Image.fromarray(values)))
    np.testing.assert_array_equal(rgb, grey_rgb([as_bytes]))


def test_palette_transparency_and_bits():
    opaque = Image.fromarray(noise(16, 16, 3))
    palette = opaque.quantize(16)
    np.testing.assert_array_equal(
        np.asarray(to_rgb(palette)), np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    )
    rgba = noise(16, 16, 4)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(rgba))), rgba[..., :3])
    la = noise(16, 16, 2)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(la, "LA"))), grey_rgb(la[..., 0]))
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(GREY))), grey_rgb(GREY))
    bits = GREY > 100
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(bits))), grey_rgb(bits * 255))


def test_cmyk():
    cmyk = noise(16, 16, 4)
    ink, black = 255 - cmyk[..., :3].astype(int), 255 - cmyk[..., 3:].astype(int)
    rgb = np.asarray(to_rgb(Image.fromarray(cmyk, "CMYK")))
    assert np.abs(rgb - ink * black / 255).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "La", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I"])
def test_no_mode_fails_or_warns(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_large_image_is_read_without_a_warning(root, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    save(root / "train/dog/large.png", noise(20, 20, 3))
    assert len(start(root)["train"][0]) == 7
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]


def test_transparent_palette_does_not_warn():
    palette = Image.fromarray(noise(8, 8, 3)).quantize(8)
    palette.info["transparency"] = bytes(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.asarray(to_rgb(palette)), np.asarray(palette.convert("RGBA"))[..., :3])


def test_palette_file_with_transparency(root, recwarn):
    palette = Image.fromarray(noise(8, 8, 3)).quantize(8)
    save(root / "train/cat/0.png", palette, transparency=bytes([0, 128, 255, 255, 255, 255, 255, 255]))
    images, _ = start(root)["train"]
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(images[0], colours[np.asarray(palette)])
    assert not [warning for warning in recwarn if "ransparency" in str(warning.message)]


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
def test_unreadable(root, split, content, cache):
    (root / split / "cat" / "bad.png").write_bytes(content)
    for _ in range(2):
        message = message_of(source(root).prepare_data)
        assert f"1 unreadable images in {root}: '{split}/cat/bad.png'; " in message
        assert message.count(str(root)) == 1
    (root / split / "cat" / "bad.png").unlink()
    assert_fresh(root)


def test_unreadable_in_both_splits_are_told_at_once(root):
    for split, num in (("train", 8), ("test", 5)):
        for number in range(num):
            (root / split / "dog" / f"x{number}.jpg").write_bytes(b"")
    message = message_of(source(root).prepare_data)
    assert message.startswith(f"13 unreadable images in {root}: 'train/dog/x0.jpg', ")
    assert "'train/dog/x7.jpg', 'test/dog/x0.jpg', 'test/dog/x1.jpg' and 3 more; " in message


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

    monkeypatch.setattr(image_folder.Image, "open", broken)
    assert "10 unreadable images" in message_of(source(root).prepare_data)


# Folders.


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


# The cache.


def test_second_start_decodes_nothing(root, log, monkeypatch):
    assert_fresh(root)
    assert num_decoded(log) == 2
    monkeypatch.setattr(image_folder, "decode", None)
    assert_fresh(root)
    assert_fresh(root)


def test_other_ranks_load_without_preparing(root, monkeypatch):
    source(root).prepare_data()
    monkeypatch.setattr(image_folder, "decode", None)
    np.testing.assert_array_equal(source(root).load("train")[0], expected(root, "train")[0])


def test_sizes_do_not_push_each_other_out(root, log):
    start(root, 8), start(root, 4)
    log.clear()
    assert start(root, 4)["train"][0].shape == (6, 4, 4, 3) and start(root, 8)["train"][0].shape == (6, 8, 8, 3)
    assert not log.messages


def touch(root):
    status = (root / "train/cat/0.png").stat()
    os.utime(root / "train/cat/0.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES = {
    "changed": lambda root: save(root / "train/cat/0.png", noise(8, 8, 3)),
    "added": lambda root: save(root / "train/cat/9.png", noise(8, 8, 3)),
    "removed": lambda root: (root / "train/cat/0.png").unlink(),
    "renamed": lambda root: (root / "train/cat/0.png").rename(root / "train/dog/00.png"),
    "touched": touch,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_noticed(root, log, change):
    assert_fresh(root)
    log.clear()
    change(root)
    assert_fresh(root)
    assert [message.split(":")[0].split("/")[-1] for message in log.messages] == ["train"]


def test_new_class_shifts_the_labels_of_both_splits(root):
    start(root)
    for split in ("train", "test"):
        save(root / split / "ape/0.png", noise(8, 8, 3))
    assert_fresh(root)


def test_new_pillow_or_format_decodes_again(root, log, monkeypatch):
    start(root)
    monkeypatch.setattr(image_folder, "CACHE_FORMAT", 0)
    start(root)
    assert num_decoded(log) == 4


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "pixel": lambda path: flip(path, -1),
    "checksum": lambda path: flip(path, 66),
    "fingerprint": lambda path: flip(path, 3),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "short": lambda path: path.write_bytes(path.read_bytes()[:70]),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_made_again(root, cache, log, damage):
    start(root)
    [path] = cache.glob("*/train-8")
    damage(path)
    log.clear()
    assert_fresh(root)
    assert num_decoded(log) == 1
    if path.is_file():
        log.clear()
        assert_fresh(root)
        assert not log.messages
    assert not list(cache.glob("*/*.part"))


def test_flipped_bit_is_told(root, cache, log):
    start(root)
    [path] = cache.glob("*/train-8")
    flip(path, -1)
    log.clear()
    assert_fresh(root)
    assert log.messages[0] == f"{path} is damaged: the images are decoded again"


def test_full_disk(root, cache, log, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_folder.os, "fsync", full)
    assert_fresh(root)
    assert num_decoded(log) == 2  # each split once, though it could not be kept
    assert sum("cannot be kept" in message and "No space left" in message for message in log.messages) == 2
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_cache_below_a_file(root, tmp_path, log, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(tmp_path / "file"))
    assert_fresh(root)
    assert_fresh(root)
    assert num_decoded(log) == 4


@contextlib.contextmanager
def as_another_user():
    """Root may write everywhere: its rights are dropped for a while."""
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
    except OSError:
        pytest.skip("root may write everywhere, and its rights cannot be dropped here")
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def open_folder(root):
    """A copy of the images that other users may read (pytest's folders they may not)."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    shutil.copytree(root, folder / "root")
    yield folder
    shutil.rmtree(folder)


def test_cache_that_cannot_be_written(open_folder, monkeypatch, log):
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(open_folder / "cache"))
    (open_folder / "cache").mkdir(mode=0o555)
    with as_another_user():
        assert_fresh(open_folder / "root")
    assert num_decoded(log) == 2 and sum("cannot be kept" in message for message in log.messages) == 2


def test_full_cache_that_cannot_be_written_is_used(open_folder, monkeypatch, log):
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(open_folder / "cache"))
    start(open_folder / "root")
    for path in (open_folder / "cache").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    log.clear()
    with as_another_user():
        assert_fresh(open_folder / "root")
    assert not log.messages


def test_folder_that_cannot_be_read(open_folder):
    closed = open_folder / "root/train/cat"
    closed.chmod(0o000)
    with as_another_user():
        message = message_of(source(open_folder / "root").prepare_data)
    assert f"{closed} cannot be read: Permission denied" in message


def test_two_starts_at_once_decode_once(root, log):
    results = []
    threads = [threading.Thread(target=lambda: results.append(start(root)["train"][0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_decoded(log) == 2
    for images in results:
        np.testing.assert_array_equal(images, expected(root, "train")[0])


def test_place_of_the_cache(root, tmp_path, monkeypatch):
    def place():
        return image_folder.cache_folder(root).parent

    assert place() == tmp_path / "cache"
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert place() == tmp_path / "xdg/cifar_resnets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert place() == tmp_path / "home/.cache/cifar_resnets"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without any home
    assert place() == Path("/dev/null/cifar_resnets")


def test_roots_have_caches_of_their_own(tmp_path, root):
    twin = tmp_path / "deeper" / root.name
    assert image_folder.cache_folder(twin).name.startswith("root-")
    assert image_folder.cache_folder(twin) != image_folder.cache_folder(root)
    (tmp_path / "link").symlink_to(root)
    assert image_folder.cache_folder(tmp_path / "link") == image_folder.cache_folder(root)


def test_relative_and_home_roots(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root.parent))
    for given in ("root", "~/root", f"{root}/../root/"):
        np.testing.assert_array_equal(ImageFolder(given, image_size=8).load("test")[0], expected(root, "test")[0])

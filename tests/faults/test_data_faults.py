"""What can be wrong with folders of images: broken files, odd ones, classes that contradict each other."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.matrix import ends_well, fault, files_in, leaves_nothing, one_line
from image_samples import noise
from PIL import Image
from processes import run
from support import TINY, Result, write_images

pytestmark = pytest.mark.process

GROUP = "images"
RUN = "logs/tiny/version_0"
QUICK = ("--trainer.fast_dev_run", "true")  # one batch: enough to see what is read
NOBODY = 65534
RECIPE = TINY.replace("class_path: Digits", "class_path: ImageFolder").replace(
    "batch_size: 40, num_train: 200", "root: images, image_size: 16, batch_size: 10"
)


class Place:
    """A folder with a recipe, a cache, and `images` of three classes: 12 to train and 4 to test of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = write_images(path / "images", num_train=12, num_test=4)
        self.red = self.images / "train/red"
        (path / "cache").mkdir()
        (path / "recipe.yaml").write_text(RECIPE + "explain: null\n")

    def fit(self, *args: str, uid: int | None = None, **env: str) -> Result:
        """Runs a fit, after which nothing may be lost, or left but the run and the decoded images."""
        before = files_in(self.path)
        env = {"CIFAR_RESNETS_CACHE": str(self.path / "cache"), **env}
        result = run("fit", "-c", "recipe.yaml", *args, cwd=self.path, env=env, uid=uid)
        for kept in self.path.glob("cache/*"):
            assert not [path for path in kept.glob("*.part")], "an unfinished file in the cache"
            shutil.rmtree(kept)
        leaves_nothing(self.path, before, run=RUN)
        return result


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def open_place() -> Iterator[Place]:
    """A place that other users may enter; pytest's folders are closed to them."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: files of another user take root")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        place = Place(path)
        (path / "cache").chmod(0o777)
        yield place


# Images that cannot be read.


def truncated(path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


def bomb(path: Path) -> None:
    """Some bytes that say they are 30,000 x 30,000 pixels."""
    small = io.BytesIO()
    Image.new("L", (1, 1)).save(small, "png")
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + small.getvalue()[24:29]
    path.write_bytes(small.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + small.getvalue()[33:])


def linked_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        pytest.param(lambda path: path.touch(), "cannot identify", marks=fault("a zero-byte image")),
        pytest.param(truncated, "truncated", marks=fault("a truncated image")),
        pytest.param(lambda p: p.write_text("no image"), "cannot identify", marks=fault("a text file called .png")),
        pytest.param(lambda p: p.write_bytes(noise(500)), "cannot identify", marks=fault("noise called .png")),
        pytest.param(bomb, "decompression bomb", marks=fault("an image bomb")),
        pytest.param(lambda p: p.symlink_to("gone"), "No such file", marks=fault("a link to an image that is gone")),
    ],
)
def test_unreadable_image(place: Place, write: Callable[[Path], object], reason: str) -> None:
    write(place.red / "bad.png")
    write(place.images / "test/blue/worse.png")
    line = one_line(place.fit(), 3, "2 unreadable images in", "'train/red/bad.png', 'test/blue/worse.png'", reason)
    assert "replace or remove them" in line


@fault("a link to itself called .png")
def test_link_to_itself(place: Place) -> None:
    linked_to_itself(place.red / "loop.png")
    one_line(place.fit(), 3, "train/red/loop.png", "Too many levels of symbolic links")


@fault("a hundred damaged images")
def test_many_damaged_images(place: Place) -> None:
    for number in range(100):
        (place.red / f"bad{number:03}.png").touch()
    line = one_line(place.fit(), 3, "100 unreadable images", "bad000.png", "and 90 more, all listed in ")
    assert len(line) < 600


@fault("an image without the right to read it")
def test_closed_image(open_place: Place) -> None:
    (open_place.red / "3.png").chmod(0o000)
    one_line(open_place.fit(uid=NOBODY), 3, "train/red/3.png", "Permission denied")


@fault("a class folder without the right to read it")
def test_closed_folder(open_place: Place) -> None:
    open_place.red.chmod(0o000)
    one_line(open_place.fit(uid=NOBODY), 3, str(open_place.red), "Permission denied")


# Images that are odd, and read.


def png(pixels: Any, **options: Any) -> Callable[[Path], None]:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda path: image.save(path.with_suffix(".png"), **options)


def animated(path: Path) -> None:
    first, *others = (Image.fromarray(noise(16, 16, 3)) for _ in range(3))
    first.save(path.with_suffix(".gif"), save_all=True, append_images=others)


def cmyk(path: Path) -> None:
    Image.fromarray(noise(16, 16, 4), "CMYK").save(path.with_suffix(".jpg"))


def not_utf8(path: Path) -> None:
    Image.fromarray(noise(16, 16, 3)).save(os.fsdecode(bytes(path.parent) + b"/\xff\xfe.png"))


RGBA = noise(16, 16, 4)
PALETTE = Image.fromarray(noise(16, 16, 3)).quantize(16)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        pytest.param(png(noise(16, 16)), "1 converted to RGB, 0 resized", marks=fault("a grey image")),
        pytest.param(png(RGBA), "1 converted to RGB, 0 resized", marks=fault("an RGBA image")),
        pytest.param(png(noise(16, 16, dtype=np.uint16)), "1 converted", marks=fault("a 16-bit image")),
        pytest.param(png(PALETTE, transparency=0), "1 converted", marks=fault("an image with a palette")),
        pytest.param(png(noise(16, 16) > 99), "1 converted", marks=fault("a black-and-white image")),
        pytest.param(cmyk, "1 converted", marks=fault("a CMYK image")),
        pytest.param(animated, "1 converted", marks=fault("an animated image")),
        pytest.param(png(noise(50, 20, 3)), "0 converted to RGB, 1 resized", marks=fault("an image of another size")),
        pytest.param(png(noise(1, 1, 3)), "1 resized to 16x16", marks=fault("an image of 1x1 pixels")),
        pytest.param(png(noise(3000, 2, 3)), "1 resized to 16x16", marks=fault("an image of 3000x2 pixels")),
        pytest.param(not_utf8, "0 converted to RGB, 0 resized", marks=fault("a file name that is no UTF-8")),
        pytest.param(lambda p: p.with_name(".hid.png").touch(), "0 converted", marks=fault("a hidden, broken file")),
    ],
)
def test_odd_image(place: Place, write: Callable[[Path], object], said: str) -> None:
    write(place.red / "odd")
    result = place.fit(*QUICK)
    ends_well(result, f"of {place.images}/train: ", said)
    hidden = (place.red / ".hid.png").exists()
    assert f"decoded {36 if hidden else 37} images" in result.out


@fault("files that are no images beside them")
def test_other_files(place: Place) -> None:
    (place.red / "labels.csv").write_text("a,b\n")
    (place.red / "Thumbs.db").write_bytes(noise(50))
    (place.images / "train/README").touch()
    os.mkfifo(place.red / "pipe.png")
    result = run("fit", "-c", "recipe.yaml", *QUICK, cwd=place.path)
    ends_well(result, "4 files are not used: ", "1 .csv", "1 .db", "1 no regular file", "1 beside the class folders")


@fault("a folder that links back to itself")
def test_link_loop(place: Place) -> None:
    (place.red / "loop").symlink_to("..")
    (place.images / "test/blue/again").symlink_to(".")
    result = place.fit(*QUICK)
    ends_well(result, "in 3 classes")
    assert "decoded 36 images" not in result.out  # those of the other classes, which `..` leads to, are there, too


# Classes.


@pytest.mark.parametrize("names", [("cat", "Cat"), ("cat", "cat "), ("cat", "Cat", "cat ")])
@fault("class folders called `cat`, `Cat`, `cat `")
def test_twins(place: Place, names: tuple[str, ...]) -> None:
    for split in ("train", "test"):
        for name in names:
            shutil.copytree(place.images / split / "red", place.images / split / name)
    one_line(place.fit(), 3, str(place.images / "train"), *map(repr, names), "merge or rename them")


def empty(images: Path) -> None:
    (images / "train/red/0.png").unlink()
    for path in (images / "train/red").iterdir():
        path.unlink()


def only_in(split: str) -> Callable[[Path], None]:
    return lambda images: shutil.copytree(images / "train/red", images / split / "more") and None


def renamed(images: Path) -> None:
    os.rename(images / "test/red", images / "test/more")


def only_one(images: Path) -> None:
    for path in [*images.glob("*/green"), *images.glob("*/blue")]:
        shutil.rmtree(path)


def one_image(images: Path) -> None:
    for path in sorted((images / "train/red").iterdir())[1:]:
        path.unlink()


def no_text(images: Path) -> None:
    for split in ("train", "test"):
        os.rename(images / split / "red", os.fsdecode(bytes(images / split) + b"/\xff"))


def split_in_split(images: Path) -> None:
    os.rename(images / "train", images / "other")
    (images / "train").mkdir()
    os.rename(images / "other", images / "train/train")


@pytest.mark.parametrize(
    ("change", "culprits"),
    [
        pytest.param(empty, ("train/'red'", "no images"), marks=fault("an empty class")),
        pytest.param(renamed, ("test/'more', train/'red'",), marks=fault("a class renamed in test")),
        pytest.param(only_one, ("train: two or more class folders",), marks=fault("a single class")),
        pytest.param(one_image, ("class 'red': 1 training images",), marks=fault("a class of one image")),
        pytest.param(no_text, ("names are no UTF-8", "udcff"), marks=fault("a class name that is no UTF-8")),
        pytest.param(lambda i: shutil.rmtree(i / "train"), ("no folder train",), marks=fault("no training images")),
        pytest.param(shutil.rmtree, ("data.root", "is no folder"), marks=fault("no images at all")),
        pytest.param(split_in_split, ("train: two or more class folders", "'train'"), marks=fault("train in train")),
        pytest.param(
            lambda i: (i / "train/loop").symlink_to("loop"),
            ("train/loop", "Too many levels"),
            marks=fault("a class folder that links to itself"),
        ),
    ],
)
def test_bad_classes(place: Place, change: Callable[[Path], object], culprits: tuple[str, ...]) -> None:
    change(place.images)
    one_line(place.fit(), 3, *culprits)


@fault("a class only in test")
def test_a_class_that_is_not_trained_on(place: Place) -> None:
    only_in("test")(place.images)
    ends_well(place.fit(*QUICK), "1 folders are not used: 'test/more'")


@fault("a class only in train")
def test_a_class_that_is_not_tested(place: Place) -> None:
    only_in("train")(place.images)
    result = place.fit()
    ends_well(result, "no test images of test/'more'", "accuracy: validation ")
    row = next(line for line in result.out.splitlines() if "│ more " in line)
    assert re.findall(r"\d+", row) == ["0", "0"]  # correct, images: no accuracy


@fault("no test images")
def test_no_test_images(place: Place) -> None:
    shutil.rmtree(place.images / "test")
    ends_well(place.fit(), "not tested: there are no test images", "accuracy: validation ")


@fault("a hidden folder beside the classes")
def test_hidden_folder(place: Place) -> None:
    shutil.copytree(place.red, place.images / "train/.ipynb_checkpoints")
    (place.red / ".cache").mkdir()
    (place.red / ".cache/bad.png").touch()
    ends_well(place.fit(*QUICK), "in 3 classes", "decoded 36 images")


@pytest.mark.parametrize("name", ["images/train", "images/train/red/0.png", "", "."])
@fault("another folder given for the images")
def test_wrong_root(place: Place, name: str) -> None:
    line = one_line(place.fit("--data.root", name), 3, f"data.root: {place.path / name}")
    assert "the images belong into train/<class>/ and test/<class>/" in line


# Sizes.


@pytest.mark.parametrize(
    ("args", "said"),
    [
        pytest.param(("image_size", "0"), "0 is not allowed, give 1 or more", marks=fault("an image size of 0")),
        pytest.param(("image_size", "-8"), "-8 is not allowed", marks=fault("a negative image size")),
        pytest.param(
            ("image_size", "200000"), "GB are free; give a smaller size", marks=fault("a size beyond all memory")
        ),
        pytest.param(("batch_size", "33"), "33 is more than the 32", marks=fault("a batch larger than the data")),
        pytest.param(("num_train", "99"), "99 is not allowed, give 3 to 32", marks=fault("more images than there are")),
        pytest.param(("augment.crop_padding", "16"), "less than 16", marks=fault("padding as wide as the images")),
    ],
)
def test_bad_sizes(place: Place, args: tuple[str, str], said: str) -> None:
    name, value = args
    one_line(place.fit(f"--data.{name}", value), 2, f"data.{name}: ", said)


# The cache of decoded images.


@fault("a cache that cannot be written")
def test_closed_cache(open_place: Place) -> None:
    (open_place.path / "cache").chmod(0o555)
    ends_well(open_place.fit(uid=NOBODY), "cannot be kept", "Permission denied", "accuracy: ")


@fault("an image folder that can only be read")
def test_readable_folder(open_place: Place) -> None:
    for folder in [open_place.images, *open_place.images.rglob("*")]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    ends_well(open_place.fit(uid=NOBODY), "accuracy: ")


@fault("a damaged cache of decoded images")
def test_damaged_cache(place: Place) -> None:
    env = {"CIFAR_RESNETS_CACHE": str(place.path / "cache")}
    first = run("fit", "-c", "recipe.yaml", cwd=place.path, env=env)
    ends_well(first, "decoded 36 images")
    (kept,) = place.path.glob("cache/*/train-16")
    sound = kept.read_bytes()
    kept.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    again = run("fit", "-c", "recipe.yaml", cwd=place.path, env=env)
    ends_well(again, "is damaged: the images are decoded again")
    assert kept.read_bytes() == sound

    def accuracy(result: Result) -> str:
        return next(line for line in result.out.splitlines() if line.startswith("accuracy: "))

    assert accuracy(first) == accuracy(again)

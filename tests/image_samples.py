"""Small image folders, what reading them should give, and folders of another user."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_resnets.data.image_folder import ImageFolder
from cifar_resnets.errors import DataError

RNG = np.random.default_rng(0)


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def write_samples(folder):
    """Two classes of 8x8 PNG files: 3 + 3 to train, 2 + 2 to test."""
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


def message_of(call):
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


@contextlib.contextmanager
def open_copy(root):
    """A copy of the images that other users may read (pytest's folders they may not); the folder it is in."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(root, folder / "root")
        yield folder

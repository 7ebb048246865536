"""Images in folders, one folder per class: decoded once, then read from a cache."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split
from cifar_resnets.data.image_cache import Cache, cache_folder, fingerprint
from cifar_resnets.data.image_files import Files, UnreadableImages, class_folders, decode, scan
from cifar_resnets.errors import ConfigurationError, DataError

SPLITS: tuple[Split, ...] = ("train", "test")

# the splits that each command reads; `fit` ends with a test
_NEEDED: dict[str, tuple[Split, ...]] = {"fit": SPLITS, "validate": ("train",), "test": ("test",), "predict": ("test",)}

logger = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Images in `root/train/<class>/` and `root/test/<class>/`, in any format that Pillow decodes.

    Images are converted to RGB as by `PIL.Image.convert` (transparency is dropped, as torchvision does), but grey
    levels of 16 and 32 bits are scaled to 8 bits, not clipped. An image of another size is resized to a square with
    bilinear, antialiased interpolation. Names with a leading dot are ignored.

    The decoded images are cached in $CIFAR_RESNETS_CACHE, else $XDG_CACHE_HOME/cifar_resnets, else
    ~/.cache/cifar_resnets, and decoded again when a file was added, removed or changed.

    Args:
        root: folder with the folders `train` and `test`; one may be missing if the command does not read it.
        image_size: height and width of the images in pixels.
        kwargs: see `ImageDataModule`.

    Raises:
        ConfigurationError: for a value out of range.
    """

    def __init__(self, root: str, image_size: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if image_size < 1:
            raise ConfigurationError(f"data.image_size: {image_size} is not allowed, give 1 or more")
        self.root = root
        self.image_size = image_size
        # files of each split, and its images if they could not be written to the cache
        self._prepared: dict[str, tuple[Files, Images | None]] = {}

    def source_classes(self) -> Sequence[str]:
        """Returns the sorted names of the class folders in `train`, or in `test` if there is no `train`."""
        return class_folders(self._root / self._splits()[0])

    def count_images(self, split: Split, enough: int) -> int | None:
        """See `ImageDataModule.count_images`."""
        if not os.path.isdir(self._root / split):
            return None  # `prepare_data` says what is missing
        count = 0
        for name in self.class_names:
            if not (found := scan(self._root / split, [name])[0][name]):
                return None  # the same
            count += len(found)
            if count >= enough:
                break
        return count

    def prepare_data(self) -> None:
        """Checks the folders, and decodes all images that are not in the cache.

        Raises:
            DataError: when folders are missing, or differ between the splits, or when an image cannot be read.
        """
        self._check_folders()
        failures: list[tuple[str, str]] = []
        num_ignored = 0
        for split in self._splits():
            files, num_others = scan(self._root / split, self.source_classes())
            num_ignored += num_others
            self._check_empty(split, files)
            try:
                self._prepared[split] = files, self._fill_cache(split, files)
            except UnreadableImages as error:
                failures += error.failures
        if failures:
            raise UnreadableImages(self._root, failures)
        if num_ignored:
            logger.warning("%s: %s files are no images and were ignored", self._root, f"{num_ignored:,}")

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Reads a split from the cache, or decodes it."""
        self._require_split(split)
        # used once, because the folder may have changed before the next call
        files, images = self._prepared.pop(split, (None, None))
        if files is None:
            files, _ = scan(self._root / split, self.source_classes())
        if images is None:
            images = self._cache(split, files).read()
        if images is None:
            images, _ = self._cache(split, files).fill(self._decoder(split, files))
        return images, np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])

    @property
    def _root(self) -> Path:
        return Path(os.path.abspath(os.path.expanduser(self.root)))

    def _splits(self) -> list[Split]:
        """Returns the splits that exist, one or two."""
        splits = [split for split in SPLITS if os.path.isdir(self._root / split)]
        if not splits:
            what = "has no folder train or test" if os.path.isdir(self._root) else "is no folder"
            raise DataError(f"data.root: {self._root} {what}; the images belong into train/<class>/ and test/<class>/")
        return splits

    def _require_split(self, split: Split) -> None:
        if split not in self._splits():
            raise DataError(f"data.root: {self._root} has no folder {split}; its images belong into {split}/<class>/")

    def _check_folders(self) -> None:
        stage = self.trainer.state.fn if self.trainer else None
        for split in _NEEDED[stage.value] if stage else ():
            self._require_split(split)
        if len(self._splits()) == 2:
            self._check_same_classes()

    def _check_same_classes(self) -> None:
        train, test = (set(class_folders(self._root / split)) for split in SPLITS)
        if alone := (train ^ test) & set(self.classes or train | test):
            where = ", ".join(f"{'train' if name in train else 'test'}/{name!r}" for name in sorted(alone))
            raise DataError(f"{self._root}: train and test differ in their class folders, only there: {where}")

    def _check_empty(self, split: Split, files: Files) -> None:
        empty = [f"{split}/{name!r}" for name in self.class_names if not files[name]]
        if empty:
            raise DataError(f"{self._root}: no images in the class folders {', '.join(empty)}; add some or remove them")

    def _fill_cache(self, split: Split, files: Files) -> Images | None:
        """Writes the images to the cache if it does not hold them; returns them if they could not be written."""
        cache = self._cache(split, files)
        if cache.holds():
            return None
        images, saved = cache.fill(self._decoder(split, files))
        return None if saved else images

    def _cache(self, split: Split, files: Files) -> Cache:
        size = self.image_size
        num = sum(map(len, files.values()))
        return Cache(cache_folder(self._root) / f"{split}-{size}", fingerprint(files, size), (num, size, size, 3))

    def _decoder(self, split: Split, files: Files) -> Callable[[], Images]:
        paths = [f"{split}/{file.path}" for of_class in files.values() for file in of_class]
        return partial(decode, self._root, paths, self.image_size)

"""Images in folders, one a class: decoded once, then read from a cache."""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from cifar_resnets.data.base import ImageDataModule, Images, Labels, Split
from cifar_resnets.errors import ConfigurationError, DataError

SPLITS: tuple[Split, ...] = ("train", "test")
CACHE_FORMAT = 1  # to be raised when the same files are to be decoded in another way

# what a stage of the trainer reads; a fit ends with a test
_NEEDED: dict[str, tuple[Split, ...]] = {"fit": SPLITS, "validate": ("train",), "test": ("test",), "predict": ("test",)}
# no pixels without a foreign program, or none at all
_NOT_DECODED = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
# full scales of grey levels beyond 8 bits, the first that holds all values of an image; Pillow's "I" is mostly 16 bits
_FULL_SCALES = {"I": (65535,), "F": (1, 255, 65535)}
_BLOCK = 256  # images a task of the thread pool

logger = logging.getLogger(__name__)


class ImageFile(NamedTuple):
    """An image file as it was found: its path below the split's folder, bytes, and time of the last change."""

    path: str
    size: int
    mtime_ns: int


class UnreadableImages(DataError):
    """Image files that are truncated, empty or otherwise unreadable.

    Args:
        root: the folder that the paths start from.
        failures: path and reason of each.
    """

    def __init__(self, root: Path, failures: Sequence[tuple[str, str]]) -> None:
        self.failures = list(failures)
        names = ", ".join(repr(path) for path, _ in self.failures[:10])
        more = f" and {len(failures) - 10:,} more" if len(failures) > 10 else ""
        super().__init__(
            f"{len(failures):,} unreadable images in {root}: {names}{more}; replace or remove them "
            f"(the first: {self.failures[0][1]})"
        )


class ImageFolder(ImageDataModule):
    """Images in `root/train/<class>/` and `root/test/<class>/`, in any format that Pillow decodes.

    Everything becomes RGB as with `PIL.Image.convert` (transparency is dropped, as torchvision does), save that grey
    levels of 16 and 32 bits are scaled to 8 bits, not clipped. An image of another size is resized to a square, bilinear
    and antialiased. Names with a leading dot are ignored.

    The decoded images are kept in $CIFAR_RESNETS_CACHE, else $XDG_CACHE_HOME/cifar_resnets, else ~/.cache/cifar_resnets,
    and decoded again when a file was added, removed or changed.

    Args:
        root: folder with the folders `train` and `test`; either may be absent where it is not needed.
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
        self._unsaved: dict[str, Images] = {}  # decoded images that the cache could not take, by fingerprint

    def source_classes(self) -> Sequence[str]:
        """Names of the class folders in `train`, in `test` if there is no `train`; sorted."""
        return class_folders(self._root / self._splits()[0])

    def prepare_data(self) -> None:
        """Checks the folders and decodes all images that are not in the cache.

        Raises:
            DataError: when folders are missing or contradict each other, and when any image cannot be read.
        """
        self._check_folders()
        failures: list[tuple[str, str]] = []
        num_ignored = 0
        for split in self._splits():
            files, ignored = scan(self._root / split, self.source_classes())
            num_ignored += ignored
            self._check_empty(split, files)
            cache = self._cache(split, files)
            try:
                if not cache.holds():
                    self._decode(split, files, cache)
            except UnreadableImages as error:
                failures += error.failures
        if failures:
            raise UnreadableImages(self._root, failures)
        if num_ignored:
            logger.warning("%s: %s files ignored that are no images", self._root, f"{num_ignored:,}")

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Reads a split from the cache; decodes it if the cache does not hold it."""
        self._require_split(split)
        files, _ = scan(self._root / split, self.source_classes())
        cache = self._cache(split, files)
        images = self._unsaved.pop(cache.fingerprint, None)
        if images is None:
            images = cache.read()
        if images is None:
            images = self._decode(split, files, cache)
            self._unsaved.clear()
        return images, np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])

    @property
    def _root(self) -> Path:
        return Path(os.path.abspath(os.path.expanduser(self.root)))

    def _splits(self) -> list[Split]:
        """The splits that there are, one or two."""
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
        for split in _NEEDED.get(str(stage or ""), ()):
            self._require_split(split)
        if len(self._splits()) == 2:
            train, test = (set(class_folders(self._root / split)) for split in SPLITS)
            alone = (train ^ test) & set(self.classes or train | test)
            if alone:
                where = ", ".join(f"{'train' if name in train else 'test'}/{name!r}" for name in sorted(alone))
                raise DataError(f"{self._root}: train and test differ in their class folders, only there: {where}")

    def _check_empty(self, split: Split, files: dict[str, list[ImageFile]]) -> None:
        empty = [f"{split}/{name!r}" for name in self.classes or files if not files.get(name)]
        if empty:
            raise DataError(f"{self._root}: no images in the class folders {', '.join(empty)}; add some or remove them")

    def _cache(self, split: Split, files: dict[str, list[ImageFile]]) -> Cache:
        size = self.image_size
        num = sum(map(len, files.values()))
        path = cache_folder(self._root) / f"{split}-{size}"
        return Cache(path, fingerprint(files, size), (num, size, size, 3))

    def _decode(self, split: Split, files: dict[str, list[ImageFile]], cache: Cache) -> Images:
        paths = [f"{split}/{file.path}" for of_class in files.values() for file in of_class]
        images, saved = cache.fill(lambda: decode(self._root, paths, self.image_size))
        if not saved:
            self._unsaved[cache.fingerprint] = images
        return images


@dataclass(frozen=True)
class Cache:
    """Decoded images in one file: fingerprint and checksum in a line of text, then the array's bytes.

    Args:
        path: of the file.
        fingerprint: of the image files, 64 characters.
        shape: of the array of uint8.
    """

    path: Path
    fingerprint: str
    shape: tuple[int, ...]

    def holds(self) -> bool:
        """Whether the file holds these images, as far as can be told without reading them."""
        try:
            with open(self.path, "rb") as file:
                header = file.read(74)
                size = os.fstat(file.fileno()).st_size
        except OSError:
            return False
        return header.startswith(self.fingerprint.encode()) and size == 74 + int(np.prod(self.shape))

    def read(self) -> Images | None:
        """The images; None if the file is missing, of other images, or damaged."""
        if not self.holds():
            return None
        images = np.empty(self.shape, np.uint8)
        try:
            with open(self.path, "rb") as file:
                header = file.read(74)
                file.readinto(images)
        except OSError as error:
            logger.warning("%s cannot be read (%s): the images are decoded again", self.path, error)
            return None
        if header == self._header(images):
            return images
        logger.warning("%s is damaged: the images are decoded again", self.path)
        return None

    def fill(self, decode: Callable[[], Images]) -> tuple[Images, bool]:
        """Images from the file if another process was faster, else decoded and written; and whether they are in it."""
        images = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                images = self.read()
                if images is None:
                    images = decode()
                    self._write(images)
                return images, True
        except OSError as error:
            logger.warning("decoded images cannot be kept, every start decodes them: %s", error)
            return (decode() if images is None else images), False

    def _write(self, images: Images) -> None:
        temporary = self.path.with_name(f"{self.path.name}.part")
        try:
            with open(temporary, "wb") as file:
                file.write(self._header(images))
                file.write(images.data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _header(self, images: Images) -> bytes:
        return f"{self.fingerprint} {zlib.crc32(images.data):08x}\n".encode()


def cache_folder(root: Path) -> Path:
    """The folder for the decoded images of a root, whatever path leads to that."""
    root = Path(os.path.realpath(root))
    name = f"{root.name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"
    if own := os.environ.get("CIFAR_RESNETS_CACHE"):
        return Path(os.path.expanduser(own), name)
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # without any home there is nothing to write to: better a warning than a folder named ~
    return Path(os.devnull if base.startswith("~") else base, "cifar_resnets", name)


def class_folders(folder: Path) -> list[str]:
    """Names of the classes in a split's folder, sorted.

    Raises:
        DataError: when there are fewer than two, or two that differ only in case or spaces.
    """
    with _readable(folder), os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    if len(names) < 2:
        raise DataError(f"{folder}: two or more class folders are needed, there are {len(names)}: {names}")
    same: dict[str, list[str]] = {}
    for name in names:
        same.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    if twins := [name for group in same.values() if len(group) > 1 for name in group]:
        raise DataError(f"{folder}: class folders that differ only in case or spaces: {twins}; merge or rename them")
    return names

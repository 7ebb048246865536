"""Images in folders, one a class: decoded once, then read from a cache."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
_HEADER = 128  # bytes
_BLOCK = 256  # images a task of the thread pool
_MAX_THREADS = min(8, os.cpu_count() or 1)  # small images hold the interpreter's lock: more threads only fight for it

logger = logging.getLogger(__name__)


class ImageFile(NamedTuple):
    """An image file as it was found: its path below the split's folder, bytes, and time of the last change."""

    path: str
    size: int
    mtime_ns: int


Files = dict[str, list[ImageFile]]  # of each class


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
    levels of 16 and 32 bits are scaled to 8 bits, not clipped. An image of another size is resized to a square with
    bilinear, antialiased interpolation. Names with a leading dot are ignored.

    The decoded images are kept in $CIFAR_RESNETS_CACHE, else $XDG_CACHE_HOME/cifar_resnets, else
    ~/.cache/cifar_resnets, and decoded again when a file was added, removed or changed.

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
        self._prepared: dict[str, tuple[Files, Images | None]] = {}  # with images only if the cache could not take them

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
        """Reads a split from the cache; decodes it if the cache does not hold it."""
        self._require_split(split)
        # once only: whoever loads again may have changed the folder
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
        for split in _NEEDED[stage.value] if stage else ():
            self._require_split(split)
        if len(self._splits()) == 2:
            train, test = (set(class_folders(self._root / split)) for split in SPLITS)
            alone = (train ^ test) & set(self.classes or train | test)
            if alone:
                where = ", ".join(f"{'train' if name in train else 'test'}/{name!r}" for name in sorted(alone))
                raise DataError(f"{self._root}: train and test differ in their class folders, only there: {where}")

    def _check_empty(self, split: Split, files: Files) -> None:
        empty = [f"{split}/{name!r}" for name in self.class_names if not files[name]]
        if empty:
            raise DataError(f"{self._root}: no images in the class folders {', '.join(empty)}; add some or remove them")

    def _fill_cache(self, split: Split, files: Files) -> Images | None:
        """Returns the images only if they had to be decoded and could not be saved."""
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
                size = os.fstat(file.fileno()).st_size
                return file.read(64) == self.fingerprint.encode() and size == _HEADER + math.prod(self.shape)
        except OSError:
            return False

    def read(self) -> Images | None:
        """The images; None if the file is missing, of other images, or damaged."""
        try:
            content = np.fromfile(self.path, np.uint8)
        except OSError:
            return None
        header, images = content[:_HEADER].tobytes(), content[_HEADER:]
        if header[:64] != self.fingerprint.encode():
            return None
        if images.size == math.prod(self.shape) and header == self._header(images):
            return images.reshape(self.shape)
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
            logger.warning("the decoded images cannot be kept, so every start decodes them: %s", error)
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
        return f"{self.fingerprint} {zlib.crc32(images.data):08x}".ljust(_HEADER - 1).encode() + b"\n"


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
    with _readable():
        names = sorted(entry.name for entry in _entries(str(folder)) if entry.is_dir())
    if len(names) < 2:
        raise DataError(f"{folder}: two or more class folders are needed, there are {len(names)}: {names}")
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    if twins := [name for group in alike.values() if len(group) > 1 for name in group]:
        raise DataError(f"{folder}: class folders that differ only in case or spaces: {twins}; merge or rename them")
    return names


def scan(folder: Path, classes: Sequence[str]) -> tuple[Files, int]:
    """Image files of each class at any depth, sorted; and the number of other files in the split's folder.

    Raises:
        DataError: when a folder cannot be read.
    """
    endings = _endings()
    with _readable():
        num_others = sum(not entry.is_dir() for entry in _entries(str(folder)))
        files: Files = {name: [] for name in classes}
        for name in classes:
            for path, entry in _walk(str(folder / name), name, set()):
                if file := _image_file(path, entry, endings):
                    files[name].append(file)
                else:
                    num_others += 1
            files[name].sort()
    return files, num_others


def _walk(folder: str, path: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All files below a folder, if there is one, each with its path below the split's folder."""
    status = os.stat(folder) if os.path.isdir(folder) else None
    if status is None or (status.st_dev, status.st_ino) in seen:  # symbolic links can lead back to where we are
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, f"{path}/{entry.name}", seen)
        else:
            yield f"{path}/{entry.name}", entry


def _image_file(path: str, entry: os.DirEntry[str], endings: tuple[str, ...]) -> ImageFile | None:
    if not entry.name.lower().endswith(endings):
        return None
    if entry.is_file():
        status = entry.stat()
        return ImageFile(path, status.st_size, status.st_mtime_ns)
    # a link to nothing cannot be read and has to be named; a pipe or a device is no image
    return ImageFile(path, -1, 0) if entry.is_symlink() and not os.path.exists(entry.path) else None


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden; sorted, as the order decides which of two links to a folder is followed."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def _formats() -> list[str]:
    Image.preinit()  # the usual formats, so that they are tried first
    Image.init()
    return [name for name in Image.ID if name not in _NOT_DECODED]


def _endings() -> tuple[str, ...]:
    """Lower-case file endings of the formats that Pillow decodes; MPO is read by the JPEG plug-in."""
    formats = {*_formats(), "MPO"}
    return tuple(ending for ending, name in Image.registered_extensions().items() if name in formats)


def fingerprint(files: Files, image_size: int) -> str:
    """64 characters that change when a file or the way of decoding does."""
    digest = hashlib.sha256(f"{CACHE_FORMAT} {PIL.__version__} {image_size}".encode())
    for of_class in files.values():
        for path, size, mtime_ns in of_class:
            digest.update(os.fsencode(f"\0{path}\0{size}\0{mtime_ns}"))
    return digest.hexdigest()


class Outcome(NamedTuple):
    """What became of an image file; `failure` is empty if it could be read."""

    converted: bool = False
    resized: bool = False
    failure: str = ""


def decode(root: Path, paths: Sequence[str], image_size: int) -> Images:
    """Decodes image files with a pool of threads; uint8 (n, image_size, image_size, 3).

    Raises:
        UnreadableImages: naming all that cannot be read.
    """
    images = np.empty((len(paths), image_size, image_size, 3), np.uint8)
    formats = _formats()

    def decode_block(start: int) -> list[Outcome]:
        stop = min(start + _BLOCK, len(paths))
        return [_decode_into(images[i], root / paths[i], formats) for i in range(start, stop)]

    with warnings.catch_warnings(), ThreadPoolExecutor(_MAX_THREADS) as pool:
        warnings.simplefilter("ignore")  # of metadata and large images: what matters is an exception
        outcomes = [outcome for block in pool.map(decode_block, range(0, len(paths), _BLOCK)) for outcome in block]
    if failures := [(path, outcome.failure) for path, outcome in zip(paths, outcomes, strict=True) if outcome.failure]:
        raise UnreadableImages(root, failures)
    converted, resized = sum(outcome.converted for outcome in outcomes), sum(outcome.resized for outcome in outcomes)
    changes = f"{converted:,} converted to RGB, {resized:,} resized to {image_size}x{image_size}"
    logger.info("decoded %s images of %s: %s", f"{len(paths):,}", root / paths[0].split("/")[0], changes)
    return images


def _decode_into(target: Images, path: Path, formats: list[str]) -> Outcome:
    """Reads an image into an array (s, s, 3)."""
    size = target.shape[:2]
    try:
        with Image.open(path, formats=formats) as image:
            rgb = to_rgb(image)
        resized = rgb.size != size
        target[:] = np.asarray(rgb.resize(size, Image.Resampling.BILINEAR) if resized else rgb)
    except Exception as error:  # Pillow's plug-ins raise whatever comes up
        message = str(error).replace(repr(str(path)), "").split()
        return Outcome(failure=" ".join(message) or type(error).__name__)
    return Outcome(image.mode != "RGB", resized)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB; grey levels beyond 8 bits are scaled."""
    mode = image.mode.partition(";")[0]
    if mode in _FULL_SCALES:
        image = Image.fromarray(_to_8_bits(np.asarray(image), _FULL_SCALES[mode]))
    elif mode in ("P", "PA", "RGBa", "La"):  # neither goes to RGB without a detour or a warning
        image = image.convert("RGBA" if mode != "La" else "LA")
    return image.convert("RGB")


def _to_8_bits(values: NDArray[Any], full_scales: Sequence[int]) -> Images:
    """Grey levels on the first of the scales that holds them all; stretched from lowest to highest if none does."""
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    scale = next((scale for scale in full_scales if 0 <= low and high <= scale), None)
    if scale is None:
        values, scale = values - low, (high - low) or 1
    return (values * 255 / scale).round().astype(np.uint8)

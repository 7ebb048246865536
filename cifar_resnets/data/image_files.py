"""Finds image files in folders, and decodes them to RGB."""

import logging
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_resnets.data.image_modes import to_rgb, white_level
from cifar_resnets.data.resize import Resize, resize_to_square
from cifar_resnets.errors import DataError

# formats that Pillow only identifies, or needs another program for
_NOT_DECODED = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
_BLOCK = 256  # images per task of the thread pool
_MAX_THREADS = min(8, os.cpu_count() or 1)  # more are slower: decoding a small image mostly holds the GIL

Images = NDArray[np.uint8]  # as in `datamodule`, which imports Lightning

logger = logging.getLogger(__name__)


class ImageFile(NamedTuple):
    """An image file: path below the split's folder, and what changes with the file.

    Size and time of the last change are not enough: formats without compression give equal sizes, and programs that
    copy or unpack files set the time. The time of the last change of the inode cannot be set.
    """

    path: str
    size: int = -1
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0


Files = dict[str, list[ImageFile]]  # of each class
OnError = Callable[[OSError], None]  # as in `os.walk`


class UnreadableImages(DataError):
    """Image files that are truncated, empty or otherwise unreadable.

    Args:
        root: the folder that the paths start from.
        failures: path and reason of each.
        file: in which all of them are listed.
    """

    def __init__(self, root: Path, failures: Sequence[tuple[str, str]], file: Path | None = None) -> None:
        self.failures = list(failures)
        names = ", ".join(repr(path) for path, _ in self.failures[:10])
        more = f" and {len(failures) - 10:,} more" if len(failures) > 10 else ""
        more += f", all listed in {file}" if more and file else ""
        remedy = f"replace or remove them (the first: {self.failures[0][1]})"
        super().__init__(f"{len(failures):,} unreadable images in {root}: {names}{more}; {remedy}")


def class_folders(folder: Path, at_least: int = 2) -> list[str]:
    """Returns the sorted names of the class folders of a split.

    Raises:
        DataError: when there are fewer than `at_least`, or names that differ only in case or spaces, or are no UTF-8.
    """
    names = subfolders(folder)
    if len(names) < at_least:
        needed = f"{'two' if at_least == 2 else 'one'} or more class folders are needed"
        raise DataError(f"{folder}: {needed}, <class>/ with its images, there are {len(names)}: {names}")
    if odd := [name for name in names if not _is_text(name)]:
        raise DataError(f"{folder}: class folders whose names are no UTF-8: {', '.join(map(ascii, odd))}")
    if twins := _twins(names):
        raise DataError(f"{folder}: class folders that differ only in case or spaces: {twins}; merge or rename them")
    return names


def subfolders(folder: Path) -> list[str]:
    """Returns the sorted names of the visible folders in a folder; raises DataError when it cannot be read."""
    with _readable():
        names = [entry.name for entry in _entries(str(folder)) if entry.is_dir()]
    # in UTF-8 whatever the locale: a checkpoint holds the names of classes
    return sorted(os.fsencode(name).decode("utf-8", "surrogateescape") for name in names)


def _is_text(name: str) -> bool:
    """Returns whether a name is UTF-8: Python decodes other bytes of a file name to surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _twins(names: Sequence[str]) -> list[str]:
    """Returns the names that differ from another one in case or spaces only, grouped."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [name for group in alike.values() if len(group) > 1 for name in group]


def scan(folder: Path, classes: Sequence[str]) -> tuple[Files, Counter[str]]:
    """Finds the image files of each class at any depth.

    Returns:
        Sorted image files of each class, and how many other files of each kind are in the split's folder.

    Raises:
        DataError: when a folder cannot be read.
    """
    endings = _endings()
    files: Files = {name: [] for name in classes}
    with _readable():
        others = Counter("beside the class folders" for each in _entries(str(folder)) if not _is_folder(each))
        for name in classes:
            of_locale = os.fsdecode(name.encode("utf-8", "surrogateescape"))
            for path, entry in _walk(str(folder / of_locale), of_locale, set()):
                if file := _image_file(path, entry, endings):
                    files[name].append(file)
                else:
                    others[_kind(entry, endings)] += 1
    return {name: sorted(of_class) for name, of_class in files.items()}, others


def find_images(folder: str, on_error: OnError) -> list[str]:
    """Finds the image files at any depth of a folder, whether its folders are classes or not.

    Args:
        folder: to be searched.
        on_error: takes the error of each folder that cannot be read; the others are searched all the same.

    Returns:
        Paths below the folder, in the order in which `scan` gives those of all classes.
    """
    endings, found = _endings(), []
    for entry in _entries(folder, on_error):
        inside = _walk(entry.path, entry.name, set(), on_error) if _is_folder(entry) else [(entry.name, entry)]
        found += sorted(path for path, each in inside if _image_file(path, each, endings))
    return found


def paths_of(folder: str, files: Files) -> list[str]:
    """Returns the path of each file below the root, in their order; of files that `scan` found in a folder there."""
    within = f"{folder}/" if folder else ""
    return [f"{within}{file.path}" for of_class in files.values() for file in of_class]


def _kind(entry: os.DirEntry[str], endings: tuple[str, ...]) -> str:
    ending = os.path.splitext(entry.name)[1].lower()
    return "no regular file" if ending in endings else ending or "without an ending"


def _walk(
    folder: str, path: str, seen: set[tuple[int, int]], on_error: OnError | None = None
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yields all files below a folder, if it exists, each with its path below the split's folder."""
    status = os.stat(folder) if os.path.isdir(folder) else None
    if status is None or (status.st_dev, status.st_ino) in seen:  # symbolic links may form a cycle
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in _entries(folder, on_error):
        if _is_folder(entry):
            yield from _walk(entry.path, f"{path}/{entry.name}", seen, on_error)
        else:
            yield f"{path}/{entry.name}", entry


def _image_file(path: str, entry: os.DirEntry[str], endings: tuple[str, ...]) -> ImageFile | None:
    if not entry.name.lower().endswith(endings):
        return None
    with suppress(OSError):  # a link to itself
        if entry.is_file():
            status = entry.stat()
            return ImageFile(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    # a link to nothing, or to itself, is an image that cannot be read; a pipe or a device is no image
    return ImageFile(path) if entry.is_symlink() and not os.path.exists(entry.path) else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder; a link to itself is none."""
    with suppress(OSError):
        return entry.is_dir()
    return False


def _entries(folder: str, on_error: OnError | None = None) -> list[os.DirEntry[str]]:
    """Lists the visible entries of a folder; sorted, because the order decides which of two equal links is followed."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return []


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def formats() -> list[str]:
    """Returns the names of the formats that Pillow decodes by itself, the common ones first."""
    Image.preinit()  # registers the common formats, so that they are tried first
    Image.init()
    return [name for name in Image.ID if name not in _NOT_DECODED]


def _endings() -> tuple[str, ...]:
    """Returns the lower-case file endings of the formats that Pillow decodes; the JPEG plug-in reads MPO."""
    known = {*formats(), "MPO"}
    return tuple(ending for ending, name in Image.registered_extensions().items() if name in known)


class Outcome(NamedTuple):
    """The result of decoding an image file; `failure` is empty if it could be read."""

    converted: bool = False
    resized: bool = False
    stretched: bool = False
    dark: bool = False
    failure: str = ""


def decode(
    root: Path,
    paths: Sequence[str],
    image_size: int,
    background: str = "white",
    resize: Resize = "squash",
    folder: Path | None = None,
) -> Images:
    """Decodes image files with a pool of threads.

    Args:
        root: folder that the paths start from.
        paths: of the files.
        image_size: height and width in pixels, to which each image is resized.
        background: color behind transparent pixels, and of the padding.
        resize: see `resize_to_square`.
        folder: that the images are said to be of; `root` if not given.

    Returns:
        uint8 (n, image_size, image_size, 3).

    Raises:
        UnreadableImages: when any file cannot be read; it names all of them.
    """
    images = np.empty((len(paths), image_size, image_size, 3), np.uint8)
    known = formats()

    def decode_block(start: int) -> list[Outcome]:
        block = range(start, min(start + _BLOCK, len(paths)))
        return [decode_into(images[i], root / paths[i], known, background, resize) for i in block]

    with warnings.catch_warnings(), ThreadPoolExecutor(_MAX_THREADS) as pool:
        warnings.simplefilter("ignore")  # about metadata and large images; damaged files raise exceptions
        outcomes = list(chain.from_iterable(pool.map(decode_block, range(0, len(paths), _BLOCK))))
    if failures := [(path, outcome.failure) for path, outcome in zip(paths, outcomes, strict=True) if outcome.failure]:
        raise UnreadableImages(root, failures)
    _log_changes(folder or root, outcomes, image_size)
    return images


def _log_changes(folder: Path, outcomes: Sequence[Outcome], image_size: int) -> None:
    converted, resized = sum(outcome.converted for outcome in outcomes), sum(outcome.resized for outcome in outcomes)
    changes = f"{converted:,} converted to RGB, {resized:,} resized to {image_size}x{image_size}"
    logger.info("decoded %s images of %s: %s", f"{len(outcomes):,}", folder, changes)
    if stretched := sum(outcome.stretched for outcome in outcomes):
        what = f"{stretched:,} images of 32-bit integers, or of floats outside 0 to 1, do not say which value is white"
        logger.warning("%s: %s: each is scaled by its own range, convert them to scale all alike", folder, what)
    if dark := sum(outcome.dark for outcome in outcomes):
        logger.warning("%s: %s images of 16 bits use a 16th of them, and so are nearly black", folder, f"{dark:,}")


def to_pixels(image: Image.Image, image_size: int, background: str = "white", resize: Resize = "squash") -> Images:
    """Converts an image, which may be turned in place, to uint8 (image_size, image_size, 3)."""
    return np.asarray(resize_to_square(to_rgb(image, background), image_size, resize, background))


def decode_into(target: Images, path: Path, formats: list[str], background: str, resize: Resize) -> Outcome:
    """Decodes an image file into an array (s, s, 3)."""
    try:
        with Image.open(path, formats=formats) as image:
            target[:] = to_pixels(image, len(target), background, resize)
            white, resized = white_level(image), image.size != target.shape[:2]
        return Outcome(image.mode != "RGB", resized, white is None, white == 65535 and target.max() <= 16)
    except Exception as error:  # Pillow's plug-ins raise exceptions of any class
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Outcome(failure=" ".join(text.replace(repr(str(path)), "").split()) or type(error).__name__)

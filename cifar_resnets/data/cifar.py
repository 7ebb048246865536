"""CIFAR-10 and CIFAR-100, read by torchvision, and downloaded once if they are missing."""

import errno
import http.client
import logging
import os
import pickle
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from filelock import FileLock, Timeout
from torchvision.datasets.utils import check_integrity

from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split
from cifar_resnets.errors import DataError, OutputError, UserError, local_path, one_line

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()

# the fine classes, in the order of the labels, which is alphabetical
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
""".split()

# the twenty superclasses, likewise
CIFAR100_COARSE_CLASSES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
    insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
    vehicles_1 vehicles_2
""".split()

TIMEOUT = 30  # seconds without a byte from the server

logger = logging.getLogger(__name__)


class CIFAR10(ImageDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in ten classes.

    A folder `cifar-10-batches-py` in `root` is used as it is. If there is none, the archive `cifar-10-python.tar.gz` in
    `root` is unpacked; if that is missing, too, it is downloaded (170 MB), by one process for all.

    Source: Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images".

    Args:
        root: the folder that holds `cifar-10-batches-py` (`cifar-100-python`), or that folder itself.
        kwargs: see `ImageDataModule`.
    """

    _source = torchvision.datasets.CIFAR10
    _names = CIFAR10_CLASSES
    may_download = True  # false if nothing but a stranger's checkpoint says where to
    coarse = False  # CIFAR-10 has no superclasses

    def __init__(self, root: str = "data", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        local_path("data.root", root)
        self.root = root

    def source_classes(self) -> Sequence[str]:
        """Returns the names of the classes, without reading a file."""
        return self._names

    def count_images(self, split: Split, enough: int) -> int:
        """See `ImageDataModule.count_images`."""
        return {"train": 50_000, "test": 10_000}[split] // len(self._names) * len(self.class_names)

    def prepare_data(self) -> None:
        """Downloads and unpacks the images if they are missing, and verifies them.

        Raises:
            DataError: when they are missing and cannot be downloaded, or are damaged.
            OutputError: when `root` cannot be written, or the disk is full.
        """
        folder = find_folder(self._source, self._root)
        if folder is None and not self.may_download:
            where = f"{self._root}, where the checkpoint has them"
            raise DataError(f"{type(self).__name__}: there are no images in {where}: give --data.root DIR")
        _verify(self._source, folder or obtain(self._source, self._root))

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Reads a split; raises DataError when it is missing, damaged or of another data set."""
        if (folder := find_folder(self._source, self._root)) is None:
            raise _failed(self._source, self._root, f"there is no {self._source.base_folder}")
        return read(self._source, folder, split, self.source_classes(), self.coarse)

    def file_names(self, split: Split) -> Sequence[str] | None:
        """Returns the names that the data set itself has, such as `domestic_cat_s_000907.png`."""
        folder = find_folder(self._source, self._root)
        return None if folder is None else read_column(self._source, folder, split, "filenames") or None

    @property
    def _root(self) -> Path:
        return Path(os.path.abspath(local_path("data.root", self.root)))


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in a hundred classes.

    Like `CIFAR10`, with the folder `cifar-100-python` and the archive `cifar-100-python.tar.gz`.

    Args:
        root: see `CIFAR10`.
        coarse: train on the twenty superclasses, of five classes each.
        kwargs: see `ImageDataModule`.
    """

    _source = torchvision.datasets.CIFAR100
    _names = CIFAR100_CLASSES

    def __init__(self, root: str = "data", coarse: bool = False, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.coarse = coarse

    def source_classes(self) -> Sequence[str]:
        """Returns the names of the classes, or of the superclasses, without reading a file."""
        return CIFAR100_COARSE_CLASSES if self.coarse else self._names


# `source` below is one of torchvision's two classes, which hold the URL, the names of the files and their checksums.


def find_folder(source: Any, root: Path) -> Path | None:
    """Returns the folder with the batches, which is inside `root` or `root` itself; None if there is neither."""
    inside: Path = root / source.base_folder
    if os.path.isdir(inside):
        return inside
    return root if any(os.path.exists(root / name) for name, _ in _files(source)) else None


def find_damage(source: Any, folder: Path) -> str | None:
    """Names a file of the folder that is missing or damaged, and what is wrong; returns None if all are intact."""
    for name, md5 in _files(source):
        path = folder / name
        if not os.path.exists(path):
            return f"{path} is missing"
        try:
            if not check_integrity(path, md5):
                return f"{path} is damaged (its md5 is not {md5})"
        except OSError as error:
            return f"{path} cannot be read ({_reason(error)})"
    return None


def read(source: Any, folder: Path, split: Split, names: Sequence[str], coarse: bool = False) -> tuple[Images, Labels]:
    """Reads a split with torchvision, which verifies the files; with the labels of the superclasses if `coarse`.

    Returns:
        Images (n, 32, 32, 3) and labels (n,).

    Raises:
        DataError: when a file is missing or damaged, or the classes are not those in `names`.
    """
    # torchvision looks for `base_folder` inside its root, but this folder may have another name
    meta = {**source.meta, "key": "coarse_label_names"} if coarse else source.meta
    in_place = type(source.__name__, (source,), {"base_folder": "", "meta": meta})
    try:
        dataset = in_place(folder, train=split == "train")
    except (RuntimeError, OSError):  # torchvision does not say which file
        _verify(source, folder)
        raise
    if list(dataset.classes) != list(names):
        raise DataError(f"{folder / source.meta['filename']}: its class names are not those of {source.__name__}")
    labels = read_column(source, folder, split, "coarse_labels") if coarse else dataset.targets
    # torchvision's array is a transposed view, and the loaders need contiguous pixels
    return np.ascontiguousarray(dataset.data), np.asarray(labels, dtype=np.int64)


def read_column(source: Any, folder: Path, split: Split, key: str) -> list[Any]:
    """Reads what torchvision leaves out, from files that it has verified; empty if they do not hold it."""
    values: list[Any] = []
    for name, _ in source.train_list if split == "train" else source.test_list:
        with open(folder / name, "rb") as file:
            values += pickle.load(file, encoding="latin1").get(key, [])
    return values


def obtain(source: Any, root: Path) -> Path:
    """Unpacks the archive in `root`, which is downloaded if it is missing; returns the folder with the batches.

    Other processes wait meanwhile. After a failure, all new files are removed.

    Raises:
        DataError: when the archive is damaged or cannot be downloaded.
        OutputError: when `root` cannot be written, or the disk is full.
    """
    folder: Path = root / source.base_folder
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _one_process(root / f".{source.filename}.lock"):
            if not folder.is_dir():
                _install(source, root)
    except OSError as error:
        raise _failed(source, root, f"the folder cannot be written ({_reason(error)})", OutputError) from error
    finally:
        if is_new:
            with suppress(OSError):  # not empty after a success, or if another process is at work
                root.rmdir()
    return folder


def _install(source: Any, root: Path) -> None:
    # a fixed name, so that the next process removes the files that a killed one has left
    work = root / f".{source.base_folder}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        archive = root / source.filename
        if not archive.exists():
            archive = _download(source, root, work)
        _unpack(source, root, archive, work)
        os.rename(work / source.base_folder, root / source.base_folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(source: Any, root: Path, folder: Path) -> Path:
    logger.info("downloading %s into %s", source.url, root)
    path: Path = folder / source.filename
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as response, open(path, "wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
        expected = int(response.headers.get("Content-Length") or path.stat().st_size)
        if path.stat().st_size < expected:  # http.client does not notice
            raise OSError(f"the connection ended after {path.stat().st_size:,} of {expected:,} bytes")
        if not check_integrity(path, source.tgz_md5):
            raise OSError("something else came: the md5 is wrong")
    except (OSError, http.client.HTTPException) as error:
        raise _failed(source, root, f"{source.url} cannot be downloaded ({_reason(error)})", _kind(error)) from error
    return path


def _unpack(source: Any, root: Path, archive: Path, folder: Path) -> None:
    try:
        if not check_integrity(archive, source.tgz_md5):
            raise OSError(f"its md5 is not {source.tgz_md5}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # refuses whatever would land outside the folder
        if damage := find_damage(source, folder / source.base_folder):
            raise OSError(f"in it {os.path.relpath(damage, folder)}")
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise _failed(source, root, f"{archive.name} cannot be unpacked ({_reason(error)})", _kind(error)) from error


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that fills %s", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: a waiting process notices and makes a new file
        lock.release()


def _files(source: Any) -> list[tuple[str, str]]:
    """Returns names and MD5 sums of all files of the folder."""
    return [*map(tuple, source.train_list + source.test_list), (source.meta["filename"], source.meta["md5"])]


def _verify(source: Any, folder: Path) -> None:
    if damage := find_damage(source, folder):
        raise DataError(f"{damage}; remove the folder to have it downloaded again, or put a sound copy there")


def _kind(error: Exception) -> type[UserError]:
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutputError if is_full else DataError


def _failed(source: Any, root: Path, what: str, kind: type[UserError] = DataError) -> UserError:
    remedy = f"put {source.filename} (md5 {source.tgz_md5}) or the folder {source.base_folder} into {root}"
    return kind(f"{source.__name__}: {what}; {remedy}")


def _reason(error: BaseException) -> str:
    """Returns the message of an exception on one line."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return str(error.reason)
    return one_line(error)

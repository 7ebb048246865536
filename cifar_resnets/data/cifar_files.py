"""The files of CIFAR-10 and CIFAR-100 in the three forms in which they are handed around, found, verified and read.

`source` is one of torchvision's two classes, which hold the names of the python version's files and their checksums.
"""

import importlib.util
import io
import json
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.utils import check_integrity

from cifar_resnets.data.datamodule import Images, Labels, Split
from cifar_resnets.errors import ConfigurationError, DataError, one_line

NUM_IMAGES = {"train": 50_000, "test": 10_000}
PIXELS = 3 * 32 * 32
Checksums = dict[str, str | None]
Values = TypeVar("Values", bound=np.generic)

# The binary version: its folder, and the MD5 of its files where they are known.
BINARY: dict[str, tuple[str, dict[Split, Checksums]]] = {
    "CIFAR10": (
        "cifar-10-batches-bin",
        {
            "train": {
                "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            },
            "test": {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
        },
    ),
    "CIFAR100": ("cifar-100-binary", {"train": {"train.bin": None}, "test": {"test.bin": None}}),
}
# Hugging Face's repositories uoft-cs/cifar10 and uoft-cs/cifar100: the folder with the files, and the labels' columns
PARQUET = {"CIFAR10": ("plain_text", "label", ""), "CIFAR100": ("cifar100", "fine_label", "coarse_label")}
# The hub has the five training batches of CIFAR-10 in the order of the archive's members, not of their numbers; it is
# recognised by the labels with which the first and the last one begin.
HUB_ORDER = (4, 3, 2, 5, 1)
HUB_LABELS = ([0, 6, 0, 2, 7, 2, 1, 2, 4, 1, 5, 6, 6, 3, 1, 3], [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 4, 7, 7, 2, 9, 9])
# what values and images of another kind than expected raise
BAD_VALUES = (OSError, ValueError, TypeError, LookupError, AttributeError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Files(ABC):
    """The images of a data set, in one form.

    Args:
        source: see above.
        folder: with the files.
    """

    source: Any
    folder: Path

    @abstractmethod
    def damage(self) -> str | None:
        """Names a file that is missing or damaged, and what is wrong; returns None if all are intact."""

    @abstractmethod
    def read(self, split: Split, names: Sequence[str], coarse: bool = False) -> tuple[Images, Labels]:
        """Reads a split; with the labels of the superclasses if `coarse`.

        Returns:
            Images (n, 32, 32, 3) and labels (n,).

        Raises:
            DataError: when a file is missing or damaged, or the classes are not those in `names`.
        """

    def file_names(self, split: Split) -> list[str] | None:
        """Returns the names that the images have in the data set, such as `domestic_cat_s_000907.png`."""
        return None

    def verify(self) -> None:
        """Raises DataError when a file is missing or damaged."""
        if damage := self.damage():
            raise DataError(f"{damage}; remove the folder to have it downloaded again, or put a sound copy there")


class PythonFiles(Files):
    """The python version, which torchvision reads, and which is downloaded."""

    def damage(self) -> str | None:
        """See `Files.damage`."""
        meta = (self.source.meta["filename"], self.source.meta["md5"])
        return _damage(
            self.folder, {name: md5 for name, md5 in [*self.source.train_list, *self.source.test_list, meta]}
        )

    def read(self, split: Split, names: Sequence[str], coarse: bool = False) -> tuple[Images, Labels]:
        """See `Files.read`."""
        # torchvision looks for `base_folder` inside its root, but this folder may have another name
        meta = {**self.source.meta, "key": "coarse_label_names"} if coarse else self.source.meta
        in_place = type(self.source.__name__, (self.source,), {"base_folder": "", "meta": meta})
        try:
            dataset = in_place(self.folder, train=split == "train")
        except (RuntimeError, OSError):  # torchvision does not say which file
            self.verify()
            raise
        if list(dataset.classes) != list(names):
            where = self.folder / self.source.meta["filename"]
            raise DataError(f"{where}: its class names are not those of {self.source.__name__}")
        labels = self._column(split, "coarse_labels") if coarse else dataset.targets
        # torchvision's array is a transposed view, and the loaders need contiguous pixels
        return np.ascontiguousarray(dataset.data), np.asarray(labels, dtype=np.int64)

    def file_names(self, split: Split) -> list[str] | None:
        """See `Files.file_names`."""
        return self._column(split, "filenames") or None

    def _column(self, split: Split, key: str) -> list[Any]:
        """Reads what torchvision leaves out, from files that it has verified; empty if they do not hold it."""
        values: list[Any] = []
        for name, _ in self.source.train_list if split == "train" else self.source.test_list:
            with open(self.folder / name, "rb") as file:
                values += pickle.load(file, encoding="latin1").get(key, [])
        return values


class BinaryFiles(Files):
    """The binary version, for C programs: an image is a byte for its label, or two, and 3,072 for its pixels."""

    def damage(self) -> str | None:
        """See `Files.damage`."""
        return _damage(self.folder, {name: md5 for files in self._files.values() for name, md5 in files.items()})

    def read(self, split: Split, names: Sequence[str], coarse: bool = False) -> tuple[Images, Labels]:
        """See `Files.read`."""
        if damage := _damage(self.folder, self._files[split]):
            raise DataError(damage)
        num_labels = 2 if self.source.__name__ == "CIFAR100" else 1  # coarse and fine
        content = np.concatenate([np.fromfile(self.folder / name, np.uint8) for name in self._files[split]])
        if len(content) % (num_labels + PIXELS):
            raise DataError(f"{self.folder}: the {split} files do not hold whole images, put a sound copy there")
        rows = content.reshape(-1, num_labels + PIXELS)
        labels = rows[:, 0 if coarse else num_labels - 1].astype(np.int64)
        _check_labels(self.folder, split, labels, len(names))
        planes = rows[:, num_labels:].reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels

    @property
    def _files(self) -> dict[Split, Checksums]:
        return BINARY[self.source.__name__][1]


class ParquetFiles(Files):
    """Parquet files of Hugging Face's hub, with a PNG of each image; read in the order of the python version."""

    def damage(self) -> str | None:
        """See `Files.damage`.

        Raises:
            ConfigurationError: when there is no pyarrow to read them.
        """
        if importlib.util.find_spec("pyarrow") is None:
            what = f"{self.folder} has parquet files, and pyarrow is not installed"
            raise ConfigurationError(f"data.root: {what}: pip install .[parquet]")
        missing = [split for split in ("train", "test") if not _parquet_files(self.folder, split)]
        return f"{self.folder}/{missing[0]}-*.parquet is missing" if missing else None

    def read(self, split: Split, names: Sequence[str], coarse: bool = False) -> tuple[Images, Labels]:
        """See `Files.read`."""
        self.verify()
        column = PARQUET[self.source.__name__][2 if coarse else 1]
        parts = [_read_parquet(path, column, names) for path in _parquet_files(self.folder, split)]
        labels = np.concatenate([each for _, each in parts])
        _check_labels(self.folder, split, labels, len(names))
        images = np.concatenate([images for images, _ in parts])
        if self.source.__name__ == "CIFAR10" and split == "train" and _is_of_hub(labels):
            images, labels = _by_number(images), _by_number(labels)
        return images, labels


def find_files(source: Any, root: Path) -> Files | None:
    """Returns the images inside `root`, or with `root` itself as their folder; None if there are none.

    The python version is taken before the binary one, and this before parquet files.
    """
    batches = [name for name, _ in [*source.train_list, *source.test_list]]
    binary, files = BINARY[source.__name__]
    versions: list[tuple[type[Files], str, list[str]]] = [
        (PythonFiles, source.base_folder, [*batches, source.meta["filename"]]),
        (BinaryFiles, binary, [*files["train"], *files["test"]]),
    ]
    for kind, name, known in versions:
        if (root / name).is_dir():
            return kind(source, root / name)
        if any((root / each).is_file() for each in known):
            return kind(source, root)
    for folder in (root, root / PARQUET[source.__name__][0]):
        if any(_parquet_files(folder, split) for split in ("train", "test")):
            return ParquetFiles(source, folder)
    return None


def _damage(folder: Path, checksums: Checksums) -> str | None:
    for name, md5 in checksums.items():
        path = folder / name
        if not os.path.exists(path):
            return f"{path} is missing"
        try:
            if not check_integrity(path, md5):
                return f"{path} is damaged (its md5 is not {md5})"
        except OSError as error:
            return f"{path} cannot be read ({one_line(error)})"
    return None


def _check_labels(where: Path, split: Split, labels: Labels, num_classes: int) -> None:
    """Checks that each class has as many images as in the data set, as no file without a checksum proves it."""
    expected = NUM_IMAGES[split]
    counts = np.bincount(labels, minlength=num_classes) if len(labels) and labels.min() >= 0 else np.zeros(0)
    if len(counts) != num_classes or set(counts.tolist()) != {expected // num_classes}:
        raise DataError(
            f"{where}: the {split} files do not hold {expected:,} images, {expected // num_classes:,} of each of the "
            f"{num_classes} classes, but {len(labels):,}; put a sound copy there"
        )


def _is_of_hub(labels: Labels) -> bool:
    firsts = zip(HUB_LABELS, np.split(labels, len(HUB_ORDER))[:: len(HUB_ORDER) - 1], strict=True)
    return all(batch[: len(first)].tolist() == first for first, batch in firsts)


def _by_number(values: NDArray[Values]) -> NDArray[Values]:
    """Puts the batches of the hub into the order of their numbers."""
    batches = np.split(values, len(HUB_ORDER))
    return np.concatenate([batches[place] for place in np.argsort(HUB_ORDER)])


def _parquet_files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}*.parquet")) or sorted((folder / split).glob("*.parquet"))


def _read_parquet(path: Path, column: str, names: Sequence[str]) -> tuple[Images, Labels]:
    """Reads images and labels of a file."""
    import pyarrow.parquet  # optional, and takes a while

    try:
        schema = pyarrow.parquet.read_schema(path)
        if missing := {"img", column} - set(schema.names):
            raise DataError(f"{path}: there is no column {min(missing)}, it is of another data set")
        _check_names(path, schema.metadata or {}, column, names)
        table = pyarrow.parquet.read_table(path, columns=["img", column]).to_pydict()
        images = [_decode(path, number, value) for number, value in enumerate(table["img"])]
        labels = np.asarray(table[column], dtype=np.int64)
    except DataError:
        raise
    except (pyarrow.ArrowException, *BAD_VALUES) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); put a sound copy there") from error
    return np.stack(images), labels


def _check_names(path: Path, metadata: dict[bytes, bytes], column: str, names: Sequence[str]) -> None:
    """Compares the names of the classes that Hugging Face's metadata may hold."""
    feature = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {}).get(column, {})
    found = feature.get("names", names)
    # a prefix will do: in CIFAR-100 of Hugging Face the crab is a `cra`
    if len(found) != len(names) or not all(map(str.startswith, names, found)):
        raise DataError(f"{path}: its class names are not those of the data set")


def _decode(path: Path, number: int, value: dict[str, Any]) -> Images:
    with Image.open(io.BytesIO(value["bytes"]), formats=["PNG"]) as image:
        if image.size != (32, 32):
            raise DataError(f"{path}: image {number} has {image.width}x{image.height} pixels, not 32x32")
        return np.asarray(image.convert("RGB"))

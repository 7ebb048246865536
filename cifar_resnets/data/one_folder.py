"""One folder of classes, without folders for training and test images: what is in it, and how it is split."""

import functools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.data.datamodule import Split
from cifar_resnets.data.duplicates import describe_crossing, describe_groups, equal_files
from cifar_resnets.data.folder_split import Sides, add_to_split_file, read_split_file, split_by_name
from cifar_resnets.data.image_files import Files, class_folders, paths_of, scan, subfolders
from cifar_resnets.errors import ConfigurationError, DataError


class OneFolder:
    """Images in `root/<class>/`; the folder is looked at once.

    Args:
        root: folder of the class folders.
        fraction: of the images that are tested; None if the file of splits names all of them.
        split_file: see `read_split_file`; None if names alone decide.
    """

    def __init__(self, root: Path, fraction: float | None, split_file: Path | None) -> None:
        self.root = root
        self._fraction = fraction
        self._split_file = split_file

    def classes(self, at_least: int = 2) -> list[str]:
        """Returns the sorted names of the class folders.

        Raises:
            ConfigurationError: when there are folders train, test or val with class folders of their own.
            DataError: see `class_folders`.
        """
        self._check_layout()
        return class_folders(self.root, at_least)

    def _check_layout(self) -> None:
        key = "test_fraction" if self._split_file is None else "split_file"
        if not os.path.isdir(self.root):
            raise DataError(f"data.root: {self.root} is no folder")
        # a class may be called train; but class folders have no folders that are classes
        splits = [name for name in subfolders(self.root) if name.lower() in ("train", "test", "val")]
        if split := [name for name in splits if subfolders(self.root / name)]:
            raise ConfigurationError(
                f"data.{key}: {self.root} is split already, it has {' and '.join(split)} with folders in it: give "
                f"--data.{key} null to use them, or --data.root {self.root / split[-1]} to split that one"
            )

    @functools.cached_property
    def _scanned(self) -> tuple[Files, Counter[str]]:
        return scan(self.root, self.classes(at_least=1))

    @property
    def files(self) -> Files:
        """Image files of each class."""
        return self._scanned[0]

    @property
    def others(self) -> Counter[str]:
        """What lies there besides, see `scan`."""
        return self._scanned[1]

    @functools.cached_property
    def _equal(self) -> list[list[str]]:
        return equal_files(self.root, [file for of_class in self.files.values() for file in of_class])

    @functools.cached_property
    def _listed(self) -> Sides:
        """What the file of splits says; nothing if it is still to be written."""
        file = self._split_file
        if file is None:
            return {}
        if self._fraction is not None and not os.path.lexists(file):
            if not file.parent.is_dir():  # before anything is decoded
                raise DataError(f"data.split_file: {file} cannot be written: there is no folder {file.parent}")
            return {}
        return read_split_file(file, self.root, {*paths_of("", self.files)})

    def require_split_file(self) -> None:
        """Raises DataError if the file of splits is given, but missing, although names could decide."""
        if self._split_file is not None and not self._split_file.exists():
            remedy = "give --data.split_file where it is now, or null to go by the names alone"
            raise DataError(f"data.split_file: {self._split_file} is missing: {remedy}")

    @functools.cached_property
    def sides(self) -> Sides:
        """The split of each file.

        Raises:
            DataError: when the file of splits is damaged, names no image, or lacks some that names do not decide on.
        """
        missing = [path for path in paths_of("", self.files) if path not in self._listed]
        if self._fraction is None and missing:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise DataError(
                f"data.split_file: {self._split_file} lacks {missing[0]!r}{more}: add the files, or give "
                "--data.test_fraction to split them by their names"
            )
        return split_by_name(self.files, self._equal, self._fraction or 0.0, self._listed)

    def chosen(self, split: Split) -> NDArray[np.intp]:
        """Returns which images are of a split, as indices in the order of `files`."""
        paths = paths_of("", self.files)
        return np.array([index for index, path in enumerate(paths) if self.sides[path] == split], dtype=np.intp)

    def count(self, split: Split, name: str) -> int:
        """Returns the number of images of a class in a split."""
        return sum(self.sides[path] == split for path, *_ in self.files[name])

    def used(self, validates: bool) -> list[Split]:
        """Returns the splits that have images."""
        found = {*self.sides.values()} - (set() if validates else {"val"})
        return [split for split in _PURPOSE if split in found]

    def write(self) -> str | None:
        """Adds the files that the file of splits lacks; returns a sentence if there were any."""
        if self._split_file is None:
            return None
        new = {path: side for path, side in self.sides.items() if path not in self._listed}
        if not new:
            return None
        add_to_split_file(self._split_file, new)
        return f"the splits of {len(new):,} images were written to {self._split_file}"

    def notes(self) -> Iterator[str]:
        """Yields what there is to say about equal files and the split."""
        counts = Counter(self.sides.values())
        numbers = ", ".join(f"{counts[split]:,} {what}" for split, what in _PURPOSE.items() if counts[split])
        tested = sorted({self.count("test", name) for name in self.files})
        each = f" ({' to '.join(f'{number:,}' for number in dict.fromkeys((tested[0], tested[-1])))} of each class)"
        by = "their names" if self._split_file is None else self._split_file
        yield f"{numbers}{each if counts['test'] else ''}, split by {by}"
        together = [group for group in self._equal if len({self.sides[path] for path in group}) == 1]
        for text in (describe_groups(together), describe_crossing(self._equal, self.sides)):
            if text:
                yield text


_PURPOSE: dict[Split, str] = {"train": "images to train on", "val": "to validate on", "test": "to test"}

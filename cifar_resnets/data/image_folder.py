"""Images in folders, one folder per class: decoded once, then read from a cache."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split
from cifar_resnets.data.duplicates import crossing_folders
from cifar_resnets.data.image_cache import Cache, cache_folder, fingerprint, write_failures
from cifar_resnets.data.image_files import Files, UnreadableImages, class_folders, decode, scan, subfolders
from cifar_resnets.data.image_modes import check_color
from cifar_resnets.data.one_folder import OneFolder
from cifar_resnets.errors import ConfigurationError, DataError, local_path

SPLITS: tuple[Split, ...] = ("train", "test", "val")
ALL = "."  # the folder of the classes that is split here

# the split that each command cannot do without
_NEEDED: dict[str, Split] = {"fit": "train", "validate": "train", "test": "test", "predict": "test"}

logger = logging.getLogger(__name__)


class ImageFolder(ImageDataModule):
    """Images in `root/train/<class>/` and `root/test/<class>/`, in any format that Pillow decodes.

    With a folder `root/val/<class>/`, its images are the validation images, and all others are trained on; not with
    `val_fraction` 0. Without a folder `test`, `fit` ends without a test.

    With `test_fraction` or `split_file`, the images are in `root/<class>/`, and are split by the hash of their names,
    see `split_by_name`, or as the file says.

    Images are turned as their EXIF orientation says, and converted to RGB. Grey levels of 16 and 32 bits are scaled to
    8 bits, not clipped, see `image_modes`. An image of another size is resized to a square with bilinear, antialiased
    interpolation. Names with a leading dot are ignored.

    The decoded images are cached in $CIFAR_RESNETS_CACHE, else $XDG_CACHE_HOME/cifar_resnets, else
    ~/.cache/cifar_resnets, and decoded again when a file was added, removed or changed.

    Args:
        root: folder with the folders `train` and `test`; one may be missing if the command does not read it.
        image_size: height and width of the images in pixels.
        background: color behind transparent pixels, a name or a value such as '#808080'.
        test_fraction: fraction of the images in `root/<class>/` that are tested, chosen by the hash of their names.
        split_file: CSV file with the columns path (below `root`) and split (train, val or test) of those images; with
            `test_fraction`, `fit` writes it, and adds the images that it lacks.
        kwargs: see `ImageDataModule`.

    Raises:
        ConfigurationError: for a value out of range.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 32,
        background: str = "white",
        test_fraction: float | None = None,
        split_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if image_size < 1:
            raise ConfigurationError(f"data.image_size: {image_size} is not allowed, give 1 or more")
        check_color("data.background", background)
        local_path("data.root", root)
        local_path("data.split_file", split_file or "")
        if not (test_fraction is None or 0 <= test_fraction < 1):
            raise ConfigurationError(f"data.test_fraction: {test_fraction} is not allowed, give 0 to below 1, or null")
        self.root = root
        self.image_size = image_size
        self.background = background
        self.test_fraction = test_fraction
        self.split_file = split_file
        # files of each split, and its images if they could not be written to the cache
        self._prepared: dict[str, tuple[Files, Images | None]] = {}
        self._said: set[str] = set()  # warnings, for a fit prepares the data once more for its test

    @functools.cached_property
    def _one_folder(self) -> OneFolder | None:
        """The folder that is split here; None if it has the folders `train` and `test`."""
        if self.test_fraction is None and self.split_file is None:
            return None
        file = self.split_file and Path(os.path.abspath(local_path("data.split_file", self.split_file)))
        return OneFolder(self._root, self.test_fraction, file or None)

    @property
    def has_test_images(self) -> bool:
        """Whether there are test images."""
        return "test" in self._splits()

    def source_classes(self) -> Sequence[str]:
        """Returns the sorted names of the class folders in `train`, or in `test` if that alone is read."""
        at_least = 2 if self.network_classes is None else 1
        if self._one_folder:
            return self._one_folder.classes(at_least)
        return class_folders(self._root / self._splits()[0], at_least)

    def count_images(self, split: Split, enough: int) -> int | None:
        """See `ImageDataModule.count_images`."""
        if self._one_folder:
            return sum(self._one_folder.count(split, name) for name in self.class_names) or None
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
        left_out: Counter[str] = Counter()
        found: dict[str, Files] = {}
        for folder in self._folders():
            files, others = self._scan(folder)
            left_out += others
            self._check_empty(folder, files, others)
            try:
                self._prepared[folder] = files, self._fill_cache(folder, files)
            except UnreadableImages as error:
                failures += error.failures
            found[folder] = files
        if failures:
            raise UnreadableImages(self._root, failures, write_failures(self._root, failures))
        self._log_left_out(left_out)
        self._report_split(found)

    def _report_split(self, found: dict[str, Files]) -> None:
        """Says how one folder is split, and which images are in several splits; writes the file of splits."""
        if self._one_folder is None:
            if crossing := crossing_folders(self._root, found):
                self._warn(crossing)
            return
        for note in self._one_folder.notes():
            self._warn(note)
        is_fit = self.trainer is None or self.trainer.state.fn == "fit"
        if is_fit and self.network_classes is None and (written := self._one_folder.write()):
            self._warn(written)

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Reads a split from the cache, or decodes it."""
        self._require_split(split)
        folder = ALL if self._one_folder else split
        # used once, because the folder may have changed before the next call
        files, images = self._prepared.pop(folder, (None, None))
        if files is None:
            files, _ = self._scan(folder)
        if images is None:
            images = self._cache(folder, files).read()
        if images is None:
            images, _ = self._cache(folder, files).fill(self._decoder(folder, files))
        labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
        if self._one_folder is None:
            return images, labels
        chosen = self._one_folder.chosen(split)
        return images[chosen], labels[chosen]

    def _folders(self) -> list[str]:
        """Returns the folders that are read, each of which is decoded and cached at once."""
        return [ALL] if self._one_folder else list(self._splits())

    def _scan(self, folder: str) -> tuple[Files, Counter[str]]:
        if self._one_folder:
            return self._one_folder.files, self._one_folder.others
        return scan(self._root / folder, self.source_classes())

    @property
    def _root(self) -> Path:
        return Path(os.path.abspath(local_path("data.root", self.root)))

    @property
    def _drawn_fraction(self) -> float:
        return 0.0 if "val" in self._splits() else self.val_fraction

    def _read_train(self) -> dict[str, tuple[Tensor, Tensor]]:
        sets = super()._read_train()
        if "val" in self._splits():
            images, labels = self._chosen("val")
            sets["val"] = torch.from_numpy(images), torch.from_numpy(labels)
        return sets

    def _splits(self) -> list[Split]:
        """Returns the splits that exist and are used; `test` alone for a network that is evaluated on it."""
        if self._one_folder:
            return self._one_folder.used(validates=bool(self.val_fraction))
        if self.network_classes is not None and os.path.isdir(self._root / "test"):
            return ["test"]
        used = SPLITS if self.val_fraction else SPLITS[:2]
        splits = [split for split in used if os.path.isdir(self._root / split)]
        if not {"train", "test"} & {*splits}:
            what = "has no folder train or test" if os.path.isdir(self._root) else "is no folder"
            where = "the images belong into train/<class>/ and test/<class>/"
            one = ", or give --data.test_fraction 0.2 for <class>/" if os.path.isdir(self._root) else ""
            raise DataError(f"data.root: {self._root} {what}; {where}{one}")
        return splits

    def _require_split(self, split: Split) -> None:
        if split not in self._splits():
            if self._one_folder:
                key = "test_fraction: 0" if self.split_file is None else f"split_file: {self.split_file}"
                raise DataError(f"data.{key} leaves no {split} images in {self._root}")
            raise DataError(f"data.root: {self._root} has no folder {split}; its images belong into {split}/<class>/")

    def _check_folders(self) -> None:
        stage = self.trainer.state.fn if self.trainer else None
        if stage:
            if self._one_folder and stage != "fit":
                self._one_folder.require_split_file()  # others would be test images
            self._require_split(_NEEDED[stage.value])
        if self._one_folder is None and {"train", "test"} <= {*self._splits()}:
            self._check_same_classes()

    def _check_same_classes(self) -> None:
        train, test = (set(class_folders(self._root / split)) for split in SPLITS[:2])
        chosen = set(self.classes or train | test)
        # most likely one class with two names; `_check_empty` and `_log_left_out` report one that only one folder has
        if (train - test) & chosen and (test - train) & chosen:
            alone = sorted((train ^ test) & chosen)
            where = ", ".join(f"{'train' if name in train else 'test'}/{name!r}" for name in alone)
            raise DataError(f"{self._root}: train and test differ in their class folders, only there: {where}")

    def _check_empty(self, split: str, files: Files, others: Counter[str]) -> None:
        names = [name for name in self.class_names if not files[name]]
        empty = [f"{split}/{name!r}".removeprefix(f"{ALL}/") for name in names]
        is_missing = split == "test" and not any((self._root / split / name).is_dir() for name in names)
        if empty and (split == "val" or is_missing) and len(empty) < len(self.class_names):
            self._warn(f"no {'validation' if split == 'val' else 'test'} images of {', '.join(empty)}")
        elif empty:
            there_is = f"; there are other files: {_listed(others)}" if others else ""
            where = ", ".join(empty)
            raise DataError(f"{self._root}: no images in the class folders {where}; add some or remove them{there_is}")

    def _log_left_out(self, files: Counter[str]) -> None:
        """Says what lies in the folders and is not read."""
        splits, names = self._folders(), self.class_names
        known = splits if self.network_classes is None else SPLITS  # an evaluation leaves `train` alone
        folders = [] if self._one_folder else [name for name in subfolders(self._root) if name not in known]
        within = ((each, name) for each in splits for name in subfolders(self._root / each) if name not in names)
        folders += [f"{each}/{name}".removeprefix(f"{ALL}/") for each, name in within]
        if folders:
            first = ", ".join(map(repr, folders[:10])) + (", ..." if len(folders) > 10 else "")
            self._warn(f"{len(folders):,} folders are not used: {first}")
        if files:
            why = "images of formats that Pillow does not decode have to be converted"
            self._warn(f"{files.total():,} files are not used: {_listed(files)}; {why}")

    def _warn(self, what: str) -> None:
        if what not in self._said:
            logger.warning("%s: %s", self._root, what)
        self._said.add(what)

    def _fill_cache(self, folder: str, files: Files) -> Images | None:
        """Writes the images to the cache if it does not hold them; returns them if they could not be written."""
        cache = self._cache(folder, files)
        if cache.holds():
            return None
        images, saved = cache.fill(self._decoder(folder, files))
        return None if saved else images

    def _cache(self, folder: str, files: Files) -> Cache:
        size, num = self.image_size, sum(map(len, files.values()))
        key = fingerprint(files, size, self.background)
        name = "all" if folder == ALL else folder
        return Cache(cache_folder(self._root) / f"{name}-{size}", key, (num, size, size, 3))

    def _decoder(self, folder: str, files: Files) -> Callable[[], Images]:
        paths = [f"{folder}/{file.path}".removeprefix(f"{ALL}/") for of_class in files.values() for file in of_class]
        return partial(decode, self._root, paths, self.image_size, self.background, self._root / folder)


def _listed(others: Counter[str]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in others.most_common(10))

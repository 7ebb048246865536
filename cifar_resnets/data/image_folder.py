"""Images in folders, one folder per class: decoded once, then read from a cache."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split
from cifar_resnets.data.duplicates import crossing_folders
from cifar_resnets.data.folder_checks import check_empty, check_memory, check_same_classes, describe_folders, listed
from cifar_resnets.data.image_cache import Cache, cache_folder, fingerprint, write_failures
from cifar_resnets.data.image_files import Files, UnreadableImages, class_folders, decode, paths_of, scan
from cifar_resnets.data.image_modes import check_color
from cifar_resnets.data.one_folder import OneFolder
from cifar_resnets.data.resize import Resize, check_resize, stored_size
from cifar_resnets.errors import ConfigurationError, DataError, local_path

SPLITS: tuple[Split, ...] = ("train", "test", "val")

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
    interpolation, see `resize_to_square`. Names with a leading dot are ignored.

    The decoded images are cached in $CIFAR_RESNETS_CACHE, else $XDG_CACHE_HOME/cifar_resnets, else
    ~/.cache/cifar_resnets, and decoded again when a file was added, removed or changed.

    Args:
        root: folder with the folders `train` and `test`; one may be missing if the command does not read it.
        image_size: height and width of the images in pixels; an image takes three times its square in bytes.
        background: color behind transparent pixels and of padding, a name or a value such as '#808080'.
        resize: how an image becomes a square: `squash` changes its proportions, `crop` takes its middle, `pad` pads
            it. With the last two, training images are random crops, see `Augmentation.crop_scale`.
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
        resize: Resize = "squash",
        test_fraction: float | None = None,
        split_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_resize(resize, image_size)
        check_color("data.background", background)
        local_path("data.root", root)
        local_path("data.split_file", split_file or "")
        if not (test_fraction is None or 0 <= test_fraction < 1):
            raise ConfigurationError(f"data.test_fraction: {test_fraction} is not allowed, give 0 to below 1, or null")
        self.root = root
        self.image_size = image_size
        self.background = background
        self.resize = resize
        self.test_fraction = test_fraction
        self.split_file = split_file
        # files of each folder, and its images of a size if they could not be written to the cache
        self._prepared: dict[tuple[str, int], tuple[Files, Images | None]] = {}
        self._paths: dict[str, list[str]] = {}  # of the images of each split, below the root, once they are loaded
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
        found = {folder: self._scan(folder) for folder in self._folders()}
        for folder, (files, others) in found.items():
            self._warn(check_empty(self._root, folder, self.class_names, files, others))
        self._check_memory(found)
        failures: list[tuple[str, str]] = []
        for folder, (files, _) in found.items():
            try:
                for size in self._sizes(folder):
                    self._prepared[folder, size] = files, self._fill_cache(folder, files, size)
            except UnreadableImages as error:
                failures += error.failures
        if failures:
            raise UnreadableImages(self._root, failures, write_failures(self._root, failures))
        self._report_left_out(sum((others for _, others in found.values()), Counter()))
        self._report_split({folder: files for folder, (files, _) in found.items()})

    def _check_memory(self, found: Mapping[str, tuple[Files, Counter[str]]]) -> None:
        numbers = {folder: sum(map(len, files.values())) for folder, (files, _) in found.items()}
        of_sizes = {(folder, size): number for folder, number in numbers.items() for size in self._sizes(folder)}
        self._warn(check_memory(of_sizes, getattr(self.trainer, "num_devices", 1)))

    def _report_left_out(self, others: Counter[str]) -> None:
        """Says what lies in the folders and is not read."""
        known = () if self.network_classes is None else SPLITS  # an evaluation leaves `train` alone
        self._warn(describe_folders(self._root, self._folders(), known, self.class_names))
        if others:
            why = "images of formats that Pillow does not decode have to be converted"
            self._warn(f"{others.total():,} files are not used: {listed(others)}; {why}")

    def _report_split(self, found: dict[str, Files]) -> None:
        """Says how one folder is split, and which images are in several splits; writes the file of splits."""
        if self._one_folder is None:
            self._warn(crossing_folders(self._root, found))
            return
        for note in self._one_folder.notes():
            self._warn(note)
        is_fit = self.trainer is None or self.trainer.state.fn == "fit"
        if is_fit and self.network_classes is None:
            self._warn(self._one_folder.write())

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Reads a split from the cache, or decodes it; training images in the size of which random crops are taken."""
        return self._load(split, self._sizes(split)[0])

    def _load(self, split: Split, size: int) -> tuple[Images, Labels]:
        self._require_split(split)
        folder = "" if self._one_folder else split
        # used once, because the folder may have changed before the next call
        files, images = self._prepared.pop((folder, size), (None, None))
        if files is None:
            files, _ = self._scan(folder)
        cache = self._cache(folder, files, size)
        if images is None:
            images = cache.read()
        if images is None:
            images, _ = cache.fill(self._decoder(folder, files, size))
        labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
        paths = paths_of(folder, files)
        if self._one_folder is not None:
            chosen = self._one_folder.chosen(split)
            images, labels, paths = images[chosen], labels[chosen], [paths[each] for each in chosen]
        self._paths[split] = paths
        return images, labels

    def _sizes(self, folder: str) -> list[int]:
        """Returns the sides of the squares in which images of a folder are needed; the first one is trained on."""
        if folder in ("test", "val") or not self.takes_crops or self.network_classes is not None:
            return [self.image_size]
        evaluated = [self.image_size] if self._drawn_fraction or not folder else []
        return [stored_size(self.image_size), *evaluated]

    @property
    def takes_crops(self) -> bool:
        """Whether training images are random resized crops, as they are unless they are squashed or not augmented."""
        return self.resize != "squash" and self.augment is not None

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.image_size, self.image_size

    def _folders(self) -> list[str]:
        """Returns the folders that are read, each of which is decoded and cached at once."""
        return [""] if self._one_folder else list(self._splits())

    def _scan(self, folder: str) -> tuple[Files, Counter[str]]:
        if self._one_folder:
            return self._one_folder.files, self._one_folder.others
        return scan(self._root / folder, self.source_classes())

    def file_names(self, split: Split) -> Sequence[str]:
        """Returns the paths of the images that `load` has read, below the root; bytes that are no UTF-8 are escaped."""
        return [os.fsencode(path).decode("utf-8", "backslashreplace") for path in self._paths[split]]

    @property
    def _root(self) -> Path:
        return Path(os.path.abspath(local_path("data.root", self.root)))

    @property
    def _drawn_fraction(self) -> float:
        return 0.0 if "val" in self._splits() else self.val_fraction

    def _read_train(self) -> dict[str, tuple[Tensor, Tensor]]:
        sets = super()._read_train()
        if "val" in self._splits():
            images, labels, self._file_names["val"] = self._chosen("val")
        elif self.takes_crops and self._drawn_fraction:  # what is evaluated is resized at once, as a test image is
            images, labels, _ = self._selected("train", *self._load("train", self.image_size))
            _, val = self._split(labels)
            images, labels = images[val], labels[val]
        else:
            return sets
        return sets | {"val": (torch.from_numpy(images), torch.from_numpy(labels))}

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
            where = "the images belong into train/<class>/ and test/<class>/, or into <class>/ with data.test_fraction"
            raise DataError(f"data.root: {self._root} {what}; {where}")
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
            check_same_classes(self._root, self.classes)

    def _warn(self, what: str | None) -> None:
        if what is not None and what not in self._said:
            logger.warning("%s: %s", self._root, what)
            self._said.add(what)

    def _fill_cache(self, folder: str, files: Files, size: int) -> Images | None:
        """Writes the images to the cache if it does not hold them; returns them if they could not be written."""
        cache = self._cache(folder, files, size)
        if cache.holds():
            return None
        images, saved = cache.fill(self._decoder(folder, files, size))
        return None if saved else images

    def _cache(self, folder: str, files: Files, size: int) -> Cache:
        num, mode = sum(map(len, files.values())), "" if self.resize == "squash" else f"-{self.resize}"
        key = fingerprint(files, size, self.background, self.resize)
        return Cache(cache_folder(self._root) / f"{folder or 'all'}-{size}{mode}", key, (num, size, size, 3))

    def _decoder(self, folder: str, files: Files, size: int) -> Callable[[], Images]:
        return partial(
            decode, self._root, paths_of(folder, files), size, self.background, self.resize, self._root / folder
        )

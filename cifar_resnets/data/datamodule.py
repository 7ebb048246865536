"""The base class of all data sources: classes, split, statistics and loaders; a source adds its images."""

import dataclasses
import functools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import compress
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.classes import chosen_classes, relabelled
from cifar_resnets.data.digests import NAMES, digest
from cifar_resnets.data.loaders import EvalLoader, TrainLoader, check_batch_size
from cifar_resnets.data.random_crops import check_crops, whole_images
from cifar_resnets.data.split import split_indices
from cifar_resnets.data.statistics import channel_statistics, check_statistics, class_frequencies, pretrained_statistics
from cifar_resnets.errors import DataError, require
from cifar_resnets.support.signature import parameters_of

Split = Literal["train", "test", "val"]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

PATHS = ("root", "split_file")  # parameters of sources
DEFAULT_AUGMENTATION = Augmentation()
_require = functools.partial(require, "data")


class ImageDataModule(pl.LightningDataModule, ABC):
    """Images in memory, with a stratified validation split and the statistics of the training images.

    A data source is a subclass that implements `source_classes` and `load`, and `prepare_data` if it downloads or
    converts files. Every parameter of `__init__` has to be an attribute of the same name.

    Args:
        batch_size: images of a batch over all devices; a step takes `trainer.accumulate_grad_batches` batches.
        eval_batch_size: largest number of images per batch of validation, test and prediction over all devices.
        val_fraction: fraction of the source's training images that is kept for validation, the same for each class;
            with 0, all are trained on and nothing is validated.
        split_seed: seed of the validation split, separate from the run's seed, to compare runs on the same images.
        num_train: size of a stratified subset of the training images to train on; all if not given.
        classes: use only these classes, relabelled from 0 in the order given; all if not given.
        balance: show the images of each class equally often in an epoch, which stays as long: those of a rare class
            several times, of a frequent one some, see `balanced_order`. Validation and test images are as they are.
        augment: augmentation of the training images; none if null.
        mean: per channel, on the scale 0 to 1; of the training images if not given; `pretrained` takes mean and
            standard deviation that timm states for the weights of the network.
        std: per channel, on the scale 0 to 1; of the training images if not given.
        seed: seed of the order and the augmentation of the training images.

    Raises:
        ConfigurationError: for a value out of range.
        DataError: when a class has too few images.
    """

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_train: int | None = None,
        classes: list[str | int | float | bool | None] | None = None,
        balance: bool = False,
        augment: Augmentation | None = DEFAULT_AUGMENTATION,
        mean: list[float] | Literal["pretrained"] | None = None,
        std: list[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require(batch_size >= 1, "batch_size", batch_size, "1 or more")
        _require(eval_batch_size >= 1, "eval_batch_size", eval_batch_size, "1 or more")
        _require(0 <= val_fraction < 1, "val_fraction", val_fraction, "a number from 0 to below 1")
        _require(split_seed >= 0, "split_seed", split_seed, "0 or more")
        _require(num_train is None or num_train >= 1, "num_train", num_train, "1 or more")
        _require(seed >= 0, "seed", seed, "0 or more")
        check_statistics(mean, std)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.num_train = num_train
        self.classes = None if classes is None else [str(name) for name in classes]  # YAML reads 7 as int
        self.balance = balance
        self.augment = augment
        self.mean: Any = mean  # numbers after `setup`
        self.std = std
        self.seed = seed
        self.network_classes: list[str] | None = None  # of a network that is evaluated: its labels are in their order
        self._sets: dict[str, tuple[Tensor, Tensor]] = {}
        self._file_names: dict[str, list[str] | None] = {}

    @abstractmethod
    def source_classes(self) -> Sequence[str]:
        """Returns the names of all classes in the order of the labels; called before any image is read."""

    @abstractmethod
    def load(self, split: Split) -> tuple[Images, Labels]:
        """Reads a split: uint8 images (n, h, w, 3), and labels (n,), which are indices of `source_classes`.

        Only a source that has validation images of its own is asked for `val`, see `ImageFolder`.
        """

    def file_names(self, split: Split) -> Sequence[str] | None:
        """Returns the name of each image that `load` has read, in its order; None if the images are no files.

        A name is printed in tables and figures: a path below the source's folder, its parts separated by `/`.
        """
        return None

    def count_images(self, split: Split, enough: int) -> int | None:
        """Counts the images of the classes in use without decoding any; None if the source cannot.

        Args:
            split: of the source.
            enough: number at which the source may stop to count.
        """
        return None

    def check_batch_size(self) -> None:
        """Raises ConfigurationError if the batch is larger than the training set, before any image is decoded.

        The same for settings of random crops that have no effect.
        """
        check_crops(self.augment, self.takes_crops)
        drawn = self._drawn_fraction
        enough = math.ceil((self.batch_size + len(self.class_names) + 1) / (1 - drawn))
        if (count := self.count_images("train", enough)) is not None and count < enough:
            num_val = max(round(drawn * count), len(self.class_names)) if drawn else 0
            if count > num_val:  # otherwise `split_indices` says what is missing
                check_batch_size(self.batch_size, count - num_val)
        if self.num_train is not None and self.num_train >= len(self.class_names):
            check_batch_size(self.batch_size, self.num_train)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in use, in the order of the labels in the batches."""
        return chosen_classes(self.classes, self.source_classes(), 2 if self.network_classes is None else 1)

    @functools.cached_property
    def digests(self) -> dict[str, dict[str, int | str]]:
        """Digests of the training and the validation images, for `data.digests.changed_images`."""
        return {name: digest(*self._set(name)) for name in NAMES}

    @property
    def has_test_images(self) -> bool:
        """Whether there are test images; otherwise `fit` ends without a test."""
        return True

    @property
    def takes_crops(self) -> bool:
        """Whether training images are random resized crops of larger ones."""
        return False

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images in pixels, after `setup`."""
        images, _ = next(iter(self._sets.values()))
        return images.shape[1], images.shape[2]

    @property
    def num_train_batches(self) -> int:
        """Number of batches per epoch, on each rank."""
        return len(self._set("train")[0]) // self.batch_size

    @property
    def class_frequencies(self) -> list[float]:
        """Part of each class in the training images, as they are shown in an epoch."""
        return class_frequencies(self._set("train")[1].numpy(), len(self.class_names), self.balance)

    def setup(self, stage: str) -> None:
        """Reads the images of a stage; `fit` and `validate` never read the test images."""
        if stage in ("fit", "validate"):
            self._set("train" if stage == "fit" else "val")
        else:
            self._set("test")
        if self.mean == "pretrained":
            self.mean, self.std = pretrained_statistics(self.trainer and self.trainer.lightning_module)
        if self.mean is None:
            self.mean, self.std = channel_statistics(self._set("train")[0].numpy())

    def sample(self, num: int) -> Tensor:
        """Returns up to `num` normalised training images (n, c, h, w), evenly spaced in the training set."""
        images, labels = self._set("train")
        index = torch.linspace(0, len(images) - 1, min(num, len(images))).long()
        assert isinstance(self.mean, list) and self.std is not None
        loader = EvalLoader(
            whole_images(images[index], self.image_shape), labels[index], batch_size=num, mean=self.mean, std=self.std
        )
        return next(iter(loader))[0]

    def describe(self) -> dict[str, Any]:
        """Returns this source as a recipe names it, with its classes and statistics filled in."""
        values = {name: getattr(self, name) for name in parameters_of(type(self))}
        values |= {"classes": self.class_names, "augment": self.augment and dataclasses.asdict(self.augment)}
        del values["seed"]  # the run's, see `seed_everything`
        for name in PATHS:
            if isinstance(path := values.get(name), str) and not path.startswith("~"):
                values[name] = os.path.abspath(path)  # a checkpoint is evaluated in other folders, too
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": values}

    def summary(self) -> str:
        """Returns one line about the size of the data."""
        train, val = (len(self._set(name)[0]) for name in ("train", "val"))
        height, width = self.image_shape
        classes = len(self.class_names)
        return f"{train:,} training and {val:,} validation images of {height}x{width} pixels in {classes} classes"

    def train_dataloader(self) -> TrainLoader:
        """Returns a loader of augmented training images; with `trainer.overfit_batches`, the same in each epoch."""
        return TrainLoader(
            *self._on_device("train"),
            batch_size=self.batch_size,
            augmentation=self.augment or Augmentation(crop_padding=0, flip=False),
            seed=self.seed,
            num_classes=len(self.class_names),
            balance=self.balance,
            crop_size=self.image_shape if self.takes_crops else None,
            repeats=self.trainer is not None and self.trainer.overfit_batches > 0,  # type: ignore[attr-defined]  # of Lightning
            **self._shared,
        )

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """Returns a loader of the validation images; no loader if `val_fraction` is 0.

        Raises:
            ConfigurationError: when the command is `validate`, but `val_fraction` is 0.
        """
        if self.val_fraction:
            return self._eval_loader("val")
        wanted = self.trainer is not None and self.trainer.state.fn == "validate"
        _require(not wanted, "val_fraction", 0, "a number above 0 to `validate`")
        return []

    def test_dataloader(self) -> EvalLoader:
        """Returns a loader of the test images."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Returns a loader of the test images."""
        return self._eval_loader("test")

    def _eval_loader(self, name: str) -> EvalLoader:
        images, labels = self._on_device(name)
        return EvalLoader(images, labels, self._file_names.get(name), batch_size=self.eval_batch_size, **self._shared)

    def _on_device(self, name: str) -> tuple[Tensor, Tensor]:
        images, labels = self._set(name)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return images.to(device), labels.to(device)

    @property
    def _shared(self) -> dict[str, Any]:
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size} if self.trainer else {}
        return {"mean": self.mean, "std": self.std, **ranks}

    def _set(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._sets:
            self._sets |= self._read_test() if name == "test" else self._read_train()
        return self._sets[name]

    def _read_test(self) -> dict[str, tuple[Tensor, Tensor]]:
        images, labels, self._file_names["test"] = self._chosen("test")
        return {"test": (torch.from_numpy(images), torch.from_numpy(labels))}

    def _read_train(self) -> dict[str, tuple[Tensor, Tensor]]:
        images, labels, names = self._chosen("train")
        parts = dict(zip(("train", "val"), self._split(labels), strict=True))
        self._file_names |= {k: None if names is None else [names[j] for j in i] for k, i in parts.items()}
        return {k: (torch.from_numpy(images[i]), torch.from_numpy(labels[i])) for k, i in parts.items()}

    def _split(self, labels: Labels) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        return split_indices(labels, self._drawn_fraction, self.num_train, self.split_seed, self.class_names)

    @property
    def _drawn_fraction(self) -> float:
        """Fraction of the training images that is drawn for validation; 0 if the source has validation images."""
        return self.val_fraction

    def _chosen(self, split: Split) -> tuple[Images, Labels, list[str] | None]:
        return self._selected(split, *self.load(split))

    def _selected(self, split: Split, images: Images, labels: Labels) -> tuple[Images, Labels, list[str] | None]:
        """Selects and relabels the images of the chosen classes, after they were loaded."""
        files, names = self.file_names(split), self.class_names
        labels = relabelled(labels, self.source_classes(), names, self.network_classes or names)
        if not (kept := labels >= 0).all():
            images, labels = images[kept], labels[kept]
        if not len(images):
            raise DataError(f"{type(self).__name__}: there are no {split} images")
        # a source may return a view of (n, c, h, w) or BGR images, but torch and the loaders need contiguous memory
        return np.ascontiguousarray(images), labels, None if files is None else list(compress(files, kept))

"""CIFAR-10 and CIFAR-100: their classes, and their images, which are downloaded once if they are missing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torchvision

from cifar_resnets.data.cifar_archive import failed, obtain
from cifar_resnets.data.cifar_files import NUM_IMAGES, Files, find_files
from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split
from cifar_resnets.errors import DataError, local_path, require

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


class CIFAR10(ImageDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in ten classes.

    A folder `cifar-10-batches-py` in `root` is used as it is, or that of the binary version, `cifar-10-batches-bin`, or
    Hugging Face's parquet files. If there is none, the archive `cifar-10-python.tar.gz` in `root` is unpacked; if that
    is missing, too, it is downloaded (170 MB), by one process for all.

    Source: Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images".

    Args:
        root: the folder that holds `cifar-10-batches-py` (`cifar-100-python`), or that folder itself.
        urls: an address of the archive, or several, that are tried when the known ones do not deliver it.
        kwargs: see `ImageDataModule`.
    """

    _source = torchvision.datasets.CIFAR10
    _names = CIFAR10_CLASSES
    may_download = True  # false if nothing but a stranger's checkpoint says where to
    coarse = False  # CIFAR-10 has no superclasses

    def __init__(self, root: str = "data", urls: list[str] | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        local_path("data.root", root)
        self.urls = [urls] if isinstance(urls, str) else urls
        for url in self.urls or []:
            require("data", url.startswith(("http://", "https://")), "urls", url, "addresses with http:// or https://")
        self.root = root

    def source_classes(self) -> Sequence[str]:
        """Returns the names of the classes, without reading a file."""
        return self._names

    def count_images(self, split: Split, enough: int) -> int:
        """See `ImageDataModule.count_images`."""
        return NUM_IMAGES[split] // len(self._names) * len(self.class_names)

    def prepare_data(self) -> None:
        """Downloads and unpacks the images if they are missing, and verifies them.

        Raises:
            DataError: when they are missing and cannot be downloaded, or are damaged.
            OutputError: when `root` cannot be written, or the disk is full.
        """
        files = self._files()
        if files is None and not self.may_download:
            where = f"{self._root}, where the checkpoint has them"
            raise DataError(f"{type(self).__name__}: there are no images in {where}: give --data.root DIR")
        (files or obtain(self._source, self._root, self.urls or ())).verify()

    def load(self, split: Split) -> tuple[Images, Labels]:
        """Reads a split; raises DataError when it is missing, damaged or of another data set."""
        if (files := self._files()) is None:
            raise failed(self._source, self._root, f"there is no {self._source.base_folder}")
        return files.read(split, self.source_classes(), self.coarse)

    def file_names(self, split: Split) -> Sequence[str] | None:
        """Returns the names that the data set itself has, such as `domestic_cat_s_000907.png`."""
        files = self._files()
        return None if files is None else files.file_names(split)

    def describe(self) -> dict[str, Any]:
        """See `ImageDataModule.describe`; without `urls`, which say nothing of the images."""
        description = super().describe()
        del description["init_args"]["urls"]
        return description

    def _files(self) -> Files | None:
        return find_files(self._source, self._root)

    @property
    def _root(self) -> Path:
        return Path(os.path.abspath(local_path("data.root", self.root)))


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in a hundred classes.

    Like `CIFAR10`, with the folder `cifar-100-python` and the archive `cifar-100-python.tar.gz`.

    Args:
        root: see `CIFAR10`.
        urls: see `CIFAR10`.
        coarse: train on the twenty superclasses, of five classes each.
        kwargs: see `ImageDataModule`.
    """

    _source = torchvision.datasets.CIFAR100
    _names = CIFAR100_CLASSES

    def __init__(
        self, root: str = "data", coarse: bool = False, urls: list[str] | str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(root, urls, **kwargs)
        self.coarse = coarse

    def source_classes(self) -> Sequence[str]:
        """Returns the names of the classes, or of the superclasses, without reading a file."""
        return CIFAR100_COARSE_CLASSES if self.coarse else self._names

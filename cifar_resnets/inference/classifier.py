"""Loads a trained classifier, with everything that its checkpoint knows, and predicts the classes of images."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_resnets.data.augment import normalize
from cifar_resnets.data.image_modes import check_color
from cifar_resnets.data.loaders import evaluation_parts, on_pixel_scale
from cifar_resnets.data.resize import Resize, check_resize
from cifar_resnets.errors import CheckpointError, ConfigurationError, local_path
from cifar_resnets.evaluation.tta import average_views, check_views
from cifar_resnets.inference.decoding import num_cores
from cifar_resnets.inference.images import AnyImage, as_list, read_image
from cifar_resnets.inference.prediction import Prediction, make_prediction
from cifar_resnets.models.registry import create_network, try_network
from cifar_resnets.runs.checkpoint_file import EVALUATE, read_checkpoint_file
from cifar_resnets.runs.plain_values import short

PREFIX = "network."  # of the network's tensors in a checkpoint
EVAL_BATCH_SIZE = 500  # default of `ImageDataModule`
OWN_SOURCES = "cifar_resnets.data."
OWN_SIZE = 32  # pixels; of our data sources without a key `image_size`


@dataclass(eq=False)
class TrainedClassifier:
    """A network in evaluation mode, with the preprocessing of its training; several threads may use one.

    Args:
        network: returns logits (n, num_classes) of normalised images (n, 3, h, w).
        class_names: names of the classes, in the order of the logits.
        image_size: height and width in pixels of the images that the network was trained on.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1.
        background: color behind transparent pixels.
        resize: how an image becomes a square, see `resize_to_square`.
        tta: views of test-time augmentation, see `average_views`; empty if the network was trained without.
        batch_size: largest number of images of a batch over all devices, as in the evaluations of the training.
        hyper_parameters: of the checkpoint: those of `ImageClassifier`; empty if it is of no checkpoint.
        data: description of the data that the network was trained on, see `ImageDataModule.describe`; likewise.
    """

    network: nn.Module
    class_names: Sequence[str]
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    background: str = "white"
    resize: Resize = "squash"
    tta: Sequence[str] = ()
    batch_size: int = EVAL_BATCH_SIZE
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network.eval()
        self._mean, self._std = on_pixel_scale(list(self.mean), list(self.std), self.device)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    def normalize(self, pixels: NDArray[Any] | Tensor) -> Tensor:
        """Converts uint8 images (n, image_size, image_size, 3) to the network's input (n, 3, h, w), on its device."""
        images = torch.as_tensor(pixels).to(self.device)
        return normalize(images, self._mean, self._std).permute(0, 3, 1, 2)

    def logits(self, images: Tensor, tta: bool = False) -> Tensor:
        """Computes logits (n, num_classes) of normalised images; with `tta`, averaged over the views of them."""
        logits: Tensor = self.network(images)
        return average_views(self.network, images, logits, self.tta) if tta else logits

    def probabilities(self, pixels: NDArray[Any] | Tensor, tta: bool = False) -> Tensor:
        """Computes the probabilities (n, num_classes) of a batch of images.

        Args:
            pixels: uint8 (n, image_size, image_size, 3).
            tta: whether the logits are averaged over the views of the images.

        Returns:
            float32, on the network's device.
        """
        with torch.inference_mode():
            return self.logits(self.normalize(pixels), tta).float().softmax(dim=1)

    def predict(self, images: Iterable[AnyImage], tta: bool = False) -> list[Prediction]:
        """Predicts the class of each image; nothing is written.

        Args:
            images: paths, images of Pillow, or uint8 arrays (h, w), (h, w, 3) or (h, w, 4), of any size; or one array
                (n, h, w, 3).
            tta: whether the logits are averaged over the views that the network was trained for.

        Raises:
            DataError: for a file that cannot be read.
            ConfigurationError: for something else than images, or for `tta` if there are no views.
        """
        self.check_tta(tta)
        every, predictions = as_list(images), []
        read = partial(read_image, image_size=self.image_size, background=self.background, resize=self.resize)
        with ThreadPoolExecutor(num_cores()) as pool:
            for part in evaluation_parts(len(every), self.batch_size):
                rows = self.probabilities(np.stack(list(pool.map(read, every[part]))), tta)
                predictions += [make_prediction(self.class_names, row) for row in rows.tolist()]
        return predictions

    def check_tta(self, tta: bool) -> None:
        """Raises ConfigurationError if views are asked for that the network was not trained for."""
        if tta and not self.tta:
            raise ConfigurationError(
                "tta: the network was trained without model.tta, and so names no views of an image"
            )


def load(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    image_size: int | None = None,
    trust: Collection[str] = (),
) -> TrainedClassifier:
    """Loads the classifier of a checkpoint of `cifar-resnets fit`; nothing else is read, and no code in it is run.

    Args:
        path: of the checkpoint.
        device: that the network is to run on; the first GPU, or the CPU if there is none, if not given.
        image_size: height and width of the images in pixels; those of the training if not given.
        trust: functions of other packages, such as `mine:net`, that may build the network.

    Raises:
        CheckpointError: when it is missing, damaged, not of `fit`, or of a network that is not trusted.
        ConfigurationError: when the size of the images is not known, or the network does not take the one given.
    """
    content = read_checkpoint_file(Path(local_path("path", path)), EVALUATE)
    hparams, data = content["hyper_parameters"], content["data"]
    given = {name: value for name, value in data["init_args"].items() if value is not None}
    size, views = image_size or size_of_images(data), list(hparams.get("tta") or ())
    try:
        check_views(views, (size, size))
        check_resize(resize := given.get("resize", "squash"), size)
        check_color("data.background", background := given.get("background", "white"))
        network = _network(content, Path(path), size, trust)
    except ConfigurationError as error:
        if image_size is not None:  # the caller's
            raise
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error
    return TrainedClassifier(
        network.to(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        list(hparams["class_names"]),
        size,
        *_statistics(given, path),
        background=background,
        resize=resize,
        tta=views,
        batch_size=given.get("eval_batch_size") or EVAL_BATCH_SIZE,
        hyper_parameters=hparams,
        data=data,
    )


def size_of_images(data: Mapping[str, Any]) -> int:
    """Returns height and width in pixels of the images of a data source.

    Args:
        data: class path and arguments, see `ImageDataModule.describe`.

    Raises:
        ConfigurationError: when the source is of another package and has no key `image_size`.
    """
    if isinstance(size := data["init_args"].get("image_size"), int) and size > 0:
        return size
    if data["class_path"].startswith(OWN_SOURCES):
        return OWN_SIZE
    what = f"the checkpoint's data source {short(data['class_path'])} does not say how large its images are"
    raise ConfigurationError(f"image_size: {what}, give their height and width in pixels")


def _statistics(given: Mapping[str, Any], path: str | os.PathLike[str]) -> tuple[list[float], list[float]]:
    mean, std = (list(given.get(name, ())) for name in ("mean", "std"))
    if not (len(mean) == len(std) == 3 and all(each > 0 for each in std)):
        raise CheckpointError(f"{os.fspath(path)}: data.init_args.mean and std are not three numbers each")
    return mean, std


def _network(content: Mapping[str, Any], path: Path, size: int, trust: Collection[str]) -> nn.Module:
    """Builds the network of a checkpoint and loads its weights; torch's random numbers stay as they were."""
    hparams = content["hyper_parameters"]
    name, num_classes = hparams["network"], len(hparams["class_names"])
    if ":" in name and name not in trust:
        what = f"{path}: the checkpoint names the network {short(name)} of another package, whose code would run"
        raise CheckpointError(f"{what}; if you trust it, give --trust {short(name)}, in Python trust=[{short(name)!r}]")
    try:
        with torch.random.fork_rng(devices=[]):
            network = create_network(name, num_classes, hparams.get("network_args"))
    except ConfigurationError as error:
        raise CheckpointError(f"{path}: {error}") from error
    state = content["state_dict"]
    weights = {key.removeprefix(PREFIX): state[key] for key in state if key.startswith(PREFIX)}
    _check_fits(network, weights, path)
    network.load_state_dict(weights)
    if hparams.get("channels_last", True):
        network = network.to(memory_format=torch.channels_last)
    try_network(network.eval(), name, (size, size), num_classes)
    return network


def _check_fits(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    has, wants = (
        {name: tuple(value.shape) for name, value in each.items()} for each in (weights, network.state_dict())
    )
    if name := next((name for name in (*wants, *has) if has.get(name) != wants.get(name)), None):
        both = (has.get(name, "missing"), wants.get(name, "missing"))
        line = f"its weights are not of its network: {short(name)} is {both[0]}, in the network {both[1]}"
        raise CheckpointError(f"{path}: {line}")
    if name := next((name for name, value in weights.items() if not value.isfinite().all()), None):
        raise CheckpointError(f"{path}: its weights are not finite: {short(name)}")

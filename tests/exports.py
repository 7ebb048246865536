"""What the tests of exports share: a small checkpoint that was not trained, and its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from support import TINY_NETWORK

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.inference.classifier import TrainedClassifier
from cifar_resnets.runs.checkpoint_file import write_checkpoint

MEAN, STD = [0.3, 0.4, 0.5], [0.2, 0.3, 0.4]


def write_small(path: Path, names: Sequence[str] = tuple("0123456789"), **data: Any) -> Path:
    """Writes a checkpoint of a network of one block, as `fit` would."""
    torch.manual_seed(0)
    module = ImageClassifier(names, network_args=TINY_NETWORK)
    description = Digits(mean=MEAN, std=STD, **data).describe()
    hparams = {**module.hparams}
    write_checkpoint({"hyper_parameters": hparams, "data": description, "state_dict": module.state_dict()}, path)
    return path


def untrained(name: str = "cifar_resnet20", size: int = 32, **arguments: Any) -> TrainedClassifier:
    """A network of the registry with random weights, small unless the arguments say otherwise."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, **arguments)
    return TrainedClassifier(network, list("abcde"), size, MEAN, STD, hyper_parameters={"network": name})


def random_images(*shape: int) -> np.ndarray:
    """Smooth shapes with noise, uint8 (n, h, w, 3)."""
    rng = np.random.default_rng(0)
    num, height, width = shape
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = np.sin(6 * rng.random((num, 1, 1, 3)) * (rows + columns)[None, ..., None] * 3)
    return (127 + 100 * waves + rng.integers(-20, 21, (num, height, width, 3))).clip(0, 255).astype(np.uint8)

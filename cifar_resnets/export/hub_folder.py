"""A folder as timm's hub has it: weights as safetensors, a `config.json` that rebuilds the network, a model card."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.export.programs import Runner
from cifar_resnets.inference.classifier import TrainedClassifier
from cifar_resnets.support.atomic_file import naming

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def config(classifier: TrainedClassifier) -> dict[str, Any]:
    """Returns what timm builds a network from, and how its images are prepared, as `config.json` holds it.

    Raises:
        ConfigurationError: for a network that is not in timm's registry, which timm could not build.
    """
    hparams, network = classifier.hyper_parameters, classifier.network
    if not timm.is_model(hparams["network"]):
        raise ConfigurationError(f"--format safetensors: {hparams['network']} is not in timm's registry, give onnx")
    known = getattr(network, "pretrained_cfg", None) or {}
    size, names = classifier.image_size, list(classifier.class_names)
    shared = {"num_classes": len(names), "label_names": names}
    crop_mode = {"squash": "squash", "crop": "center", "pad": "border"}[classifier.resize]  # see `resize_to_square`
    preparation = {"input_size": [3, size, size], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": crop_mode}
    layers = {name: known[name] for name in ("first_conv", "classifier", "pool_size") if known.get(name)}
    return {
        "architecture": hparams["network"],
        **shared,
        "num_features": getattr(network, "num_features", None),
        "model_args": dict(hparams.get("network_args") or {}),
        "pretrained_cfg": {
            **shared,
            **preparation,
            "mean": list(classifier.mean),
            "std": list(classifier.std),
            **layers,
            "custom_load": False,
        },
    }


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that gets its name at the end of the block: no half of it is ever there.

    Raises:
        OSError: when it cannot be written, or there is a folder of that name meanwhile.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):  # the only name that the user knows
            unfinished.mkdir()
            yield unfinished
            for each in unfinished.iterdir():
                with each.open("rb") as file:
                    os.fsync(file.fileno())
            os.rename(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_weights(classifier: TrainedClassifier, folder: Path) -> None:
    """Writes `model.safetensors` and `config.json`; raises as `config`."""
    text = json.dumps(config(classifier), indent=2)
    state = {name: value.cpu().contiguous().clone() for name, value in classifier.network.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def folder_runner(folder: Path) -> Runner:
    """Returns a function that maps normalised images (n, 3, h, w) to logits, by the network that timm loads."""
    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    def run(images: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]  # a tensor's

    return run

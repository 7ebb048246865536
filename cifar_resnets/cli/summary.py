"""`cifar-resnets summary`: a network's layers and their receptive fields, without importing Lightning."""

import argparse
import dataclasses
import inspect
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from jsonargparse import get_loader
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.cli.parser import CommandParser, check_figure_path, local
from cifar_resnets.data.image_modes import to_rgb
from cifar_resnets.errors import ConfigurationError, DataError
from cifar_resnets.models.registry import network_function
from cifar_resnets.models.weights import load_weights
from cifar_resnets.receptive_field.measured import verify
from cifar_resnets.receptive_field.table import FORMATS, WIDE, print_summary
from cifar_resnets.receptive_field.theory import summarize
from cifar_resnets.support.bounded_yaml import check_aliases
from cifar_resnets.support.text import did_you_mean

EXAMPLES = """
  cifar-resnets summary cifar_resnet20
  cifar-resnets summary cifar_speednet --epochs 8
  cifar-resnets summary resnet50 --input_size 224 --verify
  cifar-resnets summary torchvision/vgg11 --format csv > layers.csv
  cifar-resnets summary cifar_resnet20 --plot fields.png --weights best.ckpt --images data/test
"""
NUM_IMAGES = 32  # the effective field is averaged over them


def run(args: list[str]) -> None:
    """Runs the subcommand.

    Raises:
        UserError: for a mistake of the user.
        SystemExit: with status 1 when theory and measurement do not agree.
    """
    options = _parser().parse_args(args[1:])
    check_figure_path(options.plot)
    module = build(options.network, options.num_classes, options.network_args)
    size = _input_size(options.input_size, options.network, module)
    if options.weights:
        load_weights(module, options.weights)
    summary = summarize(module, size)
    if options.epochs is not None:
        note = training_arithmetic(summary.multiply_adds, options.epochs, options.train_images)
        summary = dataclasses.replace(summary, notes=[*summary.notes, note])
        if options.format in ("csv", "markdown"):  # which hold layers alone
            print(note, file=sys.stderr)
    measurements = None
    if options.verify:
        with Console(stderr=True).status("measuring the fields"):  # shown on a terminal only
            measurements = verify(module, size)
    # a file or a pipe has no width of its own
    console = Console() if sys.stdout.isatty() else Console(width=WIDE + 40)
    print_summary(summary, options.format, console, measurements)
    if options.plot:
        _plot(module, summary.input_size, options)
    if any(not measurement.agrees for measurement in (measurements or {}).values()):
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("summary", "Show a network's layers, parameters and receptive fields.", EXAMPLES)
    add = parser.add_argument
    add("network", help="name in timm's registry (cifar_* among them) or in torchvision's; torchvision/NAME if in both")
    add("--input_size", "--input-size", metavar="SIZE", help="32, 32x48 or 3x32x48 (c x h x w); the network's own")
    add("--num_classes", "--num-classes", type=int, metavar="N", help="length of the logits; the network's own")
    add("--network_args", "--network-args", default="{}", metavar="YAML", help="such as '{shortcut: B}'")
    add("--format", choices=FORMATS, default="table", help="%(choices)s; table if not given")
    add("--epochs", type=_above_zero, metavar="N", help="tell the arithmetic of a training of so many epochs")
    images = "training images of an epoch; %(default)s if not given"
    add("--train_images", "--train-images", type=_above_zero, metavar="N", default=50_000, help=images)
    add("--verify", action="store_true", help="measure each field by gradient, and compare")
    add("--plot", type=local, metavar="FILE", help="draw theoretical and effective fields into an image file")
    add("--layers", metavar="A,B", help="modules to draw; the stages if not given")
    add("--images", type=local, metavar="DIR", help="folder of images for --plot; scikit-learn's digits if not given")
    add("--weights", type=local, metavar="FILE", help="weights for --plot; random ones if not given")
    return parser


def _above_zero(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not allowed, give a number above 0")
    return number


def training_arithmetic(multiply_adds: int, epochs: float, num_images: float) -> str:
    """Describes the floating-point operations of a training, in PFLOP (10^15).

    A multiply-add is two operations, and the backward pass takes about twice as many as the forward pass.
    Source: Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", which compares trainings by them.

    Args:
        multiply_adds: of the network, for one image.
        epochs: length of the training.
        num_images: training images of an epoch.
    """
    pflop = training_pflop(multiply_adds, epochs * num_images)
    return f"{epochs:g} epochs of {num_images:,g} images take {pflop:.3g} PFLOP (multiply-adds x 2 x 3)"


def training_pflop(multiply_adds: int, num_images: float) -> float:
    """Returns the floating-point operations of a training in PFLOP, see `training_arithmetic`.

    Args:
        multiply_adds: of the network, for one image.
        num_images: training images of all epochs.
    """
    return 2 * 3 * multiply_adds * num_images / 1e15


def build(name: str, num_classes: int | None = None, network_args: str = "{}") -> nn.Module:
    """Builds a network of timm's registry, or of torchvision's, with random weights.

    Raises:
        ConfigurationError: for an unknown name, or arguments that it does not take.
    """
    arguments = _arguments(network_args) | ({} if num_classes is None else {"num_classes": num_classes})
    source, _, short = name.rpartition("/")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about slow initialisations
            if ":" in name:  # a function of the user's
                return network_function(name)(**arguments)  # type: ignore[no-any-return]
            if source in ("", "timm") and timm.is_model(short):
                return timm.create_model(short, **arguments)
            if source in ("", "torchvision") and short in _torchvision_names():
                return _torchvision(short, arguments)
    except ConfigurationError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        remedy = "; give --num_classes" if num_classes is None and "argument: 'num_classes'" in str(error) else ""
        raise ConfigurationError(f"summary: {name}: {error}{remedy}") from error
    hint = did_you_mean(short, [*timm.list_models(), *_torchvision_names()])
    raise ConfigurationError(f"summary: there is no network {name!r} in timm's registry or in torchvision's{hint}")


def _arguments(text: str) -> dict[str, Any]:
    try:
        check_aliases(text)
        arguments = get_loader("yaml")(text)  # as `fit` reads them: `1e-1` is a number
    except yaml.YAMLError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ConfigurationError(f"--network_args: {text!r} is no mapping, give for example '{{shortcut: B}}'")
    return arguments


def _torchvision_names() -> list[str]:
    import torchvision  # takes a second, which networks of timm do not need

    return list(torchvision.models.list_models())


def _torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    import torchvision

    # segmentation networks would otherwise download weights for their backbone
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        arguments = {"weights_backbone": None, **arguments}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return module


def _input_size(text: str | None, name: str, module: nn.Module) -> tuple[int, ...]:
    if text is None:
        sizes = getattr(module, "pretrained_cfg", {}).get("input_size")
        channels = getattr(module, "in_chans", 3)
        return (channels, *sizes[1:]) if sizes else (3, 299, 299) if "inception" in name else (3, 224, 224)
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise ConfigurationError(f"--input_size: {text!r} is not allowed, give 32, 32x48 or 3x32x48") from error


def _plot(module: nn.Module, size: tuple[int, int, int], options: argparse.Namespace) -> None:
    from cifar_resnets.figures.receptive_fields import plot_fields

    images = _normalised(_read(options.images, size), module)
    plot_fields(module, images, options.layers.split(",") if options.layers else None).savefig(options.plot)
    print(f"written: {options.plot}", file=sys.stderr)


def _read(folder: Path | None, size: tuple[int, int, int]) -> Tensor:
    """Reads images (n, c, h, w) from 0 to 1 for the effective field."""
    channels, height, width = size
    resized = [np.asarray(image.convert("RGB").resize((width, height))) for image in _pictures(folder)]
    images = torch.tensor(np.stack(resized)).movedim(-1, 1) / 255
    return images if channels == 3 else images.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)


def _pictures(folder: Path | None) -> list[Image.Image]:
    if folder is None:
        from sklearn.datasets import load_digits  # takes a second to import

        return [Image.fromarray((digit * 15).astype(np.uint8)) for digit in load_digits().images[:NUM_IMAGES]]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise DataError(f"--images: there are no PNG or JPEG files in {folder}")
    chosen = files[:: max(1, len(files) // NUM_IMAGES)][:NUM_IMAGES]
    try:
        return [to_rgb(Image.open(path)) for path in chosen]
    except (OSError, SyntaxError) as error:
        raise DataError(f"--images: an image in {folder} cannot be read: {error}") from error


def _normalised(images: Tensor, module: nn.Module) -> Tensor:
    """Normalises images with mean and deviation of the network's registry entry; with 0.5 where it has none."""
    cfg = getattr(module, "pretrained_cfg", {})
    mean, std = (torch.tensor(cfg.get(key, (0.5,)))[:, None, None] for key in ("mean", "std"))
    if len(mean) not in (1, images.shape[1]):
        mean, std = mean.mean(), std.mean()
    return (images - mean) / std

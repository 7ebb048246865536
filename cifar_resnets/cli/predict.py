"""`cifar-resnets predict IMAGE...`: predicts the classes of any images by a checkpoint; without Lightning.

Torch is imported when the arguments have been checked.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from cifar_resnets.cli.parser import CommandParser, local, positive
from cifar_resnets.errors import ConfigurationError, DataError, OutputError

DESCRIPTION = """\
Predict the classes of images with a trained network: files of any format and
size, folders at any depth, patterns, lists. Each image is prepared as in the
training, and its probabilities are those of `cifar-resnets test`.

Without an image, a list or -, predict writes the probabilities of the test
images of a data source; its keys are those of `cifar-resnets test`."""
EXAMPLES = """
  cifar-resnets predict cat.jpg --ckpt_path best.ckpt
  cifar-resnets predict photos 'more/**/*.png' --ckpt_path best.ckpt
  cifar-resnets predict photos --ckpt_path best.ckpt --heatmaps heat --tta
  find . -name '*.jpg' -print0 | cifar-resnets predict - --ckpt_path best.ckpt
  cifar-resnets predict --ckpt_path best.ckpt        # the test images
"""
TABLE, SHEET = "predictions.csv", "predictions.html"
MOST_IN_TABLE = 20  # images that a terminal shows
ROOT = Path("logs")  # of the folders of runs


def takes(args: Sequence[str]) -> bool:
    """Returns whether a command line of `predict` is about images that it names, or asks for help.

    Args:
        args: the command line, the subcommand first.
    """
    if {"-h", "--help", "-", "--list"} & set(args) or any(arg.startswith("--list=") for arg in args):
        return True
    if len(args) > 1 and not args[1].startswith("-"):
        return True
    try:
        options, unknown = _parser().parse_known_args(args[1:])
    except ConfigurationError:
        return False
    return bool(options.images) and not any(each.startswith("-") for each in unknown)


def run(args: list[str]) -> None:
    """Runs the subcommand.

    Raises:
        DataError: at the end if a file could not be read, unless `--skip_unreadable` is given.
        UserError: for another mistake of the user.
    """
    options = _parser().parse_args(args[1:])
    _check(options)
    names = list(_names(options))
    warnings.filterwarnings("ignore")  # of Pillow, about metadata and large images
    from cifar_resnets.inference.paths import find  # imports NumPy, and the next one torch, for seconds

    if not (found := find(names)):
        raise DataError("predict: the list names no image")
    from cifar_resnets.cli.predict_files import predict_files

    problems = predict_files(options, found)
    if problems and not options.skip_unreadable:
        raise DataError(problems)
    if problems:
        print(problems, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("predict", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="file, folder or pattern; - reads paths from standard input")
    add("--ckpt_path", "--ckpt-path", type=local, metavar="FILE", help="checkpoint of a fit")
    add("--list", metavar="FILE", help="file of paths, one a line, or each ended by a zero byte")
    add("--top_k", "--top-k", type=positive, default=3, metavar="K", help="classes of each image; %(default)s")
    add("--json", action="store_true", help="print JSON instead of a table")
    where = f"folder for {TABLE} and {SHEET}; the next one of the run's name in {ROOT} if not given"
    add("--output", type=local, metavar="DIR", help=where)
    add("--heatmaps", type=local, metavar="DIR", help="draw where the network looked in each image, a PNG file each")
    add("--method", help="of the heatmaps; gradcam if not given")
    add("--layers", metavar="A,B", help="modules of the heatmaps; one is chosen if not given")
    add("--tta", action="store_true", help="average over the views of model.tta of the training")
    add(
        "--skip_unreadable", "--skip-unreadable", action="store_true", help="end with status 0 despite unreadable files"
    )
    add("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="%(choices)s; auto if not given")
    add("--devices", type=positive, default=1, metavar="N", help="that batches are divided among; %(default)s")
    of_training = "if not given, that of the training"
    add("--batch_size", "--batch-size", type=positive, metavar="N", help=f"images over all devices; {of_training}")
    add("--image_size", "--image-size", type=positive, metavar="N", help=f"pixels of a side; {of_training}")
    add("--workers", type=positive, metavar="N", help="that decode files; one for each core if not given")
    add("--trust", action="append", default=[], metavar="MODULE:NAME", help="function of yours that builds the network")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for contradictions, and where something would be overwritten."""
    if options.ckpt_path is None:
        raise ConfigurationError("predict: --ckpt_path is missing, give the checkpoint of a fit")
    for name in (TABLE, SHEET) if options.output else ():
        if os.path.lexists(options.output / name):
            raise ConfigurationError(f"--output: {options.output} holds {name} already, give another folder")
    for key in ("method", "layers"):
        if getattr(options, key) is not None and options.heatmaps is None:
            raise ConfigurationError(
                f"--{key}: there are no heatmaps without --heatmaps DIR, give it or leave this out"
            )
    for key in ("output", "heatmaps"):
        folder = getattr(options, key)
        if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
            raise OutputError(f"--{key}: {folder} is no folder")
    if options.heatmaps and os.path.isdir(options.heatmaps) and any(os.scandir(options.heatmaps)):
        raise ConfigurationError(f"--heatmaps: {options.heatmaps} is not empty, give another folder")


def _names(options: argparse.Namespace) -> Iterator[str]:
    """Yields the names of the command line, those of standard input in the place of `-`, then those of the list."""
    from cifar_resnets.inference.paths import names_in

    for name in options.images:
        if name == "-":
            yield from names_in(_standard_input())
        else:
            yield os.path.expanduser(name)
    if options.list is not None:
        try:
            yield from names_in(local(options.list).read_bytes())
        except OSError as error:
            raise DataError(f"--list: {options.list} cannot be read: {error.strerror}") from error


def _standard_input() -> bytes:
    """Returns what is read from standard input."""
    if sys.stdin is None:  # the caller has closed it
        raise DataError("predict -: standard input is closed, give a list by --list FILE")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise DataError(f"predict -: standard input cannot be read: {error.strerror}") from error

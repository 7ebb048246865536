"""`cifar-resnets export`: a checkpoint's network as ONNX, torch.export or safetensors, each proven; no Lightning.

Torch is imported when the arguments have been checked.
"""

import argparse
import importlib
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cifar_resnets.cli.parser import CommandParser, local, positive
from cifar_resnets.errors import ConfigurationError, OutputError, one_line
from cifar_resnets.results.run_folder import is_run
from cifar_resnets.support.text import printable

DESCRIPTION = """\
Write a checkpoint's network for use elsewhere. A graph takes images as a
camera gives them, of any size; resizing, mean and deviation and softmax are
inside. It is written only if it predicts the same as the checkpoint."""
EXAMPLES = """
  cifar-resnets export --ckpt_path best.ckpt --format onnx --dynamic_batch
  cifar-resnets export --ckpt_path best.ckpt --format torch_export --out frog.pt2
  cifar-resnets export --ckpt_path best.ckpt --format safetensors --license mit
"""
ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": "-timm"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def run(args: list[str]) -> None:
    """Runs the subcommand; raises UserError for a mistake of the user, and for an export that fails its proof."""
    options = _parser().parse_args(args[1:])
    options.out = options.out or options.checkpoint.with_name(options.checkpoint.stem + ENDINGS[options.format])
    _check(options)
    from cifar_resnets.export.files import Export, export  # imports torch for seconds

    for line in export(Export(**vars(options))):
        print(line)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("export", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    checkpoint, size = "checkpoint of a fit", "in pixels, if the checkpoint does not know it"
    add("--ckpt_path", "--ckpt-path", dest="checkpoint", type=local, required=True, metavar="FILE", help=checkpoint)
    add("--format", choices=ENDINGS, required=True, help="%(choices)s")
    add("--out", type=local, metavar="FILE", help="where to write; beside the checkpoint if not given")
    add("--dynamic_batch", "--dynamic-batch", action="store_true", help="take any number of images at once, not one")
    add("--raw", action="store_true", help="take normalised tensors and return logits, without the preprocessing")
    add("--data_root", "--data-root", metavar="DIR", help="where the validation images of the proof are")
    add("--num_images", "--num-images", type=positive, metavar="N", help="images of the proof; all if not given")
    add("--image_size", "--image-size", type=positive, metavar="N", help=size)
    licence = "of the weights, for the model card, such as mit"
    add("--license", dest="licence", type=_licence, default="", metavar="ID", help=licence)
    add("--run", type=local, metavar="RUN_DIR", help="of which the model card tells; the checkpoint's if not given")
    add("--trust", action="append", default=[], metavar="NAME", help="a network of your own, such as mine:net")
    return parser


def _licence(text: str) -> str:
    if re.fullmatch(r"[\w.+-]*", text) is None:  # it becomes a part of YAML and of Markdown
        raise argparse.ArgumentTypeError(f"{printable(text)} is not allowed, give an identifier such as mit")
    return text


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for what would end the export after minutes."""
    missing = [name for name in ONNX_PACKAGES if options.format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"--format onnx: {', '.join(missing)} is not installed: pip install .[export]")
    of_graphs, of_folders = ("raw", "dynamic_batch"), ("licence", "run")
    for name in of_graphs if options.format == "safetensors" else of_folders:
        if getattr(options, name):
            has = "holds weights and no graph" if options.format == "safetensors" else "has no model card"
            option = name.replace("licence", "license")
            raise ConfigurationError(f"--{option}: {options.format} {has}, leave it out")
    if options.run and not is_run(options.run):
        raise ConfigurationError(f"--run: there is no folder {options.run} of a run, such as logs/NAME/version_0")
    out: Path = options.out
    if os.path.lexists(out):
        raise ConfigurationError(f"--out: {out} exists, give another name or remove it")
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise OutputError(f"--out: {out.parent} is no folder that can be written")
    if problem := _broken(ONNX_PACKAGES if options.format == "onnx" else ()):
        raise ConfigurationError(f"--format onnx: {problem}: pip install --force-reinstall .[export]")


def _broken(packages: Sequence[str]) -> str:
    """Returns which package cannot be imported, and why; empty if all can be."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"{name} cannot be imported ({one_line(error)})"
    return ""

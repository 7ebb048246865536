"""`cifar-resnets export`: a checkpoint's network as ONNX, torch.export or safetensors, each proven; no Lightning."""

import argparse
import os
from importlib.metadata import version
from pathlib import Path

import torch

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.cli.parser import CommandParser, local
from cifar_resnets.errors import ConfigurationError, OutputError
from cifar_resnets.export import hub_folder
from cifar_resnets.export.model_card import Card, model_card
from cifar_resnets.export.programs import OPSET, check_onnx, export_onnx, export_program, onnx_runner, program_runner
from cifar_resnets.export.proof import TOLERANCE, Images, Proof, proof_images, prove
from cifar_resnets.inference.classifier import TrainedClassifier, load
from cifar_resnets.results.run_folder import Run, is_run, read_run
from cifar_resnets.support.atomic_file import replacing
from cifar_resnets.support.text import printable

EXAMPLES = """
  cifar-resnets export --ckpt_path best.ckpt --format onnx --dynamic_batch
  cifar-resnets export --ckpt_path best.ckpt --format torch_export --out frog.pt2
  cifar-resnets export --ckpt_path best.ckpt --format safetensors --license mit
"""
ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": "-timm"}


def run(args: list[str]) -> None:
    """Runs the subcommand; raises UserError for a mistake of the user, and for an export that fails its proof."""
    options = _parser().parse_args(args[1:])
    checkpoint: Path = options.ckpt_path
    out: Path = options.out or checkpoint.with_name(checkpoint.stem + ENDINGS[options.format])
    _check(options, out)
    classifier = load(checkpoint, device="cpu", trust=options.trust)
    images, what = proof_images(classifier, options.data_root, options.num_images)
    write = _write_folder if options.format == "safetensors" else _write_program
    proof, by = write(classifier, images, out, options)
    _show(proof, by, what)
    print(f"written: {out}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("export", "Write a checkpoint's network for use elsewhere; see docs/export.md.", EXAMPLES)
    add = parser.add_argument
    add("--ckpt_path", "--ckpt-path", type=local, required=True, metavar="FILE", help="checkpoint of a fit")
    add("--format", choices=ENDINGS, required=True, help="%(choices)s")
    add("--out", type=local, metavar="FILE", help="where to write; beside the checkpoint if not given")
    add("--dynamic_batch", "--dynamic-batch", action="store_true", help="take any number of images at once, not one")
    add("--raw", action="store_true", help="take normalised tensors and return logits, without the preprocessing")
    add("--data_root", "--data-root", metavar="DIR", help="where the validation images of the proof are")
    add("--num_images", "--num-images", type=_number, metavar="N", help="images of the proof; all if not given")
    add("--license", default="", metavar="ID", help="of the weights, for the model card, such as mit")
    add("--run", type=local, metavar="RUN_DIR", help="of which the model card tells; the checkpoint's if not given")
    add("--trust", action="append", default=[], metavar="NAME", help="a network of your own, such as mine:net")
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed, give 1 or more")
    return int(text)


def _check(options: argparse.Namespace, out: Path) -> None:
    """Raises UserError for what would end the export after minutes."""
    if options.format == "onnx":
        check_onnx()
    if options.format == "safetensors" and (options.raw or options.dynamic_batch):
        name = "raw" if options.raw else "dynamic_batch"
        raise ConfigurationError(f"--{name}: safetensors holds weights and no graph, leave it out")
    if options.format != "safetensors" and (options.license or options.run):
        name = "license" if options.license else "run"
        raise ConfigurationError(f"--{name}: {options.format} has no model card, leave it out")
    if os.path.lexists(out):
        raise ConfigurationError(f"--out: {out} exists, give another name or remove it")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise OutputError(f"--out: {out.parent} is no folder that can be written")


def _write_program(
    classifier: TrainedClassifier, images: Images, out: Path, options: argparse.Namespace
) -> tuple[Proof, str]:
    """Writes an ONNX model or a program once it is proven; returns the proof, and what has run it."""
    is_onnx, how = options.format == "onnx", (options.raw, options.dynamic_batch)
    content = (export_onnx if is_onnx else export_program)(classifier, *how)
    proof = prove((onnx_runner if is_onnx else program_runner)(content), classifier, images, *how)
    with replacing(out) as file:
        file.write(content)
    print(f"{'ONNX, opset ' + str(OPSET) if is_onnx else 'torch.export'}: {_interface(classifier, *how)}")
    return proof, f"onnxruntime {version('onnxruntime')}" if is_onnx else f"torch {torch.__version__}"


def _interface(classifier: TrainedClassifier, raw: bool, dynamic_batch: bool) -> str:
    num, size, classes = "n" if dynamic_batch else "1", classifier.image_size, len(classifier.class_names)
    if raw:
        return f"float32 ({num}, 3, {size}, {size}), normalised -> logits ({num}, {classes})"
    return f"uint8 ({num}, height, width, 3), RGB -> probabilities ({num}, {classes})"


def _write_folder(
    classifier: TrainedClassifier, images: Images, out: Path, options: argparse.Namespace
) -> tuple[Proof, str]:
    """Writes a folder as timm's hub has it once it is proven; returns the proof, and what has run it."""
    checkpoint: Path = options.ckpt_path
    with hub_folder.new_folder(out) as folder:
        hub_folder.write_weights(classifier, folder)
        proof = prove(hub_folder.folder_runner(folder), classifier, images, raw=True, dynamic_batch=True)
        card = model_card(classifier, _run_of(options), Card(checkpoint, options.license, out.name))
        (folder / hub_folder.CARD).write_text(card, encoding="utf-8")
    print(f"safetensors: {', '.join((hub_folder.WEIGHTS, hub_folder.CONFIG, hub_folder.CARD))}")
    return proof, f"timm {version('timm')}"


def _run_of(options: argparse.Namespace) -> Run | None:
    """Returns the run that a model card tells of; None if the checkpoint is not in a run's folder."""
    folder: Path = options.run or options.ckpt_path.absolute().parent.parent
    return read_run(folder, folder.name) if options.run or is_run(folder) else None


def _show(proof: Proof, by: str, what: str) -> None:
    print(f"proof: {by} predicts the same class for all {proof.num_images:,} {printable(what)}")
    print(f"       probabilities differ by at most {proof.difference:.1e}, allowed is {TOLERANCE:.0e}")
    if (found := proof.resized) is not None:
        pixels = f"{found.pixels:.2%} of the pixels".replace("%", " %")
        print(f"       resizing {found.num_images:,} images of other sizes: {pixels} differ from Pillow's, by at most")
        print(f"       {found.levels} of 255 grey levels, and so a probability by up to {found.difference:.1e}")

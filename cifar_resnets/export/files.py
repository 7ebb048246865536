"""Writes a checkpoint's network to a file or a folder, which appears only once it is proven."""

from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.export import hub_folder
from cifar_resnets.export.model_card import Card, model_card
from cifar_resnets.export.programs import OPSET, export_onnx, export_program, onnx_runner, program_runner
from cifar_resnets.export.proof import TOLERANCE, Images, Proof, proof_images, prove
from cifar_resnets.inference.classifier import TrainedClassifier, load
from cifar_resnets.results.run_folder import Run, is_run, read_run
from cifar_resnets.support.atomic_file import replacing
from cifar_resnets.support.text import printable


@dataclass(frozen=True)
class Export:
    """What is exported, and how.

    Args:
        checkpoint: of a fit.
        format: onnx, torch_export or safetensors.
        out: file or folder that is written.
        dynamic_batch: whether a graph takes any number of images.
        raw: whether it takes normalised tensors, and returns logits.
        image_size: height and width in pixels, where the checkpoint does not know them.
        trust: functions of other packages that may build the network.
        data_root: where the validation images are; where the checkpoint says if None.
        num_images: most images of the proof; all if None.
        licence: of the weights, for the model card.
        run: folder of the run that the model card tells of; that of the checkpoint if None.
    """

    checkpoint: Path
    format: str
    out: Path
    dynamic_batch: bool = False
    raw: bool = False
    image_size: int | None = None
    trust: Collection[str] = ()
    data_root: str | None = None
    num_images: int | None = None
    licence: str = ""
    run: Path | None = None


def export(wanted: Export) -> list[str]:
    """Exports a network, proves the result and writes it.

    Returns:
        Lines that say what was written and how it was proven.

    Raises:
        CheckpointError: when the checkpoint cannot be read, or the result is not its network; nothing is written then.
        ConfigurationError: when the network cannot be exported.
        OSError: when the result cannot be written.
    """
    classifier = load(wanted.checkpoint, "cpu", wanted.image_size, wanted.trust)
    if classifier.resize != "squash" and wanted.format != "safetensors" and not wanted.raw:
        how = f"data.resize {classifier.resize}, which the exported graph cannot do"
        raise ConfigurationError(f"export: the network was trained with {how}: give --raw, and resize images before")
    images, what = proof_images(classifier, wanted.data_root, wanted.num_images)
    write = _write_folder if wanted.format == "safetensors" else _write_program
    made, by, proof = write(classifier, images, wanted)
    return [made, *_lines(proof, by, what), f"written: {wanted.out}"]


def _write_program(classifier: TrainedClassifier, images: Images, wanted: Export) -> tuple[str, str, Proof]:
    """Returns what it is, what has run it, and how it compares."""
    is_onnx, how = wanted.format == "onnx", (wanted.raw, wanted.dynamic_batch)
    content = (export_onnx if is_onnx else export_program)(classifier, *how)
    proof = prove((onnx_runner if is_onnx else program_runner)(content), classifier, images, *how)
    with replacing(wanted.out) as file:
        file.write(content)
    kind = f"ONNX, opset {OPSET}" if is_onnx else "torch.export"
    by = f"onnxruntime {version('onnxruntime')}" if is_onnx else f"torch {torch.__version__}"
    return f"{kind}: {_interface(classifier, *how)}", by, proof


def _interface(classifier: TrainedClassifier, raw: bool, dynamic_batch: bool) -> str:
    num, size, classes = "n" if dynamic_batch else "1", classifier.image_size, len(classifier.class_names)
    if raw:
        return f"float32 ({num}, 3, {size}, {size}), normalised -> logits ({num}, {classes})"
    return f"uint8 ({num}, height, width, 3), RGB -> probabilities ({num}, {classes})"


def _write_folder(classifier: TrainedClassifier, images: Images, wanted: Export) -> tuple[str, str, Proof]:
    """Writes a folder as timm's hub has it; returns what it is, what has run it, and how it compares."""
    with hub_folder.new_folder(wanted.out) as folder:
        hub_folder.write_weights(classifier, folder)
        proof = prove(hub_folder.folder_runner(folder), classifier, images, raw=True, dynamic_batch=True)
        card = model_card(classifier, _run_of(wanted), Card(wanted.checkpoint, wanted.licence, wanted.out.name))
        (folder / hub_folder.CARD).write_text(card, encoding="utf-8")
    names = ", ".join((hub_folder.WEIGHTS, hub_folder.CONFIG, hub_folder.CARD))
    return f"safetensors: {names}", f"timm {version('timm')}", proof


def _run_of(wanted: Export) -> Run | None:
    """Returns the run that a model card tells of; None if the checkpoint is not in a run's folder."""
    folder = wanted.run or wanted.checkpoint.absolute().parent.parent
    return read_run(folder, folder.name) if wanted.run or is_run(folder) else None


def _lines(proof: Proof, by: str, what: str) -> list[str]:
    lines = [
        f"proof: {by} predicts the same class for all {proof.num_images:,} {printable(what)}",
        f"       probabilities differ by at most {proof.difference:.1e}, allowed is {TOLERANCE:.0e}",
    ]
    if (found := proof.resized) is not None:
        pixels = f"{found.pixels:.2%} of the pixels".replace("%", " %")
        lines += [
            f"       resizing {found.num_images:,} images of other sizes: unlike Pillow {pixels},",
            f"       by up to {found.levels} of 255 grey levels, and a probability by up to {found.difference:.1e}",
        ]
    return lines

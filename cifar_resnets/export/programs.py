"""Exports a classifier to one file: an ONNX model, or a program of torch.export; and runs such files again."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cifar_resnets import __version__
from cifar_resnets.errors import ConfigurationError, memory_error, one_line
from cifar_resnets.export.graph import ImagesToProbabilities, network_of
from cifar_resnets.inference.classifier import TrainedClassifier

Runner = Callable[[NDArray[Any]], NDArray[Any]]  # a batch of inputs to its outputs

OPSET = 18  # of ONNX
METADATA = "cifar_resnets.json"  # file with the metadata in a program of torch.export
EXAMPLE_SIZE = (40, 56)  # pixels of the images that a graph is traced with: no two sizes in it are equal by chance


def export_onnx(classifier: TrainedClassifier, raw: bool = False, dynamic_batch: bool = False) -> bytes:
    """Exports a classifier to ONNX, by torch's exporter that builds on torch.export.

    Args:
        classifier: the trained network with its preprocessing.
        raw: takes normalised images, float32 (n, 3, image_size, image_size), and returns logits.
        dynamic_batch: any number of images; one if false.

    Returns:
        The content of the file; its metadata are those of `metadata`.

    Raises:
        ConfigurationError: when the exporter cannot follow the network.
    """
    module, images, shapes = _inputs(classifier, raw, dynamic_batch)
    output = "logits" if raw else "probabilities"
    with _quiet("onnx"):
        program = torch.onnx.export(
            module,
            (images,),
            input_names=["images"],
            output_names=[output],
            opset_version=OPSET,
            dynamic_shapes=(shapes,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter's call stacks, with paths of this machine
    program.model.metadata_props.update(metadata(classifier, raw))
    content: bytes = program.model_proto.SerializeToString()
    return content


def export_program(classifier: TrainedClassifier, raw: bool = False, dynamic_batch: bool = False) -> bytes:
    """Exports a classifier by torch.export; arguments and result as of `export_onnx`.

    The metadata are the file `cifar_resnets.json` in it, see `extra_files` of `torch.export.load`.
    """
    module, images, shapes = _inputs(classifier, raw, dynamic_batch)
    file = io.BytesIO()
    with _quiet("torch_export"):
        program = torch.export.export(module, (images,), dynamic_shapes=(shapes,))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # with paths of this machine
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata(classifier, raw))})
    return file.getvalue()


def onnx_runner(content: bytes) -> Runner:
    """Returns a function that runs an ONNX model by onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return lambda images: np.asarray(session.run(None, {name: images})[0])


def program_runner(content: bytes) -> Runner:
    """Returns a function that runs a program of torch.export, on the CPU."""
    with _quiet("torch_export"):
        program: ExportedProgram = torch.export.load(io.BytesIO(content))
    module = program.module()

    def run(images: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            outputs: Tensor = module(torch.from_numpy(images))
        return outputs.numpy()

    return run


def metadata(classifier: TrainedClassifier, raw: bool = False) -> dict[str, str]:
    """Returns what a user of an exported file has to know, as text: names as JSON, statistics on the scale 0 to 1."""
    return {
        "class_names": json.dumps(list(classifier.class_names)),
        "network": str(classifier.hyper_parameters.get("network", type(classifier.network).__name__)),
        "input": f"float32 (n, 3, {classifier.image_size}, {classifier.image_size}), normalised RGB"
        if raw
        else "uint8 (n, height, width, 3), RGB",
        "output": "logits" if raw else "probabilities",
        "image_size": str(classifier.image_size),
        "mean": json.dumps(list(classifier.mean)),
        "std": json.dumps(list(classifier.std)),
        "cifar_resnets": __version__,
    }


def _inputs(classifier: TrainedClassifier, raw: bool, dynamic_batch: bool) -> tuple[nn.Module, Tensor, dict[int, Any]]:
    """Returns what is exported, an input to trace it with, and the dimensions of the input that may change."""
    num = 2 if dynamic_batch else 1  # one image would be taken for a constant
    shapes: dict[int, Any] = {0: Dim("batch")} if dynamic_batch else {}
    if raw:
        size = classifier.image_size
        return network_of(classifier), torch.zeros(num, 3, size, size), shapes
    images = torch.zeros(num, *EXAMPLE_SIZE, 3, dtype=torch.uint8)
    return ImagesToProbabilities(classifier).eval(), images, {**shapes, 1: Dim("height"), 2: Dim("width")}


@contextlib.contextmanager
def _quiet(kind: str) -> Iterator[None]:
    """Keeps what torch's exporters print and log from the user; raises ConfigurationError where they fail."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    except Exception as error:  # the exporters raise many kinds
        if memory_error(error):
            raise
        reason = one_line(error.__cause__ or error)[:300]
        raise ConfigurationError(f"--format {kind}: torch cannot export this network: {reason}") from error
    finally:
        logging.disable(level)

"""ONNX and torch.export, each read again by its own library."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from exports import MEAN, random_images, untrained
from networks import NAMES
from support import TINY_NETWORK

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.export.graph import ImagesToProbabilities
from cifar_resnets.export.programs import (
    METADATA,
    OPSET,
    Runner,
    export_onnx,
    export_program,
    metadata,
    onnx_runner,
    program_runner,
)
from cifar_resnets.inference.classifier import TrainedClassifier
from cifar_resnets.models.resnet import ARCHITECTURES

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
EVERY = "CIFAR_RESNETS_EVERY_NETWORK"
KINDS = {"onnx": (export_onnx, onnx_runner), "torch_export": (export_program, program_runner)}
# tiny networks of all kinds, which timm has for tests like this one
OF_TIMM = (
    *("test_byobnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_resnet", "test_vit", "test_vit2"),
    *("test_efficientnet_gn", "test_efficientnet_ln", "test_mambaout"),
)


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest) -> Iterator[tuple[str, TrainedClassifier, bytes]]:
    """A file of each kind that takes any number of images of any size."""
    classifier = untrained(**TINY_NETWORK)
    yield request.param, classifier, KINDS[request.param][0](classifier, False, True)


Exported = tuple[str, TrainedClassifier, bytes]


def test_any_number_of_images_of_any_size_is_taken(exported: Exported) -> None:
    kind, classifier, content = exported
    run, module = KINDS[kind][1](content), ImagesToProbabilities(classifier).eval()
    for shape in ((1, 32, 32), (3, 17, 90), (2, 200, 40), (1, 1, 1)):
        images = random_images(*shape)
        with torch.inference_mode():
            expected = module(torch.from_numpy(images)).numpy()
        found = run(images)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_metadata_are_in_the_file(exported: Exported) -> None:
    kind, classifier, content = exported
    if kind == "onnx":
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        found = {each.key: each.value for each in model.metadata_props}
        assert [each.version for each in model.opset_import if each.domain == ""] == [OPSET]
        (images,), (result,) = model.graph.input, model.graph.output
        assert (images.name, result.name) == ("images", "probabilities")
        assert [each.dim_param or each.dim_value for each in images.type.tensor_type.shape.dim] == [
            *("batch", "height", "width"),
            3,
        ]
    else:
        files = {METADATA: ""}
        torch.export.load(io.BytesIO(content), extra_files=files)
        found = json.loads(files[METADATA])
    assert found == metadata(classifier)
    assert json.loads(found["class_names"]) == list("abcde") and json.loads(found["mean"]) == MEAN


def test_nothing_of_this_machine_is_in_the_file(exported: Exported) -> None:
    _, _, content = exported
    assert str(Path(timm.__file__).parent).encode() not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_normalised_tensors_to_logits(capfd: pytest.CaptureFixture[str]) -> None:
    classifier = untrained(**TINY_NETWORK)
    run = program_runner(export_program(classifier, raw=True))
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        np.testing.assert_allclose(run(images.numpy()), classifier.network(images).numpy(), atol=1e-5)
    with pytest.raises(Exception, match="images"):
        run(np.zeros((2, 3, 32, 32), np.float32))
    assert metadata(classifier, raw=True)["output"] == "logits"
    assert capfd.readouterr() == ("", "")


class Undecided(torch.nn.Module):
    """Which layer runs depends on a value, which no graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.mean(dim=(2, 3))
        return self.fc(x) if x.sum() > 0 else x


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_network_that_cannot_be_exported_is_a_line(
    export: Callable[[TrainedClassifier], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="--format .*: torch cannot export this network: ") as error:
        export(TrainedClassifier(Undecided(), list("abcde"), 32, MEAN, MEAN))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert capfd.readouterr() == ("", "")


def agrees(classifier: TrainedClassifier, run: Runner) -> None:
    size = classifier.image_size
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = classifier.network(images)
    scale = expected.abs().max().item()
    np.testing.assert_allclose(run(images.numpy()) / scale, expected.numpy() / scale, atol=1e-5)


def kinds_of_networks() -> list[str]:
    """One network of each kind, for those that differ only in their depth."""
    kinds: dict[str, str] = {}
    for name in NAMES:
        arguments = {key: value for key, value in ARCHITECTURES.get(name, {"": name}).items() if key != "depths"}
        kinds.setdefault(str(arguments), name)
    return list(kinds.values())


@pytest.mark.parametrize("name", kinds_of_networks())
def test_all_kinds_of_networks_are_exported(name: str) -> None:
    depths = {"depths": [1] * len(ARCHITECTURES[name]["depths"])} if name in ARCHITECTURES else {}
    classifier = untrained(name, **depths)
    agrees(classifier, program_runner(export_program(classifier, raw=True, dynamic_batch=True)))


@pytest.mark.parametrize("name", OF_TIMM)
def test_networks_of_timm_are_exported(name: str) -> None:
    classifier = untrained(name, size=160)
    agrees(classifier, program_runner(export_program(classifier, raw=True, dynamic_batch=True)))


@pytest.mark.skipif(EVERY not in os.environ, reason=f"takes half an hour: {EVERY}=1 exports all networks to ONNX, too")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_exported_in_full(name: str, kind: str) -> None:
    classifier, (export, runner) = untrained(name), KINDS[kind]
    agrees(classifier, runner(export(classifier, True, True)))

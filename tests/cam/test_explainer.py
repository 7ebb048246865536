"""Explanations: the layers, the heatmaps, and the field of the hottest unit against the support of a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from finder_runs import changed, snapshot
from torch import nn

from cifar_resnets.cam import explainer as module
from cifar_resnets.cam.explainer import Explainer, hottest_fields
from cifar_resnets.cam.feature_maps import map_sizes
from cifar_resnets.cam.gradcam import heatmaps
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.evaluation.mistakes import Samples, classify
from cifar_resnets.receptive_field.effective import follow_layers

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (3, 10, 14)


def network() -> nn.Sequential:
    """Two convolutions and a pooling, with dropout: 10x14 pixels become 5x7 units and 3x4 units."""
    torch.manual_seed(0)
    body = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def images(num: int = 3) -> torch.Tensor:
    return torch.randn(num, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer, expected", [("0", (5, 7)), ("2", (5, 7)), ("4", (3, 4))])
def test_the_size_of_a_map(layer, expected):
    assert map_sizes(network(), images(), [layer]) == {layer: expected}


def test_the_size_of_a_map_of_tokens():
    model = timm.create_model("test_vit", img_size=48, num_classes=4)
    assert map_sizes(model, torch.randn(1, 3, 48, 48), ["blocks.1"]) == {"blocks.1": (3, 3)}


def prepared(model: nn.Module, *args: Any, size: tuple[int, ...] = SIZE, **settings: Any) -> Explainer:
    explainer = Explainer(*args, **settings)
    explainer.prepare(model, size)
    return explainer


def samples(num: int = 3) -> Samples:
    """Whose predicted and true classes are of all kinds."""
    logits = torch.nn.functional.one_hot(torch.arange(num) % 4, 4).float()
    return classify(images(num), torch.arange(num) % 3, logits, torch.arange(num))


def test_a_layer_is_chosen_or_taken_as_named():
    resnet = timm.create_model("cifar_resnet20", num_classes=4)
    assert prepared(resnet, size=(3, 32, 32)).note == "gradcam at layer3 (8x8)"
    assert prepared(network(), "layercam", ["4", "0"]).note == "layercam at 4 (3x4), 0 (5x7)"
    assert Explainer().note == ""


@pytest.mark.parametrize("layers", [["9"], ["0", "nothing"], ["8"], []])
def test_layers_without_a_map_are_refused(layers):
    with pytest.raises(ConfigurationError, match="^layers: [^\n]*$"):
        prepared(network(), layers=layers, receptive_field=True)


def flat() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(420, 4))


def test_a_network_without_maps_is_a_problem_and_no_error():
    assert prepared(flat()).problem.startswith("layers: Sequential has no feature map")
    explainer = Explainer()
    assert explainer.explain(flat(), samples()) == (None, None)
    assert "\n" not in explainer.problem and explainer.problem == prepared(flat()).problem and explainer.note == ""


def test_after_a_failure_nothing_is_tried_again(monkeypatch):
    calls = []

    def failing(*args: Any, **settings: Any) -> None:
        calls.append(args)
        raise torch.OutOfMemoryError("no memory\nat all")

    monkeypatch.setattr(module, "heatmaps", failing)
    explainer = prepared(network(), layers=["2"])
    assert [explainer.explain(network(), samples()) for _ in range(2)] == [(None, None)] * 2
    assert explainer.problem == "no memory at all" and len(calls) == 1


def test_heat_is_that_of_heatmaps_in_any_number_of_chunks():
    model, many = network(), samples(70)
    classes = torch.stack([many.predicted, many.labels], dim=1)
    found, fields = Explainer(layers=["2"]).explain(model, many)
    torch.testing.assert_close(torch.from_numpy(found), heatmaps(model, many.images, classes, layers=["2"]))
    assert found.dtype == np.float32 and found.max() > 0.9 and fields is None


def test_without_samples_there_is_nothing_to_explain():
    explainer = Explainer()
    assert explainer.explain(network(), samples().take([])) == (None, None) and explainer.problem == ""


def test_nothing_of_the_network_changes():
    model = network().train()
    model[1].eval()
    before = snapshot(model)
    with torch.inference_mode():
        prepared(model, layers=["4"], receptive_field=True).explain(model, samples())
    assert changed(before, snapshot(model)) == []


def support(model: nn.Sequential, layer: int, row: int, column: int) -> tuple[float, ...]:
    """First row, first column, last row and last column of the pixels that a unit depends on."""
    pixels = torch.rand(1, 3, 10, 14, requires_grad=True)
    body = nn.Sequential(*[each for each in model[: layer + 1] if isinstance(each, nn.Conv2d)])
    (gradient,) = torch.autograd.grad(body(pixels)[0, :, row, column].sum(), pixels)
    rows, columns = gradient.abs().sum(dim=(0, 1)).nonzero().T
    return tuple(float(x) for x in (rows.min(), columns.min(), rows.max(), columns.max()))


@pytest.mark.parametrize("layer, units", [(0, (5, 7)), (4, (3, 4))])
def test_the_field_of_the_hottest_unit_is_the_support_of_its_gradient(layer, units):
    model = network()
    places = [(row, column) for row in range(units[0]) for column in range(units[1])]
    maps = torch.zeros(len(places), 1, *units)
    for number, (row, column) in enumerate(places):
        maps[number, 0, row, column] = 1
    heat = F.interpolate(maps, size=(10, 14), mode="bilinear", align_corners=False)[:, 0].numpy()
    features = follow_layers(model, (3, 10, 14), [str(layer)])[str(layer)]
    found = hottest_fields(heat, features).clip(0, [9, 13, 9, 13])
    assert found.tolist() == [list(support(model, layer, *place)) for place in places]


def test_fields_are_only_there_if_they_are_asked_for():
    _, fields = Explainer(layers=["0", "4"], receptive_field=True).explain(network(), samples(2))
    assert fields is not None and fields.shape == (2, 4)
    assert (fields[:, 2] - fields[:, 0] + 1 == 7).all()  # of the last of the layers
    assert Explainer(layers=["0", "4"]).explain(network(), samples(2))[1] is None


class Rolling(nn.Module):
    """A layer whose receptive field cannot be followed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft2(x).real


def test_a_network_that_cannot_be_followed_is_refused_if_fields_are_wanted():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Rolling(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert prepared(model, layers=["2"]).problem == ""
    with pytest.raises(ConfigurationError, match="^[^\n]*$"):
        prepared(model, layers=["2"], receptive_field=True)

"""The layer that is looked at, and the field of its hottest unit against the support of a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from finder_runs import changed, snapshot
from torch import nn

from cifar_resnets.cam.explainer import Attention, hottest_fields, map_size, reclassified
from cifar_resnets.cam.gradcam import heatmaps
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.evaluation.mistakes import classified
from cifar_resnets.receptive_field.effective import follow_layers

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Sequential:
    """Two convolutions and a pooling, with dropout: 10x14 pixels become 5x7 units and 3x4 units."""
    torch.manual_seed(0)
    body = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def images(num: int = 3) -> torch.Tensor:
    return torch.randn(num, 3, 10, 14, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer, expected", [("0", (5, 7)), ("2", (5, 7)), ("4", (3, 4))])
def test_the_size_of_a_map(layer, expected):
    assert map_size(network(), images(), layer) == expected


def test_the_size_of_a_map_of_tokens():
    model = timm.create_model("test_vit", img_size=48, num_classes=4)
    assert map_size(model, torch.randn(1, 3, 48, 48), "blocks.1") == (3, 3)


def test_a_layer_is_chosen_or_taken_as_named():
    assert str(Attention(timm.create_model("cifar_resnet20", num_classes=4), torch.randn(1, 3, 32, 32))) == (
        "gradcam at layer3 (8x8)"
    )
    assert str(Attention(network(), images(), "layercam", ["0", "4"])) == "layercam at 0 (5x7), 4 (3x4)"


@pytest.mark.parametrize("layers", [["9"], ["0", "nothing"], ["8"], []])
def test_layers_without_a_map_are_refused(layers):
    with pytest.raises(ConfigurationError, match="^layers: [^\n]*$"):
        Attention(network(), images(), layers=layers, receptive_field=True)


def test_heat_is_that_of_heatmaps_in_any_number_of_chunks():
    model, many = network(), images(70)
    classes = torch.stack([torch.arange(70) % 4, torch.arange(70) % 3], dim=1)
    found = Attention(model, many, layers=["2"]).heat(model, many, classes)
    torch.testing.assert_close(torch.from_numpy(found), heatmaps(model, many, classes, layers=["2"]))
    assert found.dtype == np.float32 and found.max() > 0.9


def test_nothing_of_the_network_changes():
    model = network().train()
    model[1].eval()
    samples = classified(images(40), torch.zeros(40), torch.zeros(40, 4), torch.arange(40))
    before = snapshot(model)
    with torch.inference_mode():
        attention = Attention(model, images(), layers=["4"], receptive_field=True)
        attention.heat(model, images(), torch.zeros(3, 2, dtype=torch.long))
        reclassified(model, samples)
    assert changed(before, snapshot(model)) == []


def test_samples_are_classified_again_as_the_network_does_in_evaluation():
    model, many = network(), images(40)
    labels = torch.arange(40) % 4
    old = classified(many, labels, torch.zeros(40, 4), torch.arange(100, 140))
    found = reclassified(model.train(), old)
    with torch.no_grad():
        p = model.eval()(many).softmax(dim=1)
    torch.testing.assert_close(found.p_predicted, p.max(dim=1).values)
    torch.testing.assert_close(found.p_label, p.gather(1, labels[:, None])[:, 0])
    assert torch.equal(found.predicted, p.argmax(dim=1)) and torch.equal(found.index, old.index)
    assert torch.equal(found.images, many)


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
    heat = np.zeros((2, 10, 14), np.float32)
    fields = Attention(network(), images(), layers=["0", "4"], receptive_field=True).fields(heat)
    assert fields is not None and fields.shape == (2, 4)
    assert (fields[:, 2] - fields[:, 0] + 1 == 7).all()  # of the last of the layers
    assert Attention(network(), images(), layers=["0", "4"]).fields(heat) is None


class Rolling(nn.Module):
    """What no receptive field can be told of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft2(x).real


def test_a_network_that_cannot_be_followed_is_refused_if_fields_are_wanted():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Rolling(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert Attention(model, images(), layers=["2"]).features is None
    with pytest.raises(ConfigurationError, match="^[^\n]*$"):
        Attention(model, images(), layers=["2"], receptive_field=True)

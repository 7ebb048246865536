"""`verify` agrees with theory in every layer of many networks, and does not where the theory is made wrong."""

import itertools
import math

import pytest
import timm
import torchvision
from oracle import Fn, seen_pixels
from timm.models.inception_v3 import InceptionA
from timm.models.vgg import VGG
from torch import nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.shortcuts import SHORTCUTS
from cifar_resnets.receptive_field import measured as measured_field
from cifar_resnets.receptive_field.fields import Axis
from cifar_resnets.receptive_field.measured import Measurement, verify

SMALL = {"depths": (1, 1, 1), "widths": (4, 8, 16), "stem_width": 4}
FOUR = {"depths": (1, 1, 1, 1), "widths": (4, 4, 4, 4), "stem_width": 4}
FAMILIES = {
    "cifar_resnet20": {},
    "cifar_plain20": {},
    "cifar_resnet56_depthwise": {"depths": (2, 2, 2)},
    "cifar_resnet50": FOUR,
    "cifar_resnet34_imagenet_stem": FOUR,
    "cifar_preact_resnet110": SMALL,
    "cifar_preact_resnet164": SMALL,
    "cifar_wide_resnet16_8": {"widths": (4, 8, 16)},
    "cifar_custom_resnet": {},
    "cifar_speednet": {},
}
ONE = {"layers": (1, 1, 1, 1)}
# name in timm: keywords, and the size of its images
OTHERS = {
    "densenet121": ({"block_config": (2, 2, 2, 2)}, 64),
    "mobilenetv3_small_050": ({}, 64),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, 64),
    "resnext50_32x4d": (ONE, 64),
    "regnetx_002": ({}, 64),
    "resnet18": ({"output_stride": 8, **ONE}, 64),
    "resnetblur50": (ONE, 64),
    "seresnet18": (ONE, 64),
    "hrnet_w18_small": ({}, 64),
    "ghostnet_050": ({}, 64),
    "vit_tiny_patch16_224": ({"depth": 2, "embed_dim": 24}, 224),
}


def check(measurements, at_least):
    wrong = [measurement for measurement in measurements.values() if not measurement.agrees]
    assert wrong == []
    assert len(measurements) >= at_least


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_agrees_in_every_layer(name):
    network = timm.create_model(name, **FAMILIES[name])
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    check(verify(network, 32), convolutions)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_every_shortcut_agrees_in_every_layer(shortcut):
    network = timm.create_model("cifar_resnet20", shortcut=shortcut, **SMALL)
    check(verify(network, (32, 40)), 7)


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_timm_agree(name):
    keywords, size = OTHERS[name]
    check(verify(timm.create_model(name, **keywords), size), 9)


def test_shufflenet_of_torchvision_agrees():
    network = torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 16, 16, 32], num_classes=3)
    check(verify(network, 64), 20)


def test_vgg_agrees():
    check(verify(VGG([4, 4, "M", 8, "M", 8, 8, "M"], num_classes=3, mlp_ratio=0.01), 64), 9)


def test_inception_of_branches_agrees():
    """An Inception block: the whole network takes minutes, because it wants images of 75 pixels and more."""
    block = InceptionA(8, pool_features=4)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), block, nn.MaxPool2d(3, 2), nn.Conv2d(228, 4, (1, 7), padding=(0, 3)))
    check(verify(network, 64), 10)


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_measurement_is_what_brute_force_sees(kernel):
    """Against changed pixels, with max pooling as it is."""
    network = nn.Sequential(nn.Conv2d(4, 4, kernel, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True))
    measured = verify(network, (4, 48, 48))["2"]
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    (first, last), _ = measured.measured
    seen = seen_pixels(network, (48, 24), 0)
    assert any(pixels.nonzero().flatten().tolist() == list(range(first, last + 1)) for pixels in seen)


def test_a_planted_error_is_found(monkeypatch):
    window = Axis.window

    def off_by_one(axis, size, kernel, stride=1, padding=0, dilation=1):
        return window(axis, size, kernel, stride, padding + (kernel > 1), dilation)

    network = timm.create_model("cifar_resnet20", **SMALL)
    check(verify(network, 32), 7)
    monkeypatch.setattr(Axis, "window", off_by_one)
    assert not all(measurement.agrees for measurement in verify(network, 32).values())


def test_a_planted_error_of_width_is_found(monkeypatch):
    window = Axis.window
    monkeypatch.setattr(
        Axis, "window", lambda self, size, kernel, *rest, **more: window(self, size, max(1, kernel - 1), *rest, **more)
    )
    wrong = [each for each in verify(timm.create_model("cifar_resnet20", **SMALL)).values() if not each.agrees]
    assert len(wrong) > 3


def test_agreement_is_of_both_ends_and_both_axes():
    theory = ((-2.0, 5.0), (3.0, 9.0))
    assert Measurement("", theory, ((0, 5), (3, 9)), (20, 20)).agrees
    assert Measurement("", theory, ((0, 5), (3, 9)), (20, 20)).field == (6, 7)
    for measured in (((0, 4), (3, 9)), ((1, 5), (3, 9)), ((0, 5), (3, 8)), ((0, 5), (4, 9))):
        assert not Measurement("", theory, measured, (20, 20)).agrees
    infinite = (-math.inf, math.inf)
    assert Measurement("", (infinite, infinite), ((0, 19), (0, 9)), (20, 10)).agrees


def test_strides_may_pass_over_the_image_s_end():
    beyond = ((-3, 30.0), (-3, 30.0))
    assert Measurement("", beyond, ((0, 18), (0, 19)), (20, 20), left_over=(1, 0)).agrees
    assert not Measurement("", beyond, ((0, 17), (0, 19)), (20, 20), left_over=(1, 0)).agrees
    assert not Measurement("", beyond, ((1, 19), (0, 19)), (20, 20), left_over=(1, 0)).agrees
    assert not Measurement("", ((0, 9), (0, 9)), ((0, 8), (0, 9)), (20, 20), left_over=(1, 1)).agrees
    # the last of 36 pixels is no longer seen after a stride of 2 without padding
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1))
    check(verify(network, 20), 2)


def test_deep_networks_are_measured_on_so_many_layers(monkeypatch):
    monkeypatch.setattr(measured_field, "BUDGET", 1)
    monkeypatch.setattr(measured_field, "MIN_MEASURED", 12)
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(40)))
    measurements = verify(network, 16)
    check(measurements, 12)
    assert len(measurements) == 12
    assert {"0", "39"} <= set(measurements)


def test_evenly_spaced_layers():
    names = [str(index) for index in range(1201)]
    spread = measured_field._spread(names, 200)
    assert len(set(spread)) == 200
    assert (spread[0], spread[-1]) == ("0", "1200")
    gaps = {int(after) - int(before) for before, after in itertools.pairwise(spread)}
    assert gaps == {6, 7}
    assert measured_field._spread(names[:200], 200) == names[:200]


def test_a_layer_that_is_called_twice_is_measured_the_last_time():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(conv, nn.Sequential(conv))
    assert verify(network, 16)["0"].field == (5, 5)


def test_images_that_a_network_does_not_take():
    network = Fn(lambda m, x: m.conv(x), conv=nn.Conv2d(5, 4, 3))
    with pytest.raises(ConfigurationError, match="input_size: at conv, the network does not take images"):
        verify(network, 16)

"""`summarize` against published tables, PyTorch's own counts, and figures worked out by hand."""

import csv
import math
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from networks import count_parameters
from oracle import Fn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.theory import summarize
from cifar_resnets.receptive_field.tracer import trace

REFERENCE = Path(__file__).parents[1] / "reference"


def read(name):
    with (REFERENCE / name).open() as file:
        return list(csv.DictReader(file))


def without_weights(make, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs)


# Published tables.


@pytest.mark.long
@pytest.mark.parametrize("row", read("architectures.csv"), ids=lambda row: row["name"])
def test_architectures(row):
    name, *option = row["name"].split(" option ")
    keywords = {"shortcut": option[0]} if option else {}
    num_classes = int(row["num_classes"])
    summary = summarize(without_weights(timm.create_model, name, num_classes=num_classes, **keywords), 32)
    assert summary.parameters == sum(layer.parameters for layer in summary.layers) == int(row["parameters"])
    pool = [layer for layer in summary.layers if layer.type in ("AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "MaxPool2d")][
        -1
    ]
    assert pool.receptive_field_in == (int(row["receptive_field_before_pool"]),) * 2
    if row["receptive_field_after_pool"]:
        assert pool.receptive_field_out == (int(row["receptive_field_after_pool"]),) * 2
    assert summary.layers[-1].out_channels == num_classes
    assert summary.notes == []


def both(value):
    return (int(value), int(value))


def test_the_published_table_of_resnet56_depthwise_row_by_row():
    layers = summarize(timm.create_model("cifar_resnet56_depthwise"), 32).layers
    types = {"Conv2d": "Conv2d", "BatchNorm2d": "BatchNorm2d", "Avg Pool": "AdaptiveAvgPool2d", "linear": "Linear"}
    rows = [row for row in read("resnet56_depthwise_receptive_field.csv") if row["layer"].split("-")[0] in types]
    found = [layer for layer in layers if layer.type in types.values()]
    pairs = ("kernel_size", "padding", "stride", "image_size_in", "image_size_out", "jump_in", "jump_out")
    compared = 0
    for row, layer in zip(rows, found, strict=True):
        kind = row["layer"].split("-")[0]
        assert layer.type == types[kind]
        assert layer.out_channels == int(row["out_channels"])
        if kind != "Avg Pool":
            assert layer.parameters == int(row["parameters"])
        if kind in ("Conv2d", "Avg Pool"):
            names = pairs if kind == "Conv2d" else ("kernel_size", "padding", "stride", "jump_in", "image_size_out")
            for name in (*names, "receptive_field_in", "receptive_field_out"):
                assert getattr(layer, name) == both(row[name]), (row["layer"], name)
            assert layer.in_channels == int(row["in_channels"])
            compared += 1
    assert compared == 58  # 55 convolutions, 2 more by separation, the pool


@pytest.mark.parametrize("name", ["resnet18", "custom_resnet"])
def test_published_shapes_and_parameters_in_order(name):
    skipped = ("BasicBlock", "ResNet", "Sequential")  # modules that run no operation of their own
    rows = [row for row in read(f"{name}_layers.csv") if row["layer"].split("-")[0] not in skipped]
    kinds = {row["layer"].split("-")[0] for row in rows}
    layers = [each for each in summarize(timm.create_model(f"cifar_{name}"), 32).layers if each.parameters]
    rows = [row for row in rows if int(row["parameters"])]
    assert {"Conv2d", "BatchNorm2d", "Linear"} <= kinds
    for row, layer in zip(rows, layers, strict=True):
        sizes = [] if layer.type == "Linear" else [str(size) for size in layer.image_size_out]
        assert row["layer"].split("-")[0] == layer.type
        assert row["output_shape"].split() == ["N", str(layer.out_channels), *sizes]
        assert layer.parameters == int(row["parameters"])


# Source: Araujo, Norris and Sim (2019), "Computing receptive fields of convolutional neural networks", Distill, table
# in section 4. Theirs are the networks of TF-Slim; the ones here have the same kernels and strides in the same places.
PUBLISHED = {
    "alexnet_v2": (lambda: torchvision.models.alexnet(), "features", 224, 195),
    "vgg_16": (lambda: torchvision.models.vgg16(), "features", 224, 212),
    "mobilenet_v1": (lambda: timm.create_model("mobilenetv1_100"), "blocks", 224, 315),
    "inception_v3": (lambda: timm.create_model("inception_v3"), "Mixed_7c", 299, 1311),
    "inception_v4": (lambda: timm.create_model("inception_v4"), "features", 299, 2071),
    "inception_resnet_v2": (lambda: timm.create_model("inception_resnet_v2"), "conv2d_7b", 299, 3039),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_receptive_fields(name):
    make, layer, size, field = PUBLISHED[name]
    tracer, _ = trace(without_weights(make), size)
    axes = dict(tracer.outputs)[layer].axes
    assert [axes[name].receptive_field for name in ("height", "width")] == [field, field]


@pytest.mark.parametrize(("depths", "name"), [((3, 4, 6, 3), "resnet50"), ((3, 4, 23, 3), "resnet101")])
def test_resnets_with_the_stride_on_the_3x3(depths, name):
    """By the recurrence: torchvision strides in a stage's first block, TF-Slim (483 and 1027) in its last."""
    field, jump = 1 + 6, 2
    field, jump = field + 2 * jump, 4
    for stage, depth in enumerate(depths):
        field += 2 * jump  # the first block's 3x3, before its stride counts
        jump *= 2 if stage else 1
        field += 2 * jump * (depth - 1)
    network = without_weights(getattr(torchvision.models, name))
    layers = [layer for layer in summarize(network, 224).layers if layer.layer.startswith("layer4")]
    assert layers[-1].receptive_field_out == (field, field)
    assert field == {"resnet50": 427, "resnet101": 971}[name]


# Counts.


def transposed_network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, groups=1), nn.ConvTranspose2d(8, 4, 4, 2, groups=2), nn.Conv2d(4, 4, 3))


COUNTED = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(),
    "shufflenet_v2": lambda: torchvision.models.shufflenet_v2_x0_5(),
    "vgg11": lambda: torchvision.models.vgg11(),
    "densenet": lambda: timm.create_model("densenet121", block_config=(2, 2, 2, 2)),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", depth=2),
    "mixer": lambda: timm.create_model("mixer_s32_224"),
    "convnext": lambda: timm.create_model("convnext_atto"),
    "transposed": transposed_network,
}


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_adds_against_the_counter_of_pytorch(name):
    network = without_weights(COUNTED[name]).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 224, 224, device="meta"))
    summary = summarize(network, 224)
    assert summary.multiply_adds * 2 == counter.get_total_flops()
    assert summary.parameters == count_parameters(network)


def test_a_module_called_twice_is_counted_once():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    summary = summarize(nn.Sequential(conv, nn.ReLU(), conv), 16)
    rows = [layer for layer in summary.layers if layer.type == "Conv2d"]
    assert [row.parameters for row in rows] == [84, 0]
    assert [row.receptive_field_out for row in rows] == [(3, 3), (5, 5)]
    assert summary.parameters == 84
    assert summary.notes == []


def test_unused_parameters_are_noted():
    network = Fn(lambda m, x: m.used(x), used=nn.Conv2d(3, 4, 1), unused=nn.Linear(10, 10))
    summary = summarize(network, 16)
    assert summary.parameters == 126
    assert summary.notes == ["110 parameters stand in no row: not called, or only looked up"]


# The path that sees least.


def before_pool(name, **keywords):
    layers = summarize(timm.create_model(name, **keywords), 32).layers
    return next(layer for layer in layers if layer.type == "AdaptiveAvgPool2d")


def test_the_narrowest_path_of_a_residual_network_is_its_shortcuts():
    """After the first convolution identities: strided slices see no more, and neither do 1x1 projections."""
    for keywords in ({}, {"shortcut": "B"}, {"shortcut": "C"}):
        assert before_pool("cifar_resnet20", **keywords).min_receptive_field_in == (3, 3)
    assert before_pool("cifar_resnet34_imagenet_stem").min_receptive_field_in == (7 + 2 * 2, 7 + 2 * 2)


def test_the_narrowest_path_of_a_plain_network_is_its_only_one():
    pool = before_pool("cifar_plain20")
    assert pool.min_receptive_field_in == pool.receptive_field_in == (81, 81)


def test_the_narrowest_path_of_a_densenet_goes_through_its_transitions():
    """Stem 7x7 and pool 3x3, both of stride 2: 11 pixels, jump 4; then each average pool of 2 adds its jump."""
    network = without_weights(timm.create_model, "densenet121", block_config=(2, 2, 2, 2))
    pool = next(layer for layer in summarize(network, 224).layers if layer.type == "AdaptiveAvgPool2d")
    assert pool.min_receptive_field_in == (11 + 4 + 8 + 16,) * 2


# Images and networks of all kinds.


def test_asymmetric_kernels_and_sizes():
    network = nn.Sequential(nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.MaxPool2d((1, 4), (1, 2)), nn.ReLU())
    conv, pool, relu = summarize(network, (32, 48)).layers
    assert (conv.kernel_size, conv.receptive_field_out, conv.image_size_out) == ((3, 1), (3, 1), (32, 48))
    assert (pool.receptive_field_out, pool.jump_out, pool.image_size_out) == ((3, 4), (1, 2), (32, 23))
    assert (relu.receptive_field_in, relu.receptive_field_out) == ((3, 4), (3, 4))
    assert conv.start == (0.5, 0.5)
    assert pool.start == (0.5, 2)


def test_input_sizes():
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1), in_chans=1)
    assert summarize(network, 32).input_size == (1, 32, 32)
    assert summarize(network, (32, 48)).input_size == (1, 32, 48)
    assert summarize(network, (1, 40, 32)).input_size == (1, 40, 32)
    for wrong in (0, (), (1, 2, 3, 4), (-1, 32)):
        with pytest.raises(ConfigurationError, match="input_size: .* is not allowed"):
            summarize(network, wrong)


def test_images_that_a_network_does_not_take():
    with pytest.raises(
        ConfigurationError, match=r"input_size: at 1, the network does not take images of 4x4 pixels and 3"
    ):
        summarize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 5)), 4)


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double", "channels_last", "frozen", "training", "meta"])
def test_the_kind_of_a_networks_tensors_does_not_matter(kind):
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1))
    expected = summarize(network, 32)
    network = {
        **{name: getattr(network, name) for name in ("half", "bfloat16", "double")},
        "channels_last": lambda: network.to(memory_format=torch.channels_last),
        "frozen": lambda: network.requires_grad_(False),
        "training": network.train,
        "meta": lambda: network.to("meta"),
    }[kind]()
    assert summarize(network, 32) == expected


def test_a_network_that_branches_by_what_it_sees_is_followed_on_real_tensors():
    def run(m, x):
        x = m.conv(x)
        return m.conv(x) if x.sum() > -1e9 else x

    summary = summarize(Fn(run, conv=nn.Conv2d(3, 3, 3)), 16)
    assert summary.layers[-1].receptive_field_out == (5, 5)
    real, zeros = summary.notes
    assert real.startswith("followed on real tensors, because it cannot run without: ")
    assert zeros == "Fn: goes on as for an image of zeros"


def test_a_layer_without_batch_statistics_says_so():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    [note] = summarize(network, 16).notes
    assert note == "1: its statistics, taken over all of the image, are not counted"


def test_what_sees_the_whole_image():
    network = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24)
    layers = summarize(network, 224).layers
    assert layers[0].receptive_field_out == (16, 16)
    assert layers[-1].receptive_field_out == (math.inf, math.inf)
    assert layers[-1].exceeds_image
    assert not layers[0].exceeds_image

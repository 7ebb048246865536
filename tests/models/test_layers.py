"""Tests of the shared layers, and of what every registered network must do."""

import copy
import csv
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from cifar_resnets.models.layers import TimmNetwork, ZeroPadShortcut, conv3x3, init_he, make_shortcut

REFERENCE = Path(__file__).parents[1] / "reference"
NAMES = timm.list_models("cifar_*")
# ResNet-1202 is like ResNet-20 with more blocks and takes seconds to train or copy: forward only.
QUICK_NAMES = [name for name in NAMES if name != "cifar_resnet1202"]


@functools.cache
def shared_network(name: str) -> TimmNetwork:
    """Return a network whose weights no test may change."""
    return timm.create_model(name)


def read_table(name: str) -> list[dict[str, str]]:
    with open(REFERENCE / name, newline="") as file:
        return list(csv.DictReader(file))


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def pad_with_numpy(x: np.ndarray, out_channels: int, stride: int) -> np.ndarray:
    n, channels, height, width = x.shape
    before = (out_channels - channels) // 2
    rows, columns = range(0, height, stride), range(0, width, stride)
    padded = np.zeros((n, out_channels, len(rows), len(columns)), x.dtype)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            padded[:, before : before + channels, i, j] = x[:, :, row, column]
    return padded


@pytest.mark.parametrize("in_channels, out_channels, stride", [(16, 32, 2), (3, 8, 2), (4, 4, 2), (2, 6, 1), (1, 2, 3)])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_option_a_matches_numpy(in_channels, out_channels, stride, size):
    x = torch.randn(2, in_channels, *size)
    expected = pad_with_numpy(x.numpy(), out_channels, stride)
    np.testing.assert_array_equal(ZeroPadShortcut(in_channels, out_channels, stride)(x).numpy(), expected)


def test_option_a_has_no_parameters_and_passes_gradients_only_where_it_looked():
    shortcut = ZeroPadShortcut(2, 4, 2)
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    shortcut(x).sum().backward()
    assert not list(shortcut.parameters())
    expected = torch.zeros(1, 2, 4, 4)
    expected[:, :, ::2, ::2] = 1
    assert torch.equal(x.grad, expected)


def test_option_a_refuses_to_drop_channels():
    with pytest.raises(ValueError, match="from 32 to 16.*shortcut='B'"):
        ZeroPadShortcut(32, 16, 2)


@pytest.mark.parametrize(
    "option, where_equal, where_changed",
    [
        ("A", nn.Identity, ZeroPadShortcut),
        ("B", nn.Identity, nn.Sequential),
        ("C", nn.Sequential, nn.Sequential),
    ],
)
def test_shortcut_options(option, where_equal, where_changed):
    assert type(make_shortcut(option, 16, 16, stride=1)) is where_equal
    assert type(make_shortcut(option, 16, 32, stride=1)) is where_changed
    assert type(make_shortcut(option, 16, 16, stride=2)) is where_changed


@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize("size", [8, 9, 1])
def test_shortcut_fits_the_convolution_beside_it(option, size):
    x = torch.randn(2, 4, size, size)
    assert make_shortcut(option, 4, 8, stride=2)(x).shape == conv3x3(4, 8, stride=2)(x).shape


@pytest.mark.parametrize("option", ["D", "a", "", None])
def test_unknown_shortcut_says_what_is_allowed(option):
    with pytest.raises(ValueError) as error:
        make_shortcut(option, 16, 16, stride=1)
    message = str(error.value)
    assert f"shortcut={option!r}" in message
    assert all(repr(allowed) in message for allowed in "ABC")


@pytest.mark.parametrize("kernel_size", [3, 1])
def test_init_he_matches_the_formula(kernel_size):
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 256, kernel_size)
    init_he(conv)
    expected = math.sqrt(2 / (kernel_size**2 * 256))
    # The estimate's own relative error is 1 / sqrt(2 * weights): 0.4 % for the smaller of these.
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(conv.weight.mean().item()) < 0.02 * expected


def test_init_he_resets_batch_norm_and_leaves_linear_alone():
    norm, linear = nn.BatchNorm2d(4), nn.Linear(4, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    before = linear.weight.clone()
    norm.apply(init_he)
    linear.apply(init_he)
    assert torch.equal(norm.weight, torch.ones(4))
    assert torch.equal(norm.bias, torch.zeros(4))
    assert torch.equal(linear.weight, before)


def test_every_network_has_a_row_in_the_reference():
    assert "cifar_resnet20" in NAMES
    assert set(NAMES) <= {row["name"] for row in read_table("architectures.csv")}


REGISTERED = [row for row in read_table("architectures.csv") if row["name"].partition(" ")[0] in NAMES]


@pytest.mark.parametrize("row", REGISTERED, ids=lambda row: row["name"])
def test_parameter_counts(row):
    name, _, option = row["name"].partition(" option ")
    network = timm.create_model(name, shortcut=option) if option else shared_network(name)
    assert network.num_classes == int(row["num_classes"])
    assert count_parameters(network) == int(row["parameters"])


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_custom_resnet"])
def test_layers_match_the_table(name):
    expected = [
        (row["layer"].split("-")[0], row["output_shape"], int(row["parameters"]))
        for row in read_table(f"{name.removeprefix('cifar_')}_layers.csv")
    ]
    kinds = {kind for kind, _, _ in expected}
    network = copy.deepcopy(shared_network(name)).eval()
    layers = []

    def note(module, inputs, output):
        kind = {"ResidualNetwork": "ResNet", "AdaptiveMaxPool2d": "MaxPool2d"}.get(
            type(module).__name__, type(module).__name__
        )
        if kind in kinds:
            shape = " ".join(["N", *map(str, output.shape[1:])])
            layers.append((kind, shape, sum(p.numel() for p in module.parameters(recurse=False))))

    for module in network.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    assert layers == expected


@pytest.mark.parametrize("name, size", [(name, (8, 8)) for name in NAMES] + [(name, (37, 53)) for name in QUICK_NAMES])
def test_image_sizes(name, size):
    # In training mode, because running statistics that were never updated let deep networks overflow.
    network = shared_network(name).train()
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_timm_finds_what_it_is_told_about(name):
    network = shared_network(name)
    assert network.in_chans == 3
    assert network.num_features == network.head_hidden_size == network.feature_info[-1]["num_chs"]
    assert network.pretrained_cfg["num_classes"] == 10
    assert network.pretrained_cfg["input_size"] == (3, 32, 32)
    assert network.get_submodule(network.pretrained_cfg["first_conv"]).in_channels == 3
    assert network.get_submodule(network.pretrained_cfg["classifier"]) is network.get_classifier()


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_raises(name):
    with pytest.raises(ValueError, match=f"no pretrained weights for {name}"):
        timm.create_model(name, pretrained=True)


def test_pretrained_loads_a_file_that_the_caller_names(tmp_path):
    source = shared_network("cifar_resnet20")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    network = timm.create_model("cifar_resnet20", pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay)
    assert torch.equal(network.layer3[2].conv2.weight, source.layer3[2].conv2.weight)
    assert network.fc.out_features == 7


@pytest.mark.parametrize("name", NAMES)
def test_misspelt_keyword_raises(name):
    with pytest.raises(TypeError, match="num_clases"):
        timm.create_model(name, num_clases=7)


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_classes_and_channels(name):
    network = timm.create_model(name, num_classes=7, in_chans=1).eval()
    images = torch.randn(2, 1, 16, 16)
    assert (network.num_classes, network.in_chans) == (7, 1)
    with torch.no_grad():
        features = network.forward_features(images)
        pooled = network.forward_head(features, pre_logits=True)
        logits = network(images)
    assert features.shape[:2] == (2, network.num_features)
    assert pooled.shape == (2, network.num_features)
    assert logits.shape == (2, 7)
    assert torch.equal(logits, network.get_classifier()(pooled))


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_reset_classifier(name):
    network = timm.create_model(name, num_classes=0).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.double)
    with torch.no_grad():
        pooled = network(images)
        assert isinstance(network.get_classifier(), nn.Identity)
        assert pooled.shape == (2, network.num_features)
        network.reset_classifier(5)
        assert network.num_classes == 5
        assert torch.equal(network(images), network.fc(pooled))
    assert (network.fc.bias is None) == (name == "cifar_custom_resnet")
    with pytest.raises(ValueError, match="num_classes=-1"):
        network.reset_classifier(-1)


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_features_only_returns_the_stages(name):
    network = timm.create_model(name, features_only=True).eval()
    whole = timm.create_model(name, num_classes=0).eval()
    whole.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features = network(images)
        last = whole.forward_features(images)
    assert [f.shape[1] for f in features] == network.feature_info.channels()
    assert [32 // f.shape[2] for f in features] == network.feature_info.reduction()
    assert len(features) == len(whole.feature_info)
    assert torch.equal(features[-1], last)
    assert timm.create_model(name, features_only=True, out_indices=(1,)).feature_info.module_name() == ["layer2"]


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_custom_resnet"])
def test_drop_rate(name):
    network = timm.create_model(name, drop_rate=0.5)
    features = torch.ones(8, network.num_features, 4, 4)
    dropped = network.train().forward_head(features, pre_logits=True)
    assert network.drop_rate == 0.5
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(network.eval().forward_head(features, pre_logits=True), torch.ones_like(dropped))
    with pytest.raises(ValueError, match="dropout probability"):
        timm.create_model(name, drop_rate=2.0)


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_weights_start_as_he_has_them(name):
    torch.manual_seed(0)
    for module in timm.create_model(name).modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            # Six times the estimate's own error, because hundreds of convolutions are tried.
            tolerance = 6 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=tolerance)
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    network = timm.create_model(name).train()
    nn.functional.cross_entropy(network(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_channels_last_gives_the_same_logits(name):
    # Double precision: what differs beyond rounding is an error, however deep the network.
    network = copy.deepcopy(shared_network(name)).double().train()
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    with torch.no_grad():
        expected = network(images)
        network.to(memory_format=torch.channels_last)
        features = network.forward_features(images.to(memory_format=torch.channels_last))
        logits = network.forward_head(features)
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_custom_resnet"])
def test_export_for_any_batch_size(name):
    network = copy.deepcopy(shared_network(name)).eval()
    example = torch.randn(2, 3, 32, 32)
    # strict=True traces with torch.compile's own front end, so this holds for both.
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=True)
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), network(images))

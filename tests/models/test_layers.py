"""Tests of the shared layers, and of what every registered network must do."""

import copy
import csv
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import NAMES, QUICK_NAMES, SLOW_NAMES, count_parameters, randomise, shared_network
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.layers import CONVOLUTIONS, SeparableConv, init_he, make_conv3x3

REFERENCE = Path(__file__).parents[1] / "reference"
# One of each topology and each kind of block, convolution, shortcut and stem, with few blocks.
THREE, FOUR = {"depths": (1, 2, 1)}, {"depths": (1, 2, 1, 1)}
FAMILIES = {
    "cifar_resnet20": THREE,
    "cifar_plain20": THREE,
    "cifar_resnet56_depthwise": THREE,
    "cifar_resnet18": FOUR,
    "cifar_resnet50": FOUR,
    "cifar_resnet34_imagenet_stem": FOUR,
    "cifar_preact_resnet110": THREE,
    "cifar_preact_resnet164": THREE,
    "cifar_wide_resnet16_8": THREE,
    "cifar_custom_resnet": {},
    "cifar_speednet": {},
}


def side(name: str, pixels: int) -> int:
    """The side of images that make features as wide as those of so many pixels usually do."""
    return pixels + 1 if name == "cifar_speednet" else pixels  # whose first layer drops one


def read_table(name: str) -> list[dict[str, str]]:
    with open(REFERENCE / name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_plain_functions(name, stride):
    conv = randomise(make_conv3x3(name, 6, 10, stride)).double()
    x = torch.randn(2, 6, 9, 8, dtype=torch.double)
    if name == "separable_downsampling" and stride == 2:
        assert isinstance(conv, SeparableConv)
        depthwise, pointwise = (conv[0].weight, conv[1].weight)
        assert (depthwise.shape, pointwise.shape) == ((6, 1, 3, 3), (10, 6, 1, 1))
        expected = F.conv2d(F.conv2d(x, depthwise, stride=2, padding=1, groups=6), pointwise)
        assert count_parameters(conv) == 6 * 9 + 6 * 10
    else:
        expected = F.conv2d(x, conv.weight, conv.bias, stride, padding=1)
        assert (conv.bias is not None) == (name == "biased")
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


def test_biases_start_at_zero_and_stay_there_when_weights_are_initialised():
    conv = make_conv3x3("biased", 4, 4)
    assert (conv.bias == 0).all()
    nn.init.ones_(conv.bias)
    assert (conv.apply(init_he).bias == 1).all()


def test_unknown_convolution_raises_one_line():
    with pytest.raises(ConfigurationError) as error:
        make_conv3x3("dense", 4, 4)
    assert "convolution='dense'" in str(error.value)
    assert "\n" not in str(error.value)
    assert all(repr(allowed) in str(error.value) for allowed in CONVOLUTIONS)


@pytest.mark.parametrize("kernel_size", [3, 1])
def test_init_he_matches_the_formula(kernel_size):
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 256, kernel_size)
    init_he(conv)
    expected = math.sqrt(2 / (kernel_size**2 * 256))
    # The estimate's own relative error is 1 / sqrt(2 * weights): 0.4 % for the smaller of these.
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(conv.weight.mean().item()) < 0.02 * expected


@pytest.mark.parametrize(("groups", "expected"), [(512, math.sqrt(2 / 9)), (4, math.sqrt(2 / (9 * 128)))])
def test_init_he_counts_the_outputs_of_a_group(groups, expected):
    torch.manual_seed(0)
    conv = nn.Conv2d(512, 512, 3, groups=groups)
    init_he(conv)
    assert conv.weight.std().item() == pytest.approx(expected, rel=6 / math.sqrt(2 * conv.weight.numel()))


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
    assert SLOW_NAMES | set(FAMILIES) <= set(NAMES)
    assert set(NAMES) <= {row["name"] for row in read_table("architectures.csv")}


REGISTERED = [row for row in read_table("architectures.csv") if row["name"].partition(" ")[0] in NAMES]


@pytest.mark.parametrize("row", REGISTERED, ids=lambda row: row["name"])
def test_parameter_counts(row):
    name, _, option = row["name"].partition(" option ")
    num_classes = int(row["num_classes"])
    if option or num_classes != 10:
        network = timm.create_model(name, shortcut=option or None, num_classes=num_classes)
    else:
        network = shared_network(name)
    assert network.num_classes == num_classes
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


SIZES = [(name, (side(name, 8),) * 2) for name in NAMES] + [(name, (37, 53)) for name in QUICK_NAMES]


@pytest.mark.parametrize("name, size", SIZES)
def test_image_sizes(name, size):
    # In training mode, because running statistics that were never updated let deep networks overflow.
    network = shared_network(name).train()
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_timm_finds_a_registered_network(name):
    network = shared_network(name)
    assert network.in_chans == 3
    assert network.num_features == network.head_hidden_size == network.feature_info[-1]["num_chs"]
    assert network.pretrained_cfg["num_classes"] == 10
    assert network.pretrained_cfg["input_size"] == (3, 32, 32)
    assert network.get_submodule(network.pretrained_cfg["first_conv"]).in_channels == 3
    assert network.get_submodule(network.pretrained_cfg["classifier"]) is network.get_classifier()


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_raises(name):
    with pytest.raises(ConfigurationError, match=f"^pretrained=True: there are no pretrained weights for {name};.*$"):
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
    images = torch.randn(2, 3, side(name, 8), side(name, 8), dtype=torch.double)
    with torch.no_grad():
        pooled = network(images)
        assert isinstance(network.get_classifier(), nn.Identity)
        assert pooled.shape == (2, network.num_features)
        network.reset_classifier(5)
        assert network.num_classes == 5
        assert torch.equal(network(images), network.fc(pooled))
    assert (network.fc.bias is None) == (name in ("cifar_custom_resnet", "cifar_speednet"))
    with pytest.raises(ValueError, match="num_classes=-1"):
        network.reset_classifier(-1)


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preact_resnet110", "cifar_custom_resnet"])
def test_global_pool(name):
    images = torch.randn(2, 3, 16, 16)
    network = timm.create_model(name, num_classes=0, global_pool="").eval()
    with torch.no_grad():
        features = network.forward_features(images)
        assert torch.equal(network(images), features) and features.ndim == 4
        for pool, reduce in (("avg", lambda x: x.mean((2, 3))), ("max", lambda x: x.amax((2, 3)))):
            network.reset_classifier(7, global_pool=pool)
            torch.testing.assert_close(network.forward_head(features, pre_logits=True), reduce(features))
            assert network(images).shape == (2, 7)
            network.reset_classifier(0)  # the pooling stays
            torch.testing.assert_close(network(images), reduce(features))
    for arguments in ({"num_classes": 10, "global_pool": ""}, {"num_classes": 0, "global_pool": "mean"}):
        with pytest.raises(ConfigurationError, match="global_pool="):
            network.reset_classifier(**arguments)
        torch.testing.assert_close(network(images), features.amax((2, 3)))
        with pytest.raises(ConfigurationError, match="global_pool="):
            timm.create_model(name, **arguments)


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_features_only_returns_the_stages(name):
    whole = shared_network(name).eval()
    network = timm.create_model(name, features_only=True).eval()
    stages = [f"layer{index + 1}" for index in range(len(whole.feature_info))]
    if "preact" in name or "wide" in name:
        stages[-1] = "act1"
    assert network.feature_info.module_name() == [info["module"] for info in whole.feature_info] == stages
    # The head is all that is left out.
    network.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("fc.")})
    images, hooked = torch.randn(1, 3, side(name, 32), side(name, 32)), []
    handles = [
        whole.get_submodule(stage).register_forward_hook(lambda module, inputs, output: hooked.append(output))
        for stage in stages
    ]
    with torch.no_grad():
        features = network(images)
        last = whole.forward_features(images)
    for handle in handles:
        handle.remove()
    assert [f.shape[1] for f in features] == network.feature_info.channels()
    assert [32 // f.shape[2] for f in features] == network.feature_info.reduction()
    assert all(torch.equal(*both) for both in zip(features, hooked, strict=True))
    assert torch.equal(features[-1], last)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_chosen_stages(name):
    network = timm.create_model(name, features_only=True, out_indices=(1, -1), **FAMILIES[name])
    info = shared_network(name).feature_info
    assert network.feature_info.module_name() == [info[1]["module"], info[-1]["module"]]
    features = network(torch.randn(2, 3, side(name, 32), side(name, 32)))
    assert [f.shape[1] for f in features] == [info[1]["num_chs"], info[-1]["num_chs"]]
    assert [32 // f.shape[2] for f in features] == [info[1]["reduction"], info[-1]["reduction"]]


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


@pytest.mark.parametrize("name", sorted(set(QUICK_NAMES) - {"cifar_speednet"}))  # which has PyTorch's default
def test_weights_start_as_he_has_them(name):
    torch.manual_seed(0)
    for module in timm.create_model(name).modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels / module.groups))
            # Six times the estimate's own error, because hundreds of convolutions are tried.
            tolerance = 6 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=tolerance)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    network = timm.create_model(name).train()
    nn.functional.cross_entropy(network(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    norms = [key for key, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert without == ([f"{key}.weight" for key in norms] if name == "cifar_speednet" else [])  # it freezes them


@pytest.mark.parametrize("name", QUICK_NAMES)
def test_channels_last_gives_the_same_logits(name):
    # Double precision: what differs beyond rounding is an error, however deep the network. Eight images, because a
    # batch norm over two values, as where 1x1 pixels are left, blows rounding up.
    network = copy.deepcopy(shared_network(name)).double().train()
    images = torch.randn(8, 3, 16, 16, dtype=torch.double)
    with torch.no_grad():
        expected = network(images)
        network.to(memory_format=torch.channels_last)
        features = network.forward_features(images.to(memory_format=torch.channels_last))
        logits = network.forward_head(features)
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits, expected)


def check_export(network, strict):
    network.eval()
    example = (torch.randn(2, 3, 16, 16),)
    program = torch.export.export(network, example, dynamic_shapes=({0: torch.export.Dim("n")},), strict=strict)
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), network(images))


@pytest.mark.long
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("name", FAMILIES)
def test_export_for_any_batch_size(name, strict):
    check_export(timm.create_model(name, **FAMILIES[name]), strict)


@pytest.mark.process
@pytest.mark.parametrize("name", FAMILIES)
def test_compiles_in_one_graph(name):
    torch.compiler.reset()
    network = timm.create_model(name, **FAMILIES[name]).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), network(images))


@pytest.mark.process
@pytest.mark.parametrize("arguments", [{}, {"shortcut": "exclusive_gating", "convolution": "separable_downsampling"}])
def test_trains_compiled_as_it_does_otherwise(arguments):
    torch.compiler.reset()
    torch.manual_seed(0)
    network = timm.create_model("cifar_preact_resnet110", depths=(1, 1, 1), **arguments).double().train()
    other = copy.deepcopy(network)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    images = torch.randn(4, 3, 8, 8, dtype=torch.double)
    for function in (network, compiled):
        F.cross_entropy(function(images), torch.arange(4)).backward()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)

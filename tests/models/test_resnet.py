import csv
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from networks import PlainResNet, count_parameters, randomise, shared_network
from timm.layers import DropPath
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.blocks import BasicBlock, Bottleneck, PreActBlock, PreActBottleneck, ResidualBlock
from cifar_resnets.models.resnet import ARCHITECTURES
from cifar_resnets.models.shortcuts import SHORTCUTS, Projection, Shortcut, ZeroPad

with open(Path(__file__).parents[1] / "reference/architectures.csv", newline="") as table:
    ROWS = {row["name"]: row for row in csv.DictReader(table)}

# Network, its arguments, and what `PlainResNet` must know of it: convolutions in a block, pre-activated or not.
IN_PLAIN_FUNCTIONS = [
    ("cifar_resnet20", {}, 2, False),
    ("cifar_resnet20", {"shortcut": "B"}, 2, False),
    ("cifar_resnet20", {"shortcut": "C"}, 2, False),
    ("cifar_resnet50", {}, 3, False),
    ("cifar_resnet50", {"shortcut": "A", "depths": (2, 1, 1, 1)}, 3, False),
    ("cifar_resnet56_depthwise", {}, 2, False),
    ("cifar_preact_resnet110", {}, 2, True),
    ("cifar_preact_resnet110", {"shortcut": "B", "convolution": "separable_downsampling"}, 2, True),
    ("cifar_preact_resnet110", {"shortcut": "C", "depths": (2, 2, 2)}, 2, True),
    ("cifar_preact_resnet164", {}, 3, True),
    ("cifar_preact_resnet164", {"shortcut": "A", "depths": (2, 2, 2)}, 3, True),
    ("cifar_wide_resnet16_8", {}, 2, True),
]


@pytest.mark.parametrize(("name", "arguments", "convs", "pre_activated"), IN_PLAIN_FUNCTIONS)
@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_equals_plain_functions(name, arguments, convs, pre_activated, size):
    network = randomise(timm.create_model(name, **arguments)).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.double)
    depths = arguments.get("depths", ARCHITECTURES[name]["depths"])
    with torch.no_grad():
        expected = PlainResNet(network.state_dict(), depths, convs, pre_activated)(images)
        torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize(("name", "pre_activated"), [("cifar_plain20", False), ("cifar_preact_resnet110", True)])
def test_plain_networks_equal_plain_functions(name, pre_activated):
    network = randomise(timm.create_model(name, depths=(3, 3, 3), shortcut="none")).double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    with torch.no_grad():
        expected = PlainResNet(network.state_dict(), (3, 3, 3), 2, pre_activated)(images, plain=True)
        torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_a_plain_network_has_the_weights_of_the_residual_one(depth):
    plain, residual = (shared_network(f"cifar_{kind}{depth}").state_dict() for kind in ("plain", "resnet"))
    assert {key: tensor.shape for key, tensor in plain.items()} == {k: tensor.shape for k, tensor in residual.items()}
    assert list(plain) == list(residual)


# Network: convolutions in a block, pre-activated or not, projections or not.
KINDS = {
    **{f"cifar_{kind}{depth}": (2, False, False) for kind in ("plain", "resnet") for depth in (20, 32, 44, 56)},
    **{f"cifar_resnet{depth}": (2, False, False) for depth in (110, 1202)},
    "cifar_resnet18": (2, False, True),
    "cifar_resnet34": (2, False, True),
    **{f"cifar_resnet{depth}": (3, False, True) for depth in (50, 101, 152)},
    "cifar_preact_resnet110": (2, True, False),
    "cifar_preact_resnet164": (3, True, True),
    "cifar_preact_resnet1001": (3, True, True),
    "cifar_wide_resnet16_8": (2, True, True),
    "cifar_wide_resnet28_10": (2, True, True),
}


def count_by_hand(depths, widths, stem, convs, pre_activated, projections):
    """Return the weights of convolutions and classifier, and those of batch norms."""
    weights, norms, channels = 3 * 9 * stem, 0, stem
    for depth, width in zip(depths, widths, strict=True):
        out = width if convs == 2 else 4 * width
        later = [9 * width * width] if convs == 2 else [9 * width * width, width * out]
        for _ in range(depth):
            weights += channels * width * (9 if convs == 2 else 1) + sum(later)
            # Before the convolutions lie batch norms of what goes in, after them of what goes out.
            norms += 2 * (channels + width * (convs - 1)) if pre_activated else 2 * (width * (convs - 1) + out)
            if projections and channels != out:
                weights += channels * out
                norms += 0 if pre_activated else 2 * out
            channels = out
    return weights + channels * 10 + 10, norms + 2 * (channels if pre_activated else stem)


@pytest.mark.parametrize("name", KINDS)
def test_parameters_counted_by_hand(name):
    sizes = (ARCHITECTURES[name][key] for key in ("depths", "widths", "stem_width"))
    assert sum(count_by_hand(*sizes, *KINDS[name])) == int(ROWS[name]["parameters"])


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith(("cifar_plain", "cifar_wide"))])
def test_the_number_in_the_name(name):
    convs = sum(isinstance(module, nn.Conv2d) for module in shared_network(name).modules())
    # He et al. count the classifier; Zagoruyko and Komodakis do not, but the convolutions on the shortcuts.
    number = name.removeprefix("cifar_plain") if "plain" in name else name.split("resnet")[1].split("_")[0]
    assert convs + ("plain" in name) == int(number)


@pytest.mark.parametrize("name", [name for name in KINDS if "_resnet" in name and "wide" not in name])
def test_layers_are_counted_as_in_the_name(name):
    assert KINDS[name][0] * sum(ARCHITECTURES[name]["depths"]) + 2 == int(name.partition("resnet")[2])


# He et al. (2015), table 6; He et al. (2016), table 4; Zagoruyko and Komodakis (2016), table 4: millions.
@pytest.mark.parametrize(
    ("name", "millions", "with_norms"),
    [
        *(("cifar_resnet20", 0.27, True), ("cifar_resnet32", 0.46, True), ("cifar_resnet44", 0.66, True)),
        *(("cifar_resnet56", 0.85, True), ("cifar_resnet110", 1.7, True), ("cifar_resnet1202", 19.4, True)),
        # The 10.2 million of ResNet-1001 are without batch norms, which would make it 10.3.
        *(("cifar_preact_resnet164", 1.7, True), ("cifar_preact_resnet1001", 10.2, False)),
        *(("cifar_wide_resnet16_8", 11.0, True), ("cifar_wide_resnet28_10", 36.5, True)),
    ],
)
def test_parameters_as_published(name, millions, with_norms):
    network = shared_network(name)
    norms = sum(count_parameters(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    count = count_parameters(network) - (0 if with_norms else norms)
    assert count / 1e6 == pytest.approx(millions, abs=0.005 if millions < 1 else 0.05)


@pytest.mark.parametrize("name", [name for name in KINDS if len(ARCHITECTURES[name]["depths"]) == 3])
def test_receptive_fields_by_hand(name):
    """Each 3x3 convolution adds twice the jump, which is 1, 2 and 4; the two that make it 2 and 4 still add the old."""
    (blocks, *_), convs = ARCHITECTURES[name]["depths"], 1 if KINDS[name][0] == 3 else 2
    before = 3 + convs * blocks * 2 * (1 + 2 + 4) - 2 * (2 - 1) - 2 * (4 - 2)
    assert int(ROWS[name]["receptive_field_before_pool"]) == before
    assert int(ROWS[name]["receptive_field_after_pool"]) == before + (8 - 1) * 4


def test_module_names():
    network = timm.create_model("cifar_resnet20", shortcut="B")
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "bn1", "act1", "layer1", "layer2", "layer3", "global_pool", "head_drop", "fc")
    ]
    assert network.state_dict()["layer2.0.shortcut.0.weight"].shape == (32, 16, 1, 1)
    network = shared_network("cifar_preact_resnet110")
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "layer1", "layer2", "layer3", "bn1", "act1", "global_pool", "head_drop", "fc")
    ]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        *(("cifar_resnet34", BasicBlock), ("cifar_plain20", BasicBlock), ("cifar_resnet50", Bottleneck)),
        *(("cifar_preact_resnet110", PreActBlock), ("cifar_wide_resnet16_8", PreActBlock)),
        ("cifar_preact_resnet164", PreActBottleneck),
    ],
)
def test_blocks(name, block):
    network = shared_network(name)
    assert {type(module) for module in network.modules() if isinstance(module, ResidualBlock)} == {block}


@pytest.mark.parametrize(
    ("name", "shortcut", "num_identities", "num_padded", "num_projections"),
    [
        ("cifar_resnet20", "A", 7, 2, 0),
        ("cifar_resnet20", "B", 7, 0, 2),
        ("cifar_resnet20", "C", 0, 0, 9),
        ("cifar_resnet18", None, 5, 0, 3),
        ("cifar_resnet18", "A", 5, 3, 0),
        ("cifar_resnet50", None, 12, 0, 4),  # the first block's bottleneck widens as well
        ("cifar_wide_resnet16_8", None, 3, 0, 3),
    ],
)
def test_shortcuts_sit_where_the_option_says(name, shortcut, num_identities, num_padded, num_projections):
    network = timm.create_model(name, shortcut=shortcut)  # timm leaves out keywords that are None
    found = [module.shortcut for module in network.modules() if isinstance(module, ResidualBlock)]
    assert sum(type(s) is Shortcut and not len(s) for s in found) == num_identities
    assert sum(isinstance(module, ZeroPad) for module in network.modules()) == num_padded
    assert sum(isinstance(s, Projection) for s in found) == num_projections
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preact_resnet164"])
def test_every_shortcut_trains(name, shortcut):
    network = timm.create_model(name, shortcut=shortcut, depths=(2, 1, 1))
    nn.functional.cross_entropy(network(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    gates = [module for module in network.modules() if hasattr(module, "gate")]
    assert len(gates) == (4 if "gating" in shortcut else 0)
    assert all((module.gate.bias == -6).all() for module in gates)


def test_the_imagenet_stem_is_that_of_torchvision():
    network = timm.create_model("cifar_resnet34_imagenet_stem", num_classes=2)
    theirs = randomise(torchvision.models.resnet34(num_classes=2)).eval()
    state = {key.replace("downsample", "shortcut"): tensor for key, tensor in theirs.state_dict().items()}
    biases = {key: torch.zeros_like(tensor) for key, tensor in network.state_dict().items() if key not in state}
    # Two convolutions in each of 3 + 4 + 6 + 3 blocks; the stem and the projections have none.
    assert len(biases) == 32
    assert all(key.endswith((".conv1.bias", ".conv2.bias")) for key in biases)
    assert all(not network.state_dict()[key].any() for key in biases)
    assert count_parameters(network) == count_parameters(theirs) + sum(map(torch.numel, biases.values())) == 21_293_250
    network.load_state_dict(state | biases)
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_only_the_down_sampling_convolutions_are_separable():
    assert count_parameters(shared_network("cifar_resnet56_depthwise")) == 832_970
    grouped = [
        (name, module.groups)
        for name, module in shared_network("cifar_resnet56_depthwise").named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    ]
    assert grouped == [("layer2.0.conv1.0", 16), ("layer3.0.conv1.0", 32)]


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preact_resnet110", "cifar_resnet50"])
def test_drop_path_grows_linearly_from_the_first_block_to_the_last(name):
    depths = (2, 3, 1) if "50" not in name else (2, 2, 1, 1)
    network = timm.create_model(name, depths=depths, drop_path_rate=0.5)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    images = torch.randn(4, 3, 8, 8)
    assert not torch.equal(network.train()(images), network(images))
    assert torch.equal(network.eval()(images), network(images))
    assert not any(isinstance(m, DropPath) for m in timm.create_model(name, depths=depths).modules())


def test_other_depths_and_widths():
    network = timm.create_model("cifar_resnet20", depths=(1, 2), widths=(8, 24), stem_width=4, features_only=True)
    features = network(torch.randn(2, 3, 8, 8))
    assert [tuple(f.shape) for f in features] == [(2, 8, 8, 8), (2, 24, 4, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (16, 32)}, r"depths=\(3, 3, 3\) and widths=\(16, 32\) must have one entry for each stage"),
        ({"depths": (1, 1)}, r"depths=\(1, 1\) and widths=\(16, 32, 64\)"),
        ({"depths": (), "widths": ()}, r"depths=\(\) and"),
        *(({"depths": depths}, "a whole number from 1") for depths in [(0, 1, 1), (1, -2, 1), (1, 1.5, 1), "333"]),
        *(({"widths": widths}, "a whole number from 1") for widths in [(0, 0, 0), (-1, 2, 3)]),
        ({"widths": (64, 32, 16)}, "from 64 to 32: use shortcut='B'"),
        ({"stem_width": 0}, "stem_width=0 is no number of channels"),
        ({"in_chans": -1}, "in_chans=-1 is no number of channels"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"block": "Bottleneck"}, "block='Bottleneck' is no class of blocks"),
        ({"stem": "vgg"}, "stem='vgg' is unknown: use 'cifar' or 'imagenet'"),
        ({"shortcut": "D"}, "shortcut='D' is unknown: use 'A'.*'B'.*'C'.*'none'"),
        ({"convolution": "dense"}, "convolution='dense' is unknown: use 'regular', 'biased'"),
        *(
            ({"drop_path_rate": rate}, f"drop_path_rate={rate!r} is no probability: use 0 to below 1")
            for rate in (-0.1, 1, 1.0, float("nan"), "much")
        ),
    ],
)
def test_what_makes_no_sense_raises_one_line(arguments, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        timm.create_model("cifar_resnet20", **arguments)
    assert "\n" not in str(error.value)

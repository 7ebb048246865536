import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnets.models.layers import ZeroPadShortcut
from cifar_resnets.models.residual import BasicBlock


def randomise_batch_norms(network):
    """Make every batch norm matter: a fresh one is an identity up to rounding."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return network


def resnet20_in_plain_functions(state, images, shortcut):
    def conv(x, key, stride=1):
        weight = state[f"{key}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x, key):
        mean, var, weight, bias = (
            state[f"{key}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = F.relu(norm(conv(images, "conv1"), "bn1"))
    for stage, channels in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            key = f"layer{stage}.{block}"
            shrinks = stage > 1 and block == 0
            stride = 2 if shrinks else 1
            y = F.relu(norm(conv(x, f"{key}.conv1", stride), f"{key}.bn1"))
            y = norm(conv(y, f"{key}.conv2"), f"{key}.bn2")
            if shrinks and shortcut == "A":
                zeros = torch.zeros_like(y[:, : channels // 4])
                x = torch.cat([zeros, x[..., ::2, ::2], zeros], dim=1)
            elif shrinks:
                x = norm(conv(x, f"{key}.shortcut.0", 2), f"{key}.shortcut.1")
            x = F.relu(x + y)
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("size", [(32, 32), (9, 14)])
def test_resnet20_equals_plain_functions(shortcut, size):
    torch.manual_seed(0)
    network = randomise_batch_norms(timm.create_model("cifar_resnet20", shortcut=shortcut)).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.double)
    with torch.no_grad():
        expected = resnet20_in_plain_functions(network.state_dict(), images, shortcut)
        torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


def test_module_names():
    network = timm.create_model("cifar_resnet20", shortcut="B")
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "bn1", "act1", "layer1", "layer2", "layer3", "global_pool", "head_drop", "fc")
    ]
    block = network.layer2[0]
    assert isinstance(block, BasicBlock)
    assert [name for name, _ in block.named_children()] == [
        *("conv1", "bn1", "act1", "conv2", "bn2", "shortcut", "act2")
    ]
    assert network.state_dict()["layer2.0.shortcut.0.weight"].shape == (32, 16, 1, 1)


@pytest.mark.parametrize(
    "name, shortcut, kinds",
    [
        ("cifar_resnet20", "A", {nn.Identity: 7, ZeroPadShortcut: 2}),
        ("cifar_resnet20", "B", {nn.Identity: 7, nn.Sequential: 2}),
        ("cifar_resnet20", "C", {nn.Sequential: 9}),
        ("cifar_resnet18", None, {nn.Identity: 5, nn.Sequential: 3}),
        ("cifar_resnet18", "A", {nn.Identity: 5, ZeroPadShortcut: 3}),
    ],
)
def test_shortcuts_sit_where_the_option_says(name, shortcut, kinds):
    network = timm.create_model(name, shortcut=shortcut)  # timm leaves out keywords that are None
    found = [type(m.shortcut) for m in network.modules() if isinstance(m, BasicBlock)]
    assert {kind: found.count(kind) for kind in found} == kinds
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_unknown_shortcut_raises_one_line():
    with pytest.raises(ValueError, match="shortcut='D'.*'A'.*'B'.*'C'") as error:
        timm.create_model("cifar_resnet20", shortcut="D")
    assert "\n" not in str(error.value)


def test_other_depths_and_widths():
    network = timm.create_model("cifar_resnet20", depths=(1, 2), widths=(8, 24), stem_width=4, features_only=True)
    features = network(torch.randn(2, 3, 8, 8))
    assert [tuple(f.shape) for f in features] == [(2, 8, 8, 8), (2, 24, 4, 4)]


def test_depths_and_widths_of_different_length_raise():
    with pytest.raises(ValueError, match=r"depths=\(3, 3, 3\) and widths=\(16, 32\)"):
        timm.create_model("cifar_resnet20", widths=(16, 32))


def test_hooks_see_what_the_batch_norm_returned():
    block = BasicBlock(4, 4, stride=1, shortcut="A")
    seen = []
    block.bn1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    block(torch.randn(2, 4, 8, 8))
    assert seen[0].min() < 0

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.speednet import SpeedNet

EPS = 1e-12


def speed_net_in_plain_functions(state, images, depth, residual):
    def norm(x, key):
        parts = [state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.gelu(F.batch_norm(x, *parts, eps=EPS))

    x = F.gelu(F.conv2d(images, state["conv1.weight"], state["conv1.bias"]))
    for group in ("layer1", "layer2", "layer3"):
        x = F.max_pool2d(F.conv2d(x, state[f"{group}.conv1.weight"], padding=1), 2)
        x = first = norm(x, f"{group}.bn1")
        for number in range(depth - 1):
            x = F.conv2d(x, state[f"{group}.more.{3 * number}.weight"], padding=1)
            x = norm(x, f"{group}.more.{3 * number + 1}")
        x = x + first if residual else x
    return x.amax(dim=(2, 3)) @ state["fc.weight"].T / 9


@pytest.mark.parametrize("size", [(32, 32), (17, 24)])
@pytest.mark.parametrize(("depth", "residual"), [(2, False), (3, True), (1, False)])
def test_equals_plain_functions(size, depth, residual):
    torch.manual_seed(0)
    network = timm.create_model("cifar_speednet", depth=depth, residual=residual, widths=(8, 12, 12)).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    images = torch.randn(2, 3, *size, dtype=torch.double)
    with torch.no_grad():
        expected = speed_net_in_plain_functions(network.state_dict(), images, depth, residual)
        torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


def test_the_class_and_the_sizes():
    network = timm.create_model("cifar_speednet")
    assert isinstance(network, SpeedNet)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_972_792
    assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 256, 3, 3)


def test_a_batch_norm_has_a_bias_alone_to_learn():
    network = timm.create_model("cifar_speednet", widths=(8, 8, 8))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert frozen == {f"{name}.weight" for name in norms}
    assert len(norms) == 6


@pytest.mark.parametrize("arguments", [{"widths": ()}, {"widths": (8, 0, 8)}, {"depth": 0}])
def test_sizes_that_make_no_network_are_refused(arguments):
    with pytest.raises(ConfigurationError, match="use numbers from 1"):
        SpeedNet(**arguments)

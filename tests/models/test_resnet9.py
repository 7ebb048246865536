import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnets.models.resnet9 import CustomResNet


def custom_resnet_in_plain_functions(state, images):
    def layer(x, key, index=1, pool=False):
        x = F.conv2d(x, state[f"{key}conv{index}.weight"], padding=1)
        if pool:
            x = F.max_pool2d(x, 2)
        norm = [state[f"{key}bn{index}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm))

    x = layer(images, "")
    for stage, has_residual in (("layer1", True), ("layer2", False), ("layer3", True)):
        x = layer(x, f"{stage}.0.", pool=True)
        if has_residual:
            x = x + layer(layer(x, f"{stage}.1.", 1), f"{stage}.1.", 2)
    return x.amax(dim=(2, 3)) @ state["fc.weight"].T


@pytest.mark.parametrize("size", [(32, 32), (17, 24)])
def test_equals_plain_functions(size):
    torch.manual_seed(0)
    network = timm.create_model("cifar_custom_resnet").double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    images = torch.randn(2, 3, *size, dtype=torch.double)
    with torch.no_grad():
        expected = custom_resnet_in_plain_functions(network.state_dict(), images)
        torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


def test_module_names():
    network = timm.create_model("cifar_custom_resnet")
    assert isinstance(network, CustomResNet)
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "bn1", "act1", "layer1", "layer2", "layer3", "global_pool", "head_drop", "fc")
    ]
    assert [len(stage) for stage in (network.layer1, network.layer2, network.layer3)] == [2, 1, 2]


def test_shortcut_is_not_a_keyword_of_this_network():
    with pytest.raises(TypeError, match="shortcut"):
        timm.create_model("cifar_custom_resnet", shortcut="A")

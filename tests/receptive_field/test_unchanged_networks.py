"""A network is unchanged after `summarize` and `verify`: modes, weights, buffers, hooks, caches, random numbers."""

import copy

import numpy as np
import pytest
import timm
import torch
from networks import randomise
from torch import nn

from cifar_resnets.receptive_field.measured import verify
from cifar_resnets.receptive_field.theory import summarize
from cifar_resnets.support.sandbox import exchanged

pytestmark = pytest.mark.long
BOTH = pytest.mark.parametrize("use", [summarize, verify], ids=["summarize", "verify"])


class Remembering(nn.Module):
    """Counts its calls in a buffer, draws random numbers, branches by what it sees, and keeps what it made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.cache, self.calls, self.scales = {}, [], None
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        self.total.add_(1)
        self.calls.append(1)
        self.scales = self.conv.weight.mean()
        self.new = x
        if "weight" not in self.cache:
            self.cache["weight"] = self.conv.weight + 1
        x = self.conv(x) + self.cache["weight"].mean() + 0 * torch.rand(1, device=x.device)
        return nn.functional.batch_norm(x, self.total.expand(4).clone(), None, training=True) if x.sum() > 1e9 else x


def make_network():
    network = timm.create_model("cifar_resnet20", depths=(1, 1, 1), shortcut="B")
    return randomise(network)


def hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules())


@BOTH
def test_nothing_of_the_network_changes(use):
    network = make_network().train()
    network.layer1.eval()
    network.layer2[0].bn1.eval()
    network.layer3[0].conv1.weight.requires_grad_(False)
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    modes = [module.training for module in network.modules()]
    grads = [parameter.requires_grad for parameter in network.parameters()]
    state, identities = copy.deepcopy(network.state_dict()), [id(p) for p in network.parameters()]
    hook = network.layer1.register_forward_hook(lambda *_: None)
    use(network, 32)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == grads
    assert [id(p) for p in network.parameters()] == identities
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())
    assert torch.equal(network.fc.weight.grad, torch.ones_like(network.fc.weight))
    assert hooks(network) == 1
    hook.remove()


@BOTH
def test_random_numbers_go_on_as_if_nothing_had_run(use):
    network = Remembering()
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state().clone()
    use(network, 16)
    assert torch.equal(torch.get_rng_state(), before)


@BOTH
def test_what_modules_remember_is_as_before(use):
    network = Remembering()
    cache, calls = network.cache, network.calls
    use(network, 16)
    assert network.cache is cache
    assert network.calls is calls
    assert (cache, calls, network.scales) == ({}, [], None)
    assert not hasattr(network, "new")
    assert (int(network.count), float(network.total)) == (0, 0.0)


@BOTH
def test_a_network_with_a_cache_predicts_as_before(use):
    """LeViT keeps the biases of its attention by device: they must not be those of the measurement."""
    network = timm.create_model("levit_128s", num_classes=3).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    images = torch.rand(1, 3, 224, 224)
    expected = copy.deepcopy(network)(images)
    use(network, 224)
    assert torch.equal(network(images), expected)


@BOTH
def test_shared_modules_and_parameters_stay_as_they_are(use):
    conv, tied = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    tied.weight = conv.weight
    network = nn.Sequential(conv, nn.Sequential(conv), tied)
    before = [id(parameter) for parameter in network.parameters()]
    use(network, 16)
    assert [id(parameter) for parameter in network.parameters()] == before
    assert tied.weight is conv.weight
    assert conv.weight.device.type == "cpu"


def test_exchanged_tensors_are_shared_as_before():
    conv, tied = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    tied.weight = conv.weight
    with exchanged(nn.Sequential(conv, tied, conv), torch.zeros_like):
        assert tied.weight is conv.weight
        assert not tied.weight.any()
        assert conv.bias is not tied.bias


def test_an_error_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3)).train()
    with pytest.raises(ValueError, match="input_size"):
        summarize(network)
    assert network.training
    assert hooks(network) == 0


@BOTH
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_within_inference(use, mode):
    network = make_network()
    with mode():
        found = use(network, 32)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert found == use(network, 32)


def test_a_network_made_in_inference_mode():
    with torch.inference_mode():
        network = make_network()
    assert summarize(network).layers == summarize(make_network()).layers
    assert all(measurement.agrees for measurement in verify(network).values())
    decides = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.inference_mode():
        decides.append(Remembering())
        decides[1].conv = nn.Conv2d(4, 4, 3)
    conv = [layer for layer in summarize(decides).layers if layer.type == "Conv2d"][-1]
    assert conv.receptive_field_out == (5, 5)

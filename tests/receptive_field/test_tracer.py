"""The records of a traced network, their names, and errors for values that leave PyTorch."""

from collections import OrderedDict

import pytest
import timm
import torch
from oracle import Fn
from torch import nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.tracer import full_size, name_of, trace


def records(network, size=16):
    tracer, _ = trace(network, size)
    return [(record.layer, record.type) for record in tracer.records]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.scale = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.act(x + self.scale * self.conv(x))


def test_records_have_the_names_of_modules_and_operations():
    network = nn.Sequential(OrderedDict(block=Block(), head=nn.Sequential(nn.Flatten(), nn.Linear(768, 2))))
    assert records(network) == [
        ("block.conv", "Conv2d"),
        ("block", "mul"),
        ("block", "add"),
        ("block.act", "ReLU"),
        ("head.1", "Linear"),
    ]


def test_each_parameter_belongs_to_one_record():
    network = nn.Sequential(Block(), Block())
    tracer, _ = trace(network, 16)
    assert [record.parameters for record in tracer.records] == [84, 1, 0, 0] * 2


def test_a_leaf_of_several_windows_has_a_record_for_each():
    pooled = Fn(lambda m, x: nn.functional.max_pool2d(nn.functional.avg_pool2d(x, 2), 2))
    assert records(nn.Sequential(nn.Conv2d(3, 4, 1), pooled)) == [
        *[("0", "Conv2d"), ("1", "avg_pool2d"), ("1", "max_pool2d")],
    ]


def test_outputs_are_those_of_modules_in_order():
    tracer, _ = trace(nn.Sequential(Block(), nn.MaxPool2d(2)), 16)
    assert [name for name, _ in tracer.outputs] == ["0.conv", "0.act", "0", "1"]
    assert tracer.outputs[-1][1].shape == (1, 3, 8, 8)


def test_full_size():
    network = nn.Conv2d(3, 4, 1)
    assert full_size(network, 32) == (3, 32, 32)
    assert full_size(network, [32, 48]) == (3, 32, 48)
    assert full_size(network, (1, 32, 48)) == (1, 32, 48)
    assert full_size(timm.create_model("cifar_resnet20", depths=(1, 1, 1), in_chans=2), 8) == (2, 8, 8)


def test_name_of():
    assert name_of(timm.create_model("cifar_resnet20", depths=(1, 1, 1))) == "cifar_resnet20"
    assert name_of(nn.Conv2d(3, 4, 1)) == "Conv2d"


def test_values_of_parameters_may_be_looked_at():
    network = Fn(lambda m, x: m.conv(x) * float(m.conv.weight.detach().sum() > -1e9), conv=nn.Conv2d(3, 4, 3))
    tracer, notes = trace(network, 16)
    assert [record.type for record in tracer.records] == ["Conv2d"]
    assert len(notes) == 1


@pytest.mark.parametrize("look", [lambda x: float(x.sum()), lambda x: int(x.argmax()), lambda x: x.tolist()])
def test_values_of_the_image_may_not(look):
    network = Fn(lambda m, x: m.conv(x) * (1 if look(x) else 2), conv=nn.Conv2d(3, 4, 3))
    with pytest.raises(ConfigurationError, match="Fn: "):
        trace(network, 16)


def test_torchscript_is_refused():
    with pytest.raises(ConfigurationError, match="TorchScript"):
        trace(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), 8)

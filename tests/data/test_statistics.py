"""Statistics of images and of pretrained weights."""

from types import SimpleNamespace

import pytest
import timm
import torch
from support import TINY_NETWORK

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.data.statistics import pretrained_statistics
from cifar_resnets.errors import ConfigurationError


@pytest.mark.parametrize("name", ["resnet18", "test_resnet", "resnet50.tv_in1k", "cifar_resnet20"])
def test_pretrained_statistics_are_those_that_timm_states(name):
    module = ImageClassifier(["a", "b"], network=name, network_args=TINY_NETWORK if "cifar" in name else {})
    config = timm.get_pretrained_cfg(name)
    assert pretrained_statistics(module) == ([*config.mean], [*config.std])


def test_images_are_normalised_by_them_and_a_checkpoint_holds_the_numbers():
    data = Digits(mean="pretrained", batch_size=8)
    assert data.describe()["init_args"]["mean"] == "pretrained"
    module = ImageClassifier(data.class_names, network="test_resnet")
    data.trainer = SimpleNamespace(lightning_module=module)
    data.setup("fit")
    values = data.describe()["init_args"]
    assert (values["mean"], values["std"]) == ([0.5] * 3, [0.5] * 3)
    assert torch.equal(data.sample(4), Digits(mean=[0.5] * 3, std=[0.5] * 3).sample(4))


@pytest.mark.parametrize("module", [None, SimpleNamespace(network=torch.nn.Linear(1, 1))])
def test_a_network_that_states_none(module):
    data = Digits(mean="pretrained")
    data.trainer = SimpleNamespace(lightning_module=module)
    with pytest.raises(ConfigurationError, match=r"^data.mean: pretrained: the network does not say what its weights"):
        data.setup("fit")


def test_pretrained_stands_for_both():
    with pytest.raises(ConfigurationError, match=r"^data.std: .* is not allowed, give null with data.mean pretrained"):
        Digits(mean="pretrained", std=[1.0] * 3)

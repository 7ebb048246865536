"""Networks are tried with images of the data's size, and are not changed by it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.registry import try_network, weights_elsewhere, without_weights


def test_a_network_that_takes_them_is_left_as_it_was() -> None:
    network = timm.create_model("cifar_resnet20", num_classes=3).train()
    network.fc.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try_network(network, "cifar_resnet20", (24, 40))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_one_that_does_not_is_named_with_the_size() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(ConfigurationError, match=r"model\.network: mine does not take images of 9x8 pixels"):
        try_network(network, "mine", (9, 8))
    assert network.training


def test_arguments_about_weights() -> None:
    args = {"pretrained": True, "checkpoint_path": "x", "widths": [8], "block": [{"url": "y", "depth": 1}]}
    assert without_weights(args) == {"widths": [8], "block": [{"url": "y", "depth": 1}]}
    assert list(weights_elsewhere(args)) == ["checkpoint_path", "block.0.url"]
    assert list(weights_elsewhere({"pretrained": "x", "pretrained_cfg": {}})) == ["pretrained", "pretrained_cfg"]
    assert list(weights_elsewhere(None)) == []

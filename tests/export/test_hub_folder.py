"""The folder of timm's hub: what timm reads of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from exports import MEAN, STD, write_small
from safetensors.torch import load_file
from support import TINY_NETWORK

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.export.hub_folder import new_folder, write_weights
from cifar_resnets.inference.classifier import load


def test_timm_builds_the_network_with_its_weights(tmp_path: Path) -> None:
    classifier = load(write_small(tmp_path / "a.ckpt"), device="cpu")
    with new_folder(tmp_path / "net") as folder:
        write_weights(classifier, folder)
    network = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), classifier.network(images), atol=1e-5, rtol=0)
    found = timm.data.resolve_model_data_config(network)
    assert [list(found[name]) for name in ("mean", "std", "input_size")] == [MEAN, STD, [3, 32, 32]]
    assert network.pretrained_cfg["label_names"] == list(classifier.class_names)
    assert json.loads((tmp_path / "net/config.json").read_text())["model_args"] == TINY_NETWORK
    assert load_file(tmp_path / "net/model.safetensors").keys() == classifier.network.state_dict().keys()


def test_another_number_of_classes_gets_a_new_head(tmp_path: Path) -> None:
    with new_folder(tmp_path / "net") as folder:
        write_weights(load(write_small(tmp_path / "a.ckpt")), folder)
    assert timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True, num_classes=3).fc.out_features == 3


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "net") as folder:
        (folder / "half").write_text("")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_network_that_timm_cannot_build_is_refused(tmp_path: Path) -> None:
    classifier = load(write_small(tmp_path / "a.ckpt"))
    classifier.hyper_parameters = {**classifier.hyper_parameters, "network": "mine:net"}
    with pytest.raises(ConfigurationError, match="--format safetensors: mine:net is not in timm's registry"):
        write_weights(classifier, tmp_path)

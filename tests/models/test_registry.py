"""Networks are tried with images of the data's size, and are not changed by it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support import Result
from torch import nn

from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.models.registry import create_network, try_network, weights_elsewhere, without_weights

pytestmark = pytest.mark.long


def test_a_network_that_takes_them_is_left_as_it_was() -> None:
    network = timm.create_model("cifar_resnet20", num_classes=3).train()
    network.fc.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try_network(network, "cifar_resnet20", (24, 40))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_speednet", "resnet10t"])
def test_channels_are_not_blamed_on_the_size(name: str) -> None:
    network = timm.create_model(name, num_classes=3, in_chans=1)
    with pytest.raises(
        ConfigurationError, match=rf"network_args: {name} takes images of 1 channels.*leave in_chans out"
    ):
        try_network(network, name, (32, 32))


def test_one_that_does_not_is_named_with_the_size() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(ConfigurationError, match=r"model\.network: mine does not take images of 9x8 pixels"):
        try_network(network, "mine", (9, 8))
    assert network.training


def test_a_network_for_one_size_says_how_it_takes_another() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)
    with pytest.raises(ConfigurationError, match=r"; give --model\.network_args\.img_size 32$"):
        try_network(network, "vit", (32, 32))
    with pytest.raises(ConfigurationError, match=r"img_size \[32, 48\]$"):
        try_network(network, "vit", (32, 48))


def test_what_returns_no_logits_is_refused() -> None:
    networks = {
        "a list": create_network("resnet10t", 3, {"features_only": True}),
        r"\(1, 3, 9, 8\)": nn.Conv2d(3, 3, 1),
    }
    for returned, network in networks.items():
        with pytest.raises(
            ConfigurationError, match=rf"^model\.network: x returns .*{returned} .* such as features_only$"
        ):
            try_network(network, "x", (9, 8), 3)


# Networks of the user.


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "from torch import nn\ndef net(num_classes, width=4): return nn.Linear(width, num_classes)\nnumber = int\n"
    (tmp_path / "my_networks.py").write_text(text)
    (tmp_path / "my_mistake.py").write_text("1 +")
    yield "my_networks"
    sys.modules.pop("my_networks", None)


def test_a_function_of_a_module_builds_one(mine: str) -> None:
    assert create_network(f"{mine}:net", 3, {"width": 5}).weight.shape == (3, 5)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nowhere:net", "cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'"),
        ("my_mistake:net", "cannot import my_mistake: SyntaxError: "),
        ("my_networks:nothing", "my_networks has no nothing"),
        ("my_networks:print", "my_networks has no print"),
    ],
)
def test_what_cannot_be_imported_says_so(mine: str, name: str, line: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^model\.network: {line}"):
        create_network(name, 3)


LINE = (
    r"^model\.pretrained: resnet18 gets no weights \(no route to host\): leave pretrained out, or download a file .*$"
)


def fail(*args: Any, **kwargs: Any) -> None:
    raise OSError("no route to host")


def test_pretrained_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_resnets.models.registry.check_hub", lambda *_: None)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(CheckpointError, match=LINE):
        create_network("resnet18", 3, {"pretrained": True})
    with pytest.raises(OSError, match="no route"):
        create_network("resnet18", 3)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(CheckpointError, match=LINE):
        create_network("resnet18", 3, {"pretrained": True})
    state = timm.create_model("test_resnet").state_dict()
    place = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}  # of the user's own
    assert torch.equal(create_network("test_resnet", 1000, place).fc.weight, state["fc.weight"])


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Weights of `test_resnet` in a cache of the hub, as its library lays it out, and no network."""
    folder = tmp_path / "hub/models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    torch.manual_seed(1)
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, folder / "snapshots" / ("0" * 40) / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return state


TINY = """
name: tiny
explain: null
model: {network: test_resnet, pretrained: true, lr: 1e-30, weight_decay: 0}
data: {class_path: Digits, init_args: {batch_size: 40, num_train: 200}}
trainer: {accelerator: cpu, max_epochs: 1}
"""


def test_a_fit_starts_from_weights_of_the_hubs_cache_and_its_checkpoint_stands_alone(
    cached: dict[str, torch.Tensor], cli: Callable[..., Result], tmp_path: Path
) -> None:
    Path("tiny.yaml").write_text(TINY)
    result = cli("fit", "-c", "tiny.yaml")
    assert (result.status, result.err) == (0, "")
    assert "pretrained: the head of test_resnet.r160_in1k for 1000 classes is left out, that of 10 starts" in result.out
    last = "logs/tiny/version_0/checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["network.conv1.0.weight"], cached["conv1.0.weight"])
    assert "pretrained" not in checkpoint["hyper_parameters"]
    (tmp_path / "hub").rename(tmp_path / "gone")
    assert cli("test", "--ckpt_path", last).status == 0
    again = ["--model.network_args.pretrained", "true", "--ckpt_path", last, "--trainer.max_epochs", "2"]
    resumed = cli("fit", "-c", "tiny.yaml", *again)
    assert (resumed.status, resumed.err) == (0, "")
    result = cli("fit", "-c", "tiny.yaml")
    assert (result.status, result.err.count("\n")) == (4, 1)
    assert "model.pretrained: test_resnet gets no weights (Cannot reach https://huggingface.co/api" in result.err


def test_a_network_without_weights_says_so() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^model\.network_args of cifar_resnet20: pretrained=True: there are no"
    ):
        create_network("cifar_resnet20", 3, {"pretrained": True})


def test_exhausted_memory_is_not_blamed_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    network = nn.Linear(1, 1)
    monkeypatch.setattr(network, "forward", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(RuntimeError, match="allocate"):
        try_network(network, "mine", (9, 8))
    with pytest.raises(RuntimeError, match="allocate"):
        create_network("resnet18", 3)


def test_arguments_about_weights() -> None:
    args = {"pretrained": True, "checkpoint_path": "x", "widths": [8], "block": [{"url": "y", "depth": 1}]}
    assert without_weights(args) == {"widths": [8], "block": [{"url": "y", "depth": 1}]}
    assert list(weights_elsewhere(args)) == ["checkpoint_path", "block.0.url"]
    assert list(weights_elsewhere({"pretrained": "x", "pretrained_cfg": {}})) == ["pretrained", "pretrained_cfg"]
    assert list(weights_elsewhere(None)) == []


def test_a_mistake_in_the_arguments_is_named_with_its_key() -> None:
    with pytest.raises(ConfigurationError, match=r"^model.network_args of cifar_resnet20: depths=\[1, 1\] and widths"):
        create_network("cifar_resnet20", 10, {"depths": [1, 1], "widths": [8]})

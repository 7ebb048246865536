"""Weights of public trainers in our networks: the same outputs, or one line that says why not."""

import collections
import csv
import hashlib
import io
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import yaml
from safetensors.torch import save_file
from support import PLAIN, TINY_NETWORK, WITHOUT_PICTURES, read_json
from torch import nn

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.errors import CheckpointError
from cifar_resnets.models.weights import load_weights

pytestmark = pytest.mark.long

# Networks as the common public trainers write them: independent of ours, names and all.


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def zero_padding(planes):
    return Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4)))


class Plain(nn.Module):
    """Two 3x3 convolutions, or three convolutions as a bottleneck."""

    def __init__(self, in_planes, planes, stride, bottleneck, option):
        super().__init__()
        out_planes = planes * (4 if bottleneck else 1)
        if bottleneck:
            self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(planes, out_planes, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_planes)
        else:
            self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if (stride, in_planes) != (1, out_planes) and option == "A":
            self.shortcut = zero_padding(planes)
        elif (stride, in_planes) != (1, out_planes):
            projection = nn.Conv2d(in_planes, out_planes, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_planes))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            out = self.bn3(self.conv3(F.relu(out)))
        return F.relu(out + self.shortcut(x))


class PublicResNet(nn.Module):
    def __init__(self, depths, first, bottleneck=False, option="B", num_classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first)
        in_planes, self.num_stages = first, len(depths)
        for stage, depth in enumerate(depths):
            blocks, planes = [], first * 2**stage
            for block in range(depth):
                stride = 2 if stage and not block else 1
                blocks.append(Plain(in_planes, planes, stride, bottleneck, option))
                in_planes = planes * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(in_planes, num_classes)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.num_stages):
            out = getattr(self, f"layer{stage + 1}")(out)
        return self.linear(out.mean(dim=(2, 3)))


PUBLIC = {
    "cifar_resnet20": lambda: PublicResNet((3, 3, 3), 16, option="A"),
    "cifar_resnet18": lambda: PublicResNet((2, 2, 2, 2), 64),
    "cifar_resnet50": lambda: PublicResNet((1, 1, 1, 1), 64, bottleneck=True),
}
ARGUMENTS = {"cifar_resnet50": {"depths": (1, 1, 1, 1)}}

WRAPPINGS = {
    "plain": lambda state: state,
    "DataParallel": lambda state: prefixed(state, "module."),
    "beside an epoch": lambda state: {"state_dict": state, "epoch": 3, "best_prec1": torch.tensor(91.7)},
    "akamaster": lambda state: {"state_dict": prefixed(state, "module."), "best_prec1": 91.7},
    "kuangliu": lambda state: {"net": prefixed(state, "module."), "acc": 95.5, "epoch": 199},
    "torchvision": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "tutorial": lambda state: {"epoch": 5, "model_state_dict": state, "loss": torch.tensor(0.4)},
    "a config called model": lambda state: {"model": {"depth": 20}, "state_dict": state},
    "a dict in a dict": lambda state: {"model": {"state_dict": state}, "args": {"lr": 0.1}},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled in DataParallel": lambda state: prefixed(state, "module._orig_mod."),
    "another Lightning module": lambda state: {"state_dict": prefixed(state, "model.")},
    "in DataParallel": lambda state: {"state_dict": prefixed(state, "net.module.")},
    "ours": lambda state: {
        "state_dict": {**prefixed(state, "network."), "val_metrics.confusion": torch.zeros(10, 10)},
        "epoch": 2,
        "hyper_parameters": {"network": "cifar_resnet20"},
    },
    "ours, compiled": lambda state: {"state_dict": prefixed(state, "network._orig_mod.")},
    "fc": lambda state: renamed(state, "linear.", "fc."),
    "classifier": lambda state: renamed(state, "linear.", "classifier."),
    "downsample": lambda state: renamed(state, ".shortcut.", ".downsample."),
    "old PyTorch": lambda state: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
    "double": lambda state: {n: v.double() if v.is_floating_point() else v for n, v in state.items()},
    "parameters": lambda state: {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in state.items()},
}


def prefixed(state, prefix):
    return collections.OrderedDict((prefix + name, value) for name, value in state.items())


def renamed(state, old, new):
    return {name.replace(old, new): value for name, value in state.items()}


def randomised(network):
    """Make every batch norm matter: a fresh one is an identity up to rounding."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
            module.num_batches_tracked.fill_(7)
    return network.eval()


def saved(content, path, **how):
    torch.save(content, path, **how)
    return path


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_outputs(network, public):
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = public(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def public():
    torch.manual_seed(1)
    return randomised(PUBLIC["cifar_resnet20"]())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return timm.create_model("cifar_resnet20")


def small(**changes):
    return timm.create_model("cifar_resnet20", **{"depths": (1, 1), "widths": (4, 8), "stem_width": 4} | changes)


# What fits.


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_network_computes_what_the_public_one_does(name, wrapping, tmp_path):
    torch.manual_seed(1)
    public, network = randomised(PUBLIC[name]()), timm.create_model(name, **ARGUMENTS.get(name, {}))
    load_weights(network, saved(WRAPPINGS[wrapping](public.state_dict()), tmp_path / "weights.pt"))
    assert_same_outputs(network, public)
    assert network.bn1.num_batches_tracked == (0 if wrapping == "old PyTorch" else 7)


def test_files_of_old_pytorch_and_of_safetensors(public, network, tmp_path, recwarn):
    state = public.state_dict()
    saved(prefixed(state, "module."), tmp_path / "legacy.th", _use_new_zipfile_serialization=False)
    save_file({f"module.{name}": value.contiguous() for name, value in state.items()}, tmp_path / "a.safetensors")
    for name in ("legacy.th", "a.safetensors"):
        load_weights(network, str(tmp_path / name))
        assert_same_outputs(network, public)
        network.reset_classifier(10)
    assert not [str(warning.message) for warning in recwarn]


def test_half_precision_is_copied_into_the_networks(public, network, tmp_path):
    half = {name: value.half() for name, value in public.state_dict().items()}  # the counters, too
    load_weights(network, saved(half, tmp_path / "half.pt"))
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert network.bn1.num_batches_tracked.dtype == torch.long and network.bn1.num_batches_tracked == 7
    assert torch.equal(network.fc.weight, half["linear.weight"].float())


def test_the_networks_precision_memory_format_and_gradients_stay(public, network, tmp_path):
    network = network.double().to(memory_format=torch.channels_last)
    network.conv1.weight.requires_grad_(False)
    parameters, strides = list(network.parameters()), [p.stride() for p in network.parameters()]
    load_weights(network, saved(public.state_dict(), tmp_path / "weights.pt"))
    assert all(p is old for p, old in zip(network.parameters(), parameters, strict=True))
    assert [p.stride() for p in network.parameters()] == strides
    assert {p.dtype for p in network.parameters()} == {torch.double}
    assert [p.requires_grad for p in network.parameters()] == [False] + [True] * (len(parameters) - 1)
    assert torch.equal(network.layer1[0].conv1.weight.float(), public.layer1[0].conv1.weight)


def test_the_module_around_a_network_may_be_given(public, tmp_path):
    path = saved(public.state_dict(), tmp_path / "weights.pt")
    module = ImageClassifier([str(digit) for digit in range(10)])
    load_weights(module, path)
    assert_same_outputs(module.network, public)
    assert_same_outputs(ImageClassifier([str(digit) for digit in range(10)], weights=str(path)).network, public)


def test_torchvisions_resnet18_in_timms(tmp_path):
    torch.manual_seed(1)
    theirs = randomised(torchvision.models.resnet18(weights=None, num_classes=10))
    network = timm.create_model("resnet18", num_classes=10)
    load_weights(network, saved(theirs.state_dict(), tmp_path / "resnet18.pth"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), theirs(images), rtol=1e-5, atol=1e-5)
    # and a trainer's names for the same
    state = renamed(renamed(theirs.state_dict(), ".downsample.", ".shortcut."), "fc.", "linear.")
    again = timm.create_model("resnet18", num_classes=10)
    load_weights(again, saved({"net": prefixed(state, "module.")}, tmp_path / "shortcut.pth"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_averaged_weights_are_preferred_as_in_timm(public, network, tmp_path, key):
    other = {name: torch.zeros_like(value) for name, value in public.state_dict().items()}
    averaged = prefixed(public.state_dict(), "module.") | {"n_averaged": torch.tensor(7)}
    load_weights(network, saved({"state_dict": other, key: averaged, "epoch": 3}, tmp_path / "a.pt"))
    assert_same_outputs(network, public)
    load_weights(network, saved({"state_dict": public.state_dict(), key: None}, tmp_path / "b.pt"))
    assert_same_outputs(network, public)


def test_an_accuracy_of_numpy_beside_the_weights(tmp_path):
    source, network = timm.create_model("cifar_resnet20"), timm.create_model("cifar_resnet20")
    load_weights(network, saved({"net": source.state_dict(), "acc": np.float64(93.1)}, tmp_path / "weights.pt"))
    assert torch.equal(network.conv1.weight, source.conv1.weight)


def test_the_classifier_is_found_by_its_own_name(tmp_path):
    network = timm.create_model("test_vit", num_classes=10)  # whose classifier is `head`
    state = renamed(timm.create_model("test_vit", num_classes=10).state_dict(), "head.", "fc.")
    load_weights(network, saved(state, tmp_path / "weights.pt"))
    assert torch.equal(network.head.weight, state["fc.weight"])


def test_names_that_the_network_has_are_not_changed(tmp_path):
    inner = nn.ModuleDict({"model": nn.Linear(2, 2), "linear": nn.Linear(2, 2)})
    network = nn.ModuleDict({"model": inner})  # all of its names begin with a prefix
    state = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    load_weights(network, saved(state, tmp_path / "weights.pt"))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    network = nn.ModuleDict({"fc": nn.Linear(2, 2), "linear": nn.Linear(2, 2)})  # two that may be called a classifier
    state = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    load_weights(network, saved(state, tmp_path / "two.pt"))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


# What does not.


def refusal(module, path):
    """Return the message, after a look at its form and at the network."""
    before = snapshot(module)
    with pytest.raises(CheckpointError) as error:
        load_weights(module, path)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    message = str(error.value)
    assert message.startswith("weights: ") and "\n" not in message
    assert str(path) in message
    return message


def test_other_classes(tmp_path):
    path = saved(prefixed(small(num_classes=100).state_dict(), "module."), tmp_path / "cifar100.pt")
    assert "cifar100.pt has a head of 100 classes, the network has 10: give data of 100 classes" in refusal(
        small(), path
    )


def test_a_head_of_another_size_is_left_out_if_the_caller_allows_it(tmp_path):
    theirs, network = small(num_classes=100), small()
    state, before = randomised(theirs).state_dict(), snapshot(network)
    head = {"fc.weight", "fc.bias"}
    for name, line in {"other": "the head of 100 classes is left out", "none": "it has no head"}.items():
        kept = {key: value for key, value in state.items() if name == "other" or key not in head}
        path = saved(prefixed(kept, "module."), tmp_path / f"{name}.pth")
        assert load_weights(network, path, strict=False) == f"weights: {path}: {line}, that of 10 starts anew"
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[key] if key in head else state[key])
    assert load_weights(network, saved(network.state_dict(), tmp_path / "own.pth"), strict=False) is None
    for changes in ({"widths": (4, 16)}, {"depths": (2, 1)}):  # of another network
        with pytest.raises(CheckpointError, match="is not of this network"):
            load_weights(small(**changes), path, strict=False)


def test_another_depth(tmp_path):
    deep, flat = small(depths=(2, 1)), small()
    names = [name for name in deep.state_dict() if name.startswith("layer1.1")]
    tracked = [name for name in names if name.endswith("num_batches_tracked")]
    message = refusal(flat, saved(deep.state_dict(), tmp_path / "deep.pt"))
    assert f"{len(names)} unexpected ({', '.join(names[:8])}, and {len(names) - 8} more)" in message
    message = refusal(deep, saved(flat.state_dict(), tmp_path / "flat.pt"))
    missing = [name for name in names if name not in tracked]
    assert f"{len(missing)} missing ({', '.join(missing[:8])}, and 2 more)" in message


def test_all_kinds_in_one_line(tmp_path):
    state = small().state_dict()
    del state["bn1.bias"]
    state |= {"extra\nline": torch.ones(1), "conv1.weight": torch.ones(4, 3, 3, 3, dtype=torch.int8)}
    message = refusal(small(), saved(state, tmp_path / "a.pt"))
    assert "1 of another shape (conv1.weight: file (4, 3, 3, 3) of torch.int8, network (4, 3, 3, 3))" in message
    assert "1 missing (bn1.bias); 1 unexpected (extra line)" in message


def test_a_prefix_that_only_some_names_have_is_part_of_them(tmp_path):
    state = prefixed(small().state_dict(), "model.") | {"criterion.weight": torch.ones(10)}
    message = refusal(small(), saved(state, tmp_path / "a.pt"))
    assert "unexpected (model.conv1.weight, " in message


@pytest.mark.parametrize(("twice", "name"), [("linear.weight", "fc.weight"), ("classifier.bias", "fc.bias")])
def test_two_names_for_one_parameter(tmp_path, twice, name):
    state = small().state_dict()
    message = refusal(small(), saved({**state, twice: state[name]}, tmp_path / "a.pt"))
    assert f"{name} and {twice} both stand for {name}" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["layer2.0.conv1.weight", "layer1.0.bn2.running_var"])
def test_values_that_are_not_finite(tmp_path, name, value):
    state = snapshot(small())
    state[name].view(-1)[-1] = value
    state["fc.bias"][0] = value  # comes later
    assert f": {name} is not finite" in refusal(small(), saved(state, tmp_path / "a.pt"))


def test_a_double_that_is_too_large_for_the_network(tmp_path):
    state = {name: value.double() for name, value in small().state_dict().items()}
    state["fc.bias"][0] = 1e300
    path = saved(state, tmp_path / "a.pt")
    assert "fc.bias is not finite in torch.float32" in refusal(small(), path)
    load_weights(small().double(), path)


def test_a_counter_that_is_not_finite(tmp_path):
    state = {**small().state_dict(), "bn1.num_batches_tracked": torch.tensor(float("inf")).half()}
    assert ": bn1.num_batches_tracked is not finite" in refusal(small(), saved(state, tmp_path / "a.pt"))


def test_paths_without_a_file(tmp_path):
    assert "there is no file" in refusal(small(), tmp_path / "missing.pt")
    assert "is a folder" in refusal(small(), tmp_path)


@pytest.mark.parametrize("damage", ["empty", "text", "html", "truncated", "truncated legacy", "zip", "safetensors"])
def test_damaged_files(tmp_path, damage):
    path = tmp_path / ("a.safetensors" if damage == "safetensors" else "a.pt")
    content = {"empty": b"", "text": b"no weights", "html": b"<!DOCTYPE html>", "zip": b"PK\x03\x04" + bytes(90)}
    if "truncated" in damage:
        saved(small().state_dict(), path, _use_new_zipfile_serialization=damage == "truncated")
        content[damage] = path.read_bytes()[:-700]
    path.write_bytes(content.get(damage, b"\x08\x00\x00\x00\x00\x00\x00\x00{"))
    message = refusal(small(), path)
    assert "is damaged, or no file of torch.save or safetensors" in message
    assert "weights_only" not in message  # no advice to switch the safety off


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (torch.ones(3), "no dict"),
        ([torch.ones(3)], "no dict"),
        ("weights", "no dict"),
        ({}, "only nothing"),
        ({"epoch": 3, "acc": 0.5}, "only epoch, acc"),
        ({"state_dict": {}, "epoch": 3}, "only state_dict, epoch"),
        ({"state": {0: {"momentum": torch.ones(1)}}, "param_groups": []}, "only state, param_groups"),
        ({0: torch.ones(3)}, "only 0"),
    ],
    ids=str,
)
def test_something_else_than_a_state_dict(tmp_path, content, what):
    message = refusal(small(), saved(content, tmp_path / "a.pt"))
    assert "has no state dict, on top or in state_dict, model_state_dict, model, net: " + what in message


def test_two_state_dicts(tmp_path):
    state = small().state_dict()
    assert "holds 2 state dicts" in refusal(small(), saved({"model": state, "net": state}, tmp_path / "a.pt"))


@pytest.mark.parametrize("value", [3, {"a": torch.ones(1)}, torch.eye(2).to_sparse(), torch.ones(2, device="meta")])
def test_an_entry_that_is_no_plain_tensor(tmp_path, value):
    path = saved({**small().state_dict(), "fc.weight": value}, tmp_path / "a.pt")
    assert "holds fc.weight, which is no plain tensor" in refusal(small(), path)


class Payload:
    """Unpickled, it would leave a file."""

    def __reduce__(self):
        return (open, ("sentinel", "w"))


@pytest.mark.parametrize(
    ("content", "culprit"),
    [(Payload(), "io.open"), (types.SimpleNamespace(), "types.SimpleNamespace"), (nn.Linear(2, 2), "Linear")],
    ids=["code", "object", "network"],
)
@pytest.mark.parametrize("new", [True, False])
def test_python_objects_are_not_executed(tmp_path, monkeypatch, content, culprit, new):
    monkeypatch.chdir(tmp_path)
    content = {"net": small().state_dict(), "what": content}
    message = refusal(small(), saved(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new))
    assert "rather than plain tensors and will not be executed" in message
    assert culprit in message
    assert not Path("sentinel").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_of_python_is_not_executed(tmp_path, monkeypatch, recwarn, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Payload(), protocol=protocol))
    refusal(small(), tmp_path / "a.pt")
    assert not Path("sentinel").exists()
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "a.pt")
    assert "TorchScript" in refusal(small(), tmp_path / "a.pt")


def test_without_safetensors(tmp_path, monkeypatch):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in refusal(small(), tmp_path / "a.safetensors")


# On the command line.

RUN = Path("logs/tiny/version_0")


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "tiny.yaml").write_text(PLAIN)
    return ["-c", "tiny.yaml"]


def one_stage(**changes):
    return randomised(PublicResNet((1,), 8, **changes))


def test_fit_starts_from_the_weights_and_the_checkpoint_stands_alone(cli, recipe, tmp_path):
    path = saved({"net": prefixed(one_stage().state_dict(), "module."), "acc": 9.9}, tmp_path / "public.pth")
    frozen = ["--model.lr", "1e-30", "--model.weight_decay", "0"]
    result = cli("fit", *recipe, "--model.weights", "public.pth", *frozen)
    assert (result.status, result.err) == (0, "")
    path.unlink()
    assert yaml.safe_load((RUN / "config.yaml").read_text())["model"]["weights"] == "public.pth"
    best, last = (str(RUN / f"checkpoints/{name}.ckpt") for name in ("best", "last"))
    checkpoint = torch.load(best, weights_only=True)
    assert "weights" not in checkpoint["hyper_parameters"]
    assert ImageClassifier.load_from_checkpoint(best, weights_only=True).class_names == list(map(str, range(10)))

    assert cli("test", "--ckpt_path", best, *WITHOUT_PICTURES).status == 0
    again = read_json(Path("logs/tiny/version_1/test.json"))
    assert again["correct"] == read_json(RUN / "test.json")["correct"]
    assert cli("fit", *recipe, *frozen, "--ckpt_path", last, "--trainer.max_epochs", "2").status == 0
    # the same command again, as a scheduler repeats it
    resumed = ["--ckpt_path", last, "--trainer.max_epochs", "2"]
    assert cli("fit", *recipe, *frozen, "--model.weights", "public.pth", *resumed).status == 0


def test_the_first_step_is_taken_from_the_weights(cli, recipe, tmp_path):
    public = one_stage()
    saved(public.state_dict(), tmp_path / "public.pth")
    assert cli("fit", *recipe, "--model.weights", "public.pth", "--model.lr", "1e-30").status == 0
    state = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, value in public.named_parameters():
        torch.testing.assert_close(state["network." + name.replace("linear", "fc")], value.detach())
    # a checkpoint of ours is a start, too
    assert cli("fit", *recipe, "--model.weights", str(RUN / "checkpoints/best.ckpt")).status == 0


def test_a_fit_says_that_the_head_starts_anew_and_a_test_refuses_it(cli, recipe, tmp_path):
    saved(one_stage(num_classes=100).state_dict(), tmp_path / "public.pth")
    weights = ["--model.weights", "public.pth"]
    result = cli("fit", *recipe, *weights, "--explain", "null")
    assert (result.status, result.err) == (0, "")
    assert "weights: public.pth: the head of 100 classes is left out, that of 10 starts anew\n" in result.out
    result = cli("test", *recipe, *weights)
    assert (result.status, result.err.count("\n")) == (4, 1)
    assert "has a head of 100 classes" in result.err
    result = cli("fit", *recipe, *weights, "--model.pretrained", "true")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "model.pretrained: model.weights would replace these weights" in result.err


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_takes_no_other_weights_than_the_checkpoints(cli, recipe, tmp_path, command):
    limits = ["--trainer.limit_train_batches", "1", "--trainer.limit_test_batches", "1"]
    assert cli("fit", *recipe, *limits).status == 0
    best = str(RUN / "checkpoints/best.ckpt")
    result = cli(command, "--ckpt_path", best, "--model.weights", "other.pth")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"model.weights: {command} reads --ckpt_path alone" in result.err
    assert cli(command, "--ckpt_path", best, "--model.weights", "null", *WITHOUT_PICTURES).status == 0


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (None, "there is no file public.pth"),
        (b"", "public.pth is damaged"),
        (Payload(), "public.pth holds Python objects (io.open)"),
        ({"acc": 0.5}, "public.pth has no state dict"),
        (
            one_stage(num_classes=100).state_dict(),
            "public.pth has a head of 100 classes, the network has 10: ",
        ),
    ],
    ids=["missing", "empty", "code", "no state dict", "classes"],
)
def test_a_refusal_is_one_line_with_status_4(cli, recipe, tmp_path, content, culprit):
    if content is not None:
        buffer = io.BytesIO(b"")
        if content:
            torch.save(content, buffer)
        (tmp_path / "public.pth").write_bytes(buffer.getvalue())
    result = cli("fit", *recipe, "--model.weights", "public.pth", "--model.weights_strict", "true")
    assert (result.status, result.err.count("\n")) == (4, 1), result.err
    assert culprit in result.err
    assert "weights: " in result.err
    assert not Path("logs").exists()


# Evaluations without a checkpoint.

MEAN, STD = [0.2, 0.3, 0.4], [0.4, 0.3, 0.2]
STATISTICS = ["--data.mean", str(MEAN), "--data.std", str(STD)]


@pytest.fixture
def untested(tmp_path):
    """A public trainer's network of ten classes, and the arguments that name its file, ours and the data."""
    network = one_stage().eval()
    saved({"state_dict": prefixed(network.state_dict(), "module."), "best_prec1": 91.7}, tmp_path / "public.th")
    ours = ["--model.network", "cifar_resnet20", "--model.network_args", str(TINY_NETWORK)]
    return network, ["--model.weights", "public.th", *ours, "--data", "Digits"]


def test_public_weights_are_tested_and_predicted_with(cli, untested):
    network, arguments = untested
    images, labels = Digits().load("test")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    with torch.inference_mode():
        probabilities = network((pixels - mean) / std).softmax(dim=1).numpy()

    result = cli("test", *arguments, *STATISTICS)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("weights: public.th\n") and "statistics" not in result.out
    folder = Path("logs/cifar_resnet20/version_0")
    tested = read_json(folder / "test.json")
    assert tested["correct"] == int((probabilities.argmax(axis=1) == labels).sum())
    assert tested["checkpoint"] == "public.th"
    digest = hashlib.sha256(Path("public.th").read_bytes()).hexdigest()
    assert read_json(folder / "run.json")["weights"] == {"file": "public.th", "sha256": digest}
    assert "public.th" in (folder / "report.html").read_text()
    assert np.load(folder / "gallery.npz")["heat_predicted"].any()

    assert cli("predict", *arguments, *STATISTICS).status == 0
    rows = list(csv.DictReader(Path("logs/cifar_resnet20/version_1/predictions.csv").open()))
    found = [[float(row[f"p({digit})"]) for digit in range(10)] for row in rows]
    np.testing.assert_allclose(found, probabilities, atol=2e-6)
    again = cli("test", "-c", str(folder / "config.yaml"), "--explain", "null")
    assert again.status == 0
    assert read_json(Path("logs/cifar_resnet20/version_2/test.json"))["correct"] == tested["correct"]


def test_what_public_weights_do_not_say_is_said(cli, untested):
    _, arguments = untested
    result = cli("validate", *arguments, "--explain", "null")
    assert (result.status, result.err) == (0, "")
    assert "normalised by the training images' statistics, give --data.mean and --data.std for others" in result.out
    assert "validation images that are drawn from the training images may have been trained on" in result.out
    result = cli("find-lr", *arguments, "--num_steps", "20", "--data.batch_size", "16")
    assert result.status == 0 and "weights: " not in result.out and "lr_min" in result.out, result


def test_some_of_the_classes_of_public_weights_are_tested(cli, untested):
    _, arguments = untested
    some = [*arguments, "--data.classes", "[3, 5]", "--explain", "null"]
    names = ["--model.class_names", str(list(range(10)))]
    result = cli("test", *some)
    assert (result.status, result.err.count("\n")) == (4, 1)
    assert "has a head of 10 classes, the network has 2: " in result.err
    result = cli("test", *some, *names)
    assert (result.status, result.err.count("\n")) == (2, 1) and "data.mean: " in result.err
    result = cli("test", *some, *names, *STATISTICS)
    assert (result.status, result.err) == (0, "")
    assert "evaluated on 2 of the network's 10 classes: 3, 5" in result.out


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_no_random_network_is_ever_evaluated(cli, untested, command):
    for arguments in ([], ["--data", "Digits"], ["--data", "Digits", "--model.weights", "null"]):
        result = cli(command, *arguments)
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert f"{command}: --ckpt_path is missing, give the checkpoint of a fit, or other weights as" in result.err
    Path("later.yaml").write_text("model: {weights: null}\n")
    result = cli(command, *untested[1], "-c", "later.yaml")
    assert result.status == 2 and "--ckpt_path is missing" in result.err
    assert not Path("logs").exists()

"""Frozen layers: which they are, that nothing of them changes, and that the rest trains as on constant features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging
from support import TINY, Result
from test_rank_equality import trainer
from torch import nn

from cifar_resnets.callbacks.look_ahead import LookAhead
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.freezing import Freezing, frozen_names, frozen_norms
from cifar_resnets.training.schedules import Constant

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

NETWORK = {"depths": [1, 1], "widths": [4, 8], "stem_width": 4}
HEAD = {"fc.weight", "fc.bias"}


def small(name: str = "cifar_resnet20", **changes: Any) -> nn.Module:
    return timm.create_model(name, **({**NETWORK, **changes} if name.startswith("cifar_") else changes))


def named(network: nn.Module) -> set[str]:
    return {name for name, _ in network.named_parameters()}


# Which layers.


def test_the_backbone_is_all_but_the_classifier() -> None:
    network = small()
    assert set(frozen_names(network, "backbone")) == named(network) - HEAD
    network = timm.create_model("test_vit")  # whose classifier is `head`
    assert set(frozen_names(network, "backbone")) == named(network) - {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("cifar_resnet20", {"conv1.weight", "bn1.weight", "bn1.bias"}),
        ("cifar_preact_resnet110", {"conv1.weight"}),  # whose batch norm comes after the last stage
        ("resnet10t", None),
    ],
)
def test_the_stem_is_what_comes_before_the_first_stage(name: str, stem: set[str] | None) -> None:
    network = small(name)
    children = [child for child, _ in network.named_children()]
    before = tuple(f"{each}." for each in children[: children.index("layer1")])
    assert set(frozen_names(network, "stem")) == {each for each in named(network) if each.startswith(before)}
    assert stem in (None, set(frozen_names(network, "stem")))


def test_modules_and_parameters_are_named() -> None:
    network = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert frozen_names(network, ["head.bias", "layer1"]) == ["layer1.weight", "layer1.bias", "head.bias"]
    assert frozen_names(network, None) == []


@pytest.mark.parametrize(
    ("freeze", "line"),
    [
        ("layr1", "'layr1' is no module of the network, did you mean layer1"),
        (["layer1", ""], "'' is no module of the network$"),
        ("act1", "'act1' has no parameters$"),
    ],
)
def test_a_name_that_freezes_nothing_is_refused(freeze: Any, line: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^model\.freeze: {line}"):
        frozen_names(small(), freeze)


@pytest.mark.parametrize("freeze", ["backbone", "stem"])
def test_a_network_without_timms_interface_says_what_to_give(freeze: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^model\.freeze: {freeze} takes a network .* give (names of )?mod"):
        frozen_names(nn.Sequential(nn.Linear(2, 2)), freeze)


def test_batch_norms_are_frozen_with_their_parameters_or_with_what_is_around_them() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
    network = nn.ModuleDict({"plain": plain, "bn": nn.BatchNorm2d(4), "part": nn.BatchNorm2d(4)})
    frozen = frozen_names(network, ["plain", "bn", "part.bias"])
    assert frozen_norms(network, frozen) == [plain[1], network["bn"]]
    assert frozen_norms(network, []) == []


def test_what_was_frozen_before_stays_so_after_the_unfreezing() -> None:
    network = small()
    network.conv1.weight.requires_grad_(False)
    freezing = Freezing(network, "stem", 1)
    run = trainer(ranks=1, fast_dev_run=True)
    freezing.start(run)
    assert freezing.is_on
    with freezing.lifted():
        assert network.bn1.weight.requires_grad and not network.conv1.weight.requires_grad
    assert not network.bn1.weight.requires_grad
    freezing.unfreeze_epoch = 0
    freezing.follow(run)
    assert network.bn1.weight.requires_grad and not network.conv1.weight.requires_grad


# Training.


def classifier(**changes: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(Digits().class_names, **{"network_args": NETWORK, "schedule": Constant(), **changes})


def data() -> Digits:
    return Digits(batch_size=40, num_train=200, augment=None, seed=3)


class States(pl.Callback):
    """Keeps the network's state at the end of each epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.network.state_dict()))


def fit(module: ImageClassifier, *callbacks: pl.Callback, **changes: Any) -> list[dict[str, torch.Tensor]]:
    states = States()
    trainer(*callbacks, states, ranks=1, **{"max_epochs": 2, "precision": "64-true", **changes}).fit(module, data())
    return states.states


def test_the_head_is_trained_as_a_linear_layer_on_constant_features() -> None:
    module = classifier(freeze="backbone", weight_decay=0.0)
    features, head = copy.deepcopy(module.network).double().eval(), copy.deepcopy(module.network.fc).double()
    (state,) = fit(module, max_epochs=1)
    source = data()
    source.prepare_data()
    source.setup("fit")
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for images, labels in source.train_dataloader():
        with torch.no_grad():
            constant = features.forward_head(features.forward_features(images.double()), pre_logits=True)
        loss = F.cross_entropy(head(constant), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(state["fc.weight"], head.weight.detach(), rtol=0, atol=1e-9)
    assert (head.weight - features.fc.weight).abs().max() > 0.01


@pytest.mark.parametrize("fast", [False, True])
def test_nothing_of_frozen_layers_changes_until_the_unfreezing(fast: bool) -> None:
    module = classifier(freeze=["stem", "layer1"], unfreeze_epoch=1, fast=fast)
    start = copy.deepcopy(module.network.double().state_dict())
    frozen, after = fit(module, val_check_interval=2)  # after a validation the modes are the same
    of_layers = {name for name in start if name.startswith(("conv1", "bn1", "layer1"))}
    assert {name for name in start if torch.equal(start[name], frozen[name])} == of_layers
    assert [name for name in start if torch.equal(frozen[name], after[name])] == []
    assert all(each.training for each in module.network.modules())


def test_both_loops_and_averages_of_weights_agree_over_the_unfreezing() -> None:
    runs = []
    for fast in (False, True):
        averaging = [EMAWeightAveraging(decay=0.9), LookAhead(every=2)]
        arguments = {"freeze": "backbone", "unfreeze_epoch": 1, "layer_decay": 0.5, "optimizer": "AdamW", "fast": fast}
        runs.append(fit(classifier(**arguments), *averaging, gradient_clip_val=0.5, accumulate_grad_batches=1 + fast))
        runs.append(fit(classifier(**{**arguments, "fast": not fast}), *averaging, gradient_clip_val=0.5,
                        accumulate_grad_batches=1 + fast))  # fmt: skip
    for one, other in (runs[:2], runs[2:]):
        assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("optimizer", ["AdamW", "MuonSGD", "Adagrad", "lamb", "lookahead_sgd", "muon"])
def test_optimizers_skip_what_has_no_gradient(optimizer: str) -> None:
    module = classifier(freeze="backbone", unfreeze_epoch=1, optimizer=optimizer, lr=0.01, decay_norm_and_bias=False)
    start = copy.deepcopy(module.network.double().state_dict())
    frozen, after = fit(module, limit_train_batches=2, limit_val_batches=0)
    assert torch.equal(start["layer1.0.conv1.weight"], frozen["layer1.0.conv1.weight"])
    assert not torch.equal(after["layer1.0.conv1.weight"], frozen["layer1.0.conv1.weight"])


def test_compiled_steps_follow_the_unfreezing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: real(function, backend="eager"))  # no C++ compiler
    found = [
        fit(
            classifier(freeze="backbone", unfreeze_epoch=1, compile=compile), limit_train_batches=2, limit_val_batches=0
        )
        for compile in (None, "default")
    ]
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=1e-6, atol=1e-9)


# The command line.


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--model.freeze", "layr1"], "model.freeze: 'layr1' is no module of the network, did you mean layer1"),
        (["--model.freeze", "[backbone, fc]"], "model.freeze: all parameters are frozen, leave out the classifier"),
        (["--model.freeze", "stem", "--model.unfreeze_epoch", "1"], "model.unfreeze_epoch: 1 is not allowed, give"),
        (["--model.freeze", "stem", "--model.unfreeze_epoch", "0"], "model.unfreeze_epoch: 0 is not allowed, give 1"),
        (["--model.unfreeze_epoch", "1"], "model.unfreeze_epoch: 1 is not allowed, give it with model.freeze alone"),
        (["--model.layer_decay", "1.5"], "model.layer_decay: 1.5 is not allowed, give a number above 0, at most 1"),
        (
            ["--model.freeze", "stem", "--model.unfreeze_epoch", "3", "--trainer.max_epochs", "-1"]
            + ["--trainer.max_steps", "9"],
            "model.unfreeze_epoch: 3 is not allowed, give --model.unfreeze_epoch below 1.8, the epochs of the run",
        ),
    ],
)
def test_a_mistake_is_one_line(cli: Callable[..., Result], args: list[str], line: str) -> None:
    Path("tiny.yaml").write_text(TINY)
    result = cli("fit", "-c", "tiny.yaml", *args)
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert line in result.err
    assert not Path("logs").exists()


def test_the_console_says_what_is_trained(cli: Callable[..., Result]) -> None:
    Path("tiny.yaml").write_text(TINY + "explain: null\n")
    freeze = ["--model.freeze", "backbone", "--model.unfreeze_epoch", "1", "--trainer.max_epochs", "2"]
    result = cli("fit", "-c", "tiny.yaml", *freeze)
    assert (result.status, result.err) == (0, "")
    total = sum(
        p.numel() for p in timm.create_model("cifar_resnet20", depths=[1], widths=[8], stem_width=8).parameters()
    )
    assert f"cifar_resnet20: {total:,} parameters, 90 of them are trained, all after epoch 1\n" in result.out
    assert f"unfrozen: all {total:,} parameters are trained\n" in result.out
    # a run goes on with other settings, too
    last = "logs/tiny/version_0/checkpoints/last.ckpt"
    more = ["--ckpt_path", last, "--trainer.max_epochs", "3", "--model.unfreeze_epoch", "null"]
    result = cli("fit", "-c", "tiny.yaml", *freeze, *more)
    assert (result.status, result.err) == (0, "")
    assert "model.unfreeze_epoch 1 -> None" in result.out
    assert f"{total:,} parameters, 90 of them are trained\n" in result.out

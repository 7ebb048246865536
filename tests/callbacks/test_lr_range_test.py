"""The range test: the losses of a plain training loop, and afterwards everything as before."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
import torch.nn.functional as F
from finder_runs import (
    Fidgety,
    Note,
    Rebinding,
    TwoRates,
    at_start,
    changed,
    digits,
    foreign,
    forgetful,
    on_ranks,
    own_generator,
    perceptron,
    small,
    snapshot,
)
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from cifar_resnets.callbacks.lr_range_test import EPOCHS_A_RUN, FIRST_EPOCH, range_test
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.schedules import Constant, OneCycle

RATES = np.geomspace(1e-3, 0.3, 12).tolist()


pytestmark = pytest.mark.usefixtures("one_thread")


def swept(module: Any, data: Any, rates=RATES, num_runs: int = 1, divergence: float = 1e9, **changes) -> Any:
    """The losses of each run of a range test."""
    return at_start(lambda run, m: range_test(run, m, rates, num_runs, divergence), module, data, **changes)


# The losses.


def batches(data, run: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a run: an order and an augmentation that no training comes to."""
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in itertools.count(FIRST_EPOCH + EPOCHS_A_RUN * run):
        loader.sampler.set_epoch(epoch)
        yield from loader


def trained(network, optimizer, source, rates=RATES, accumulate: int = 1, clip=None, run: int = 0) -> list[float]:
    """The losses of a training loop in plain torch, a rate a step."""
    torch.manual_seed(run)  # of dropout
    losses = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        parts = [F.cross_entropy(network(x), y) / accumulate for x, y in itertools.islice(source, accumulate)]
        for part in parts:
            part.backward()
        if clip:
            clip(network.parameters())
        optimizer.step()
        losses.append(sum(part.item() for part in parts))
    return losses


def sgd(network: nn.Module, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=1.0, momentum=momentum, nesterov=True, weight_decay=5e-4)


@pytest.mark.parametrize(
    ("schedule", "momentum"),
    [
        (Constant(), 0.9),
        (OneCycle(), 0.85),
        (OneCycle(base_momentum=0.5, lr_min="found"), 0.5),
        (OneCycle(cycle_momentum=False), 0.9),
    ],
)
@pytest.mark.parametrize("make", [forgetful, lambda: None], ids=["dropout", "residual"])
def test_the_losses_are_those_of_a_plain_training_loop(make, schedule, momentum):
    module, data = small(network=make(), schedule=schedule), digits()
    networks = [copy.deepcopy(module.network) for _ in range(2)]
    found = swept(module, data, num_runs=2)
    for run, network in enumerate(networks):
        assert found[run] == trained(network, sgd(network, momentum), batches(data, run), run=run)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("AdamW", functools.partial(torch.optim.AdamW, betas=(0.85, 0.999))),
        ("lamb", functools.partial(timm.optim.Lamb, betas=(0.85, 0.999))),
    ],
)
def test_the_optimizer_is_the_trainings(name, build):
    module, data = small(network=forgetful(), schedule=OneCycle(), optimizer=name, weight_decay=0.01), digits()
    network = copy.deepcopy(module.network)
    optimizer = build(network.parameters(), lr=1.0, weight_decay=0.01)
    # LAMB divides by norms of the whole network, whose sums differ in their last bit
    np.testing.assert_allclose(swept(module, data), [trained(network, optimizer, batches(data))], rtol=1e-6)


def test_more_steps_than_an_epoch_has_batches():
    module, data = small(network=perceptron(), schedule=OneCycle()), digits()
    network, rates, seen = copy.deepcopy(module.network), np.geomspace(1e-4, 0.1, 100).tolist(), []
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]) if len(inputs[0]) > 1 else None)
    [found] = swept(module, data, rates)
    assert found == trained(network, sgd(network, 0.85), batches(data), rates)
    assert len(found) == 100 and data.num_train_batches == 5
    assert len({images.sum().item() for images in seen}) == len(seen) == 100


def test_the_test_ends_where_the_loss_diverges():
    module, rates = small(network=perceptron()), np.geomspace(1e-4, 1e4, 60).tolist()
    [found] = swept(module, digits(), rates, divergence=4.0)
    assert 20 < len(found) < 60
    assert np.isfinite(found).all() and found[-1] > 4 * min(found)


# What a step is.


def test_accumulated_batches_are_one_batch_as_large():
    losses = {}
    for size, num in ((60, 1), (20, 3)):
        module, sizes = small(network=perceptron()), []
        module.network.register_forward_pre_hook(lambda _, inputs, seen=sizes: seen.append(len(inputs[0])))
        data = digits(batch_size=size, num_train=180)
        [losses[num]] = swept(module, data, accumulate_grad_batches=num)
        assert sizes[1:] == [size] * num * len(RATES)  # before them, one image on trial
    np.testing.assert_allclose(losses[3], losses[1], rtol=1e-4)


def test_accumulation_is_that_of_a_plain_training_loop():
    module, data = small(network=forgetful(), schedule=OneCycle()), digits()
    network = copy.deepcopy(module.network)
    expected = trained(network, sgd(network, 0.85), batches(data), accumulate=2)
    [found] = swept(module, data, accumulate_grad_batches=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "clip"),
    [
        ("norm", functools.partial(nn.utils.clip_grad_norm_, max_norm=0.1)),
        ("value", functools.partial(nn.utils.clip_grad_value_, clip_value=0.1)),
    ],
)
def test_gradients_are_clipped(algorithm, clip):
    module, data = small(network=forgetful(), schedule=OneCycle()), digits()
    network = copy.deepcopy(module.network)
    [found] = swept(module, data, gradient_clip_val=0.1, gradient_clip_algorithm=algorithm)
    np.testing.assert_allclose(found, trained(network, sgd(network, 0.85), batches(data), clip=clip), rtol=1e-6)
    assert found[0] == swept(module, data)[0][0] and found != swept(module, data)[0]


def test_precision_is_the_trainings():
    module, data = small(network=forgetful()), digits()
    [full], [half] = swept(module, data), swept(module, data, precision="bf16-mixed")
    assert full != half
    np.testing.assert_allclose(half[:6], full[:6], rtol=0.02)


def test_groups_keep_the_ratio_of_their_rates():
    module = small(TwoRates, network=perceptron(), schedule=Constant(), lr=0.3)
    swept(module, digits())
    np.testing.assert_allclose(module.rates, np.array([RATES, RATES]).T * [1, 10], rtol=1e-12)


class FrozenToo(ImageClassifier):
    """Whose optimizer is given all parameters, as `torch.optim` and Lightning's own optimizers allow."""

    def new_optimizer(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


def test_an_optimizer_may_hold_a_frozen_parameter():
    module = small(FrozenToo, network=perceptron(), schedule=Constant())
    module.network[2].weight.requires_grad_(False)
    assert len(swept(module, digits())[0]) == len(RATES)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.process
def test_two_ranks_lose_what_one_loses(tmp_path, accumulate):
    note = Note(tmp_path, lambda run, module: range_test(run, module, RATES, 1, 1e9))
    changes = {"accumulate_grad_batches": accumulate}
    [one] = on_ranks(1, small(network=perceptron()), digits(), note, **changes)
    both = on_ranks(2, small(network=perceptron()), digits(), note, **changes)
    assert both[0] == both[1]
    np.testing.assert_allclose(both[0][0], one[0], rtol=1e-4)


def test_data_without_a_batch_are_refused():
    with pytest.raises(ConfigurationError, match="no batch"):
        swept(small(schedule=Constant()), foreign(batch_size=300, drop_last=True), max_steps=3)


# Afterwards.


def unusual(layer: nn.Module) -> ImageClassifier:
    """A module of which everything that a test could change is other than usual."""
    module = small(network=nn.Sequential(layer, *forgetful(), nn.BatchNorm1d(10)))
    module.network[1].weight.requires_grad_(False)
    module.network[-1].eval()
    for parameter in module.network[-2].parameters():
        parameter.grad = torch.ones_like(parameter)
    return module


class Stop:
    """A hook that interrupts a forward, as Ctrl-C does."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, *_) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt


def interrupted(run, module) -> None:
    with pytest.raises(KeyboardInterrupt), module.network.register_forward_hook(Stop(5)):
        range_test(run, module, RATES)


@pytest.mark.parametrize("layer", [Fidgety, Rebinding])
@pytest.mark.parametrize("test", [lambda run, module: range_test(run, module, RATES, 2), interrupted])
def test_everything_is_as_before(layer, test):
    def action(run, module):
        before = snapshot(module)
        test(run, module)
        return changed(before, snapshot(module))

    data = digits(augment=Augmentation(mixup_alpha=1.0))
    assert at_start(action, unusual(layer()), data) == []


def batch_sampler() -> DataLoader:
    sampler = RandomSampler(range(200), generator=torch.Generator().manual_seed(3))
    return foreign(batch_size=1, batch_sampler=BatchSampler(sampler, 40, drop_last=False))


@pytest.mark.parametrize("test", [lambda run, module: range_test(run, module, RATES, 2), interrupted])
@pytest.mark.parametrize("make", [own_generator, batch_sampler, functools.partial(foreign, shuffle=True)])
def test_a_loader_goes_on_as_if_nothing_had_been_read(make, test):
    def action(run, module, test):
        torch.manual_seed(4)
        test(run, module)
        return [labels.tolist() for _, labels in run.train_dataloader]

    # the reference is a fit too: Lightning draws from the loader's generator before it trains
    with_test, without = (
        at_start(functools.partial(action, test=each), small(network=perceptron()), make())
        for each in (test, lambda run, module: None)
    )
    assert with_test == without

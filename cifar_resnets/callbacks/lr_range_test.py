"""Runs a learning-rate range test: some training steps at rising rates, after which everything is restored.

Source: Smith (2017), "Cyclical Learning Rates for Training Neural Networks", section 3.3. Departures: the rate may rise
exponentially, the loss of each batch is taken in place of the accuracy, and the test ends where the loss diverges.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.support.sandbox import random_numbers_kept
from cifar_resnets.training.lr_curve import has_diverged

# epochs that no training reaches: they have an order and an augmentation of their own
FIRST_EPOCH, EPOCHS_A_RUN = 10**9, 10**6
Batch = tuple[Tensor, Tensor]


def range_test(
    trainer: pl.Trainer,
    module: ImageClassifier,
    rates: Sequence[float],
    num_runs: int = 1,
    divergence: float = 4.0,
    on_step: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Trains for a step at each rate, on batches of its own, and restores everything.

    The steps are those of the training that follows, with its optimizer, at the momentum that its schedule has at the
    peak, its loss, gradient accumulation, gradient clipping, precision and ranks. Nothing is logged or validated, and
    no callback is called.

    Args:
        trainer: of a fit that has been set up.
        module: weights, buffers, gradients and random numbers are the same afterwards.
        rates: base learning rates, one for each step.
        num_runs: number of tests from the same weights, each on other batches.
        divergence: a test ends when the smoothed loss is this many times its smallest value, or not finite.
        on_step: called after each step.

    Returns:
        For each run the losses in nats, averaged over ranks and accumulated batches; fewer than rates after divergence.

    Raises:
        ConfigurationError: when there is no batch of training data.
    """
    runs = []
    device = trainer.strategy.root_device
    for run in range(num_runs):
        # not Lightning's `isolate_rng`, which restores nothing after an exception
        random_numbers = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with random_numbers_kept(), random_numbers, _restored(module), _batches(trainer, run) as batches:
            torch.manual_seed(run)  # of dropout, and of a sampler that draws from the global generator
            runs.append(_sweep(_Stepper(trainer, module, batches), rates, divergence, on_step))
    return runs


def _sweep(
    step: Callable[[float], float], rates: Sequence[float], divergence: float, on_step: Callable[[], object]
) -> list[float]:
    losses: list[float] = []
    for rate in rates:
        loss = step(rate)
        on_step()
        if not math.isfinite(loss):
            break
        losses.append(loss)
        if has_diverged(losses, divergence):
            break
    return losses


class _Stepper:
    """Takes training steps as the Trainer does."""

    def __init__(self, trainer: pl.Trainer, module: ImageClassifier, batches: Iterator[Batch]) -> None:
        self.trainer, self.module, self.batches = trainer, module, batches
        self.optimizer = module.new_optimizer()
        module.schedule.set_peak_momentum(self.optimizer)
        # parameter groups keep the ratio of their rates to the base rate
        self.ratios = [group["lr"] / module.hparams["lr"] for group in self.optimizer.param_groups]
        in_groups = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.parameters = [parameter for parameter in in_groups if parameter.requires_grad]
        # fp16 needs scaled gradients; a scaler of its own, because a scaler adapts to the gradients
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scaler = None if scaler is None else type(scaler)(device=trainer.strategy.root_device.type)

    def __call__(self, rate: float) -> float:
        """Takes a step; returns its loss."""
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = rate * ratio
        self.optimizer.zero_grad()
        num = self.trainer.accumulate_grad_batches
        loss = self._backward(num)
        for _ in range(num - 1):
            loss += self._backward(num)
        loss = self._mean_over_ranks(loss)
        self._clip_and_step()
        return float(loss)

    def _backward(self, num: int) -> Tensor:
        """Adds the gradients of one of `num` batches, and returns its share of the loss."""
        precision, strategy = self.trainer.precision_plugin, self.trainer.strategy
        images, labels = strategy.batch_to_device(precision.convert_input(next(self.batches)))
        with precision.forward_context():
            loss = self.module.loss(self.module(images), labels) / num
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        # not `backward`, which would call the hooks of a DistributedDataParallel that has run no forward
        gradients = torch.autograd.grad(scaled, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return loss.detach()

    def _mean_over_ranks(self, loss: Tensor) -> Tensor:
        """Averages the gradients, and returns the mean loss."""
        if self.trainer.world_size == 1:
            return loss
        used = [(parameter, parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        flat = torch.cat([loss.reshape(1), *(gradient.reshape(-1) for _, gradient in used)])  # one message for all
        mean = self.trainer.strategy.reduce(flat, reduce_op="mean")
        assert isinstance(mean, Tensor)
        loss, *means = torch.split(mean, [1, *(gradient.numel() for _, gradient in used)])
        for (parameter, gradient), each in zip(used, means, strict=True):
            parameter.grad = each.reshape_as(gradient)
        return loss

    def _clip_and_step(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        clip, algorithm = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        self.module.configure_gradient_clipping(self.optimizer, clip, algorithm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


@contextmanager
def _restored(module: torch.nn.Module) -> Iterator[None]:
    """Restores parameters, gradients, and buffers, also those that a state dict leaves out."""
    buffers = [(each, *named) for each in module.modules() for named in each.named_buffers(recurse=False)]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    tensors = [*module.parameters(), *module.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for owner, name, buffer in buffers:  # a layer may have replaced the tensor
            setattr(owner, name, buffer)
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _batches(trainer: pl.Trainer, run: int) -> Iterator[Iterator[Batch]]:
    """Repeats the training data without end; the iteration of the training itself is not changed."""
    loader = _loader(trainer)
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = [getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    generators: set[Any] = {getattr(part, "generator", None) for part in (loader, *samplers)}
    states = [(each, each.get_state()) for each in generators if isinstance(each, torch.Generator)]
    try:
        for generator, _ in states:
            generator.manual_seed(run)
        yield _endless(loader, getattr(samplers[0], "set_epoch", lambda epoch: None), FIRST_EPOCH + EPOCHS_A_RUN * run)
    finally:
        for generator, state in states:
            generator.set_state(state)


def _loader(trainer: pl.Trainer) -> Any:
    if isinstance(data := getattr(trainer, "datamodule", None), ImageDataModule):
        return data.train_dataloader()  # a new one
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    return trainer.train_dataloader


def _endless(loader: Any, set_epoch: Callable[[int], object], first: int) -> Iterator[Batch]:
    for epoch in itertools.count(first):
        set_epoch(epoch)
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ConfigurationError("LRFinder: the training data have no batch")

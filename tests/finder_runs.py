"""Small runs for the tests of the range test and of what is done with it: networks, data, trainers."""

from __future__ import annotations

import json
import math
import pickle
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from support import TINY_NETWORK
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_resnets.callbacks.lr_finder import LRFinder
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.training.lr_search import Search
from cifar_resnets.training.schedules import OneCycle

NAMES = list("0123456789")
FOUND = OneCycle(lr_min="found")
SMALL = TINY_NETWORK


def small(cls: type[ImageClassifier] = ImageClassifier, network: nn.Module | None = None, **changes: Any) -> Any:
    """A classifier of one block, or of another network, with the same weights at every call."""
    torch.manual_seed(0)
    module = cls(NAMES, **{"network_args": SMALL} | changes)
    module.network = network or module.network
    return module


def perceptron() -> nn.Sequential:
    """A network without batch normalisation: the loss of an image depends on no other image."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))


def forgetful() -> nn.Sequential:
    """A network with batch normalisation and dropout: buffers and random numbers change in each step."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)
    return nn.Sequential(*stem, nn.Flatten(), nn.Linear(512, 10))


class TwoRates(ImageClassifier):
    """Whose last layer learns ten times as fast; notes the rates of each step."""

    def new_optimizer(self) -> torch.optim.Optimizer:
        """See `ImageClassifier.new_optimizer`; the optimizer's default rate is left as torch has it."""
        *body, last = self.network.children()
        rest, lr = [p for layer in body for p in layer.parameters()], self.hparams["lr"]
        groups = [{"params": rest, "lr": lr}, {"params": list(last.parameters()), "lr": 10 * lr}]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.rates: list[list[float]] = []
        optimizer.register_step_pre_hook(lambda o, *_: self.rates.append([g["lr"] for g in o.param_groups]))
        return optimizer


class Fidgety(nn.Module):
    """A layer that changes its buffers and draws from all generators."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(1))
        self.register_buffer("lost", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.kept += 1
        self.lost += random.random() + np.random.rand()
        return F.dropout(x, 0.1)


class Rebinding(Fidgety):
    """A layer that puts new tensors in the place of its buffers, as is usual for running averages."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept, self.lost = self.kept + 1, self.lost * 0.9 + 1
        return x


def digits(**changes: Any) -> Digits:
    """Five batches of 40 images an epoch."""
    return Digits(**{"batch_size": 40, "num_train": 200} | changes)


def foreign(**arguments: Any) -> DataLoader:
    """A loader that is not of ours: 200 images in batches of 40."""
    data = digits(augment=None)
    data.setup("fit")
    images, labels = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))
    return DataLoader(TensorDataset(images, labels), **{"batch_size": 40} | arguments)


def own_generator() -> DataLoader:
    """A loader that shuffles with a generator of its own."""
    return foreign(shuffle=True, generator=torch.Generator().manual_seed(3))


def trainer(*callbacks: pl.Callback, **changes: Any) -> pl.Trainer:
    """A Trainer of two epochs that shows and writes nothing."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "limit_val_batches": 0, "max_epochs": 2}
    return pl.Trainer(callbacks=list(callbacks), **quiet | changes)


class AtStart(pl.Callback):
    """Does something at the start of a fit, in the place of the training."""

    def __init__(self, action: Callable[[pl.Trainer, ImageClassifier], Any]) -> None:
        self.action = action

    def on_fit_start(self, trainer, pl_module) -> None:
        self.result = self.action(trainer, pl_module)
        trainer.fit_loop.max_epochs = 0


def at_start(action: Callable[[pl.Trainer, ImageClassifier], Any], module: Any, data: Any, **changes: Any) -> Any:
    """What an action returns when a fit begins."""
    callback = AtStart(action)
    trainer(callback, **changes).fit(module, data)
    return callback.result


class Note(pl.Callback):
    """Writes what an action says on each rank once a fit is set up, after the callbacks before it."""

    def __init__(self, folder: Path, action: Callable[[pl.Trainer, ImageClassifier], Any]) -> None:
        self.folder, self.action = folder, action

    def on_fit_start(self, trainer, pl_module) -> None:
        noted = json.dumps(self.action(trainer, pl_module))
        (self.folder / f"{trainer.world_size}-{trainer.global_rank}.json").write_text(noted)


def on_ranks(ranks: int, module: Any, data: Any, note: Note, *before: pl.Callback, **changes: Any) -> list[Any]:
    """What each rank notes in a fit of an epoch."""
    # ranks that wait for each other in vain end with an error
    fork = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=15))
    strategy = {"strategy": fork, "devices": ranks} if ranks > 1 else {}
    trainer(*before, note, **{"max_epochs": 1} | strategy | changes).fit(module, data)
    return [json.loads((note.folder / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


def snapshot(module: nn.Module) -> dict[str, Any]:
    """All that a range test could leave changed."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    gradients = {f"{name}.grad": tensor.grad for name, tensor in tensors.items()}
    values = {k: None if v is None else v.detach().clone() for k, v in {**tensors, **gradients}.items()}
    flags = {f"{name} training": part.training for name, part in module.named_modules()}
    needed = {f"{name} required": tensor.requires_grad for name, tensor in tensors.items()}
    states = {"python": random.getstate(), "numpy": pickle.dumps(np.random.get_state()), "torch": torch.get_rng_state()}
    return {**values, **flags, **needed, **states}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what is no longer the same."""
    assert before.keys() == after.keys()
    return [name for name, value in before.items() if not equal(value, after[name])]


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same, tensors in each bit."""
    return torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else one == other


def quick(network: Callable[[], nn.Module] = perceptron, **changes: Any) -> ImageClassifier:
    """A classifier that trains fast, with both rates of a one-cycle to be found."""
    return small(network=network(), **{"schedule": FOUND} | changes)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by their paths."""
    if not isinstance(value, (dict, list, tuple)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, part in items for k, v in flat(part, f"{name}/{key}").items()}


def trained(path: Path, module: ImageClassifier, data: Any, *callbacks: pl.Callback, **changes: Any) -> dict[str, Any]:
    """The final checkpoint of a fit."""
    run = trainer(*callbacks, **changes)
    torch.manual_seed(5)  # of dropout, and of a loader that draws from the global generator
    run.fit(module, data)
    run.save_checkpoint(path)
    return flat(torch.load(path, weights_only=True))


class Spy(pl.Callback, Logger):
    """Notes each hook that is called and each figure that is logged."""

    name = version = "spy"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.seen.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        self.seen.append(dict(params))


def _noting(name: str):
    return lambda self, *_, **__: self.seen.append(name)


for _hook in dir(pl.Callback):
    if _hook.startswith("on_"):
        setattr(Spy, _hook, _noting(_hook))


class Counting(LRFinder):
    """Keeps what each search finds, and the step before which it was run."""

    def search(self, trainer, module) -> Search:
        found = super().search(trainer, module)
        self.searches = [*getattr(self, "searches", []), (trainer.global_step, found)]
        return found


class Rates(pl.Callback):
    """Notes the rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


class NotFinite(ImageClassifier):
    """Whose first loss, that of the test's first step, is not finite."""

    bad: float | None = math.nan

    def loss(self, logits, labels):
        factor, self.bad = self.bad or 1.0, None
        return super().loss(logits, labels) * factor

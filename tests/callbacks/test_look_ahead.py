"""LookAhead against a plain loop, and resumed."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnets.callbacks.look_ahead import LookAhead
from cifar_resnets.errors import ConfigurationError

STEPS = 14
INPUTS = torch.randn(STEPS, 8, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


class Small(pl.LightningModule):
    """A batch norm and a linear layer: weights, running averages, and a counter that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.network(batch), LABELS)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(steps: int = STEPS, ckpt: Path | None = None, folder: Path | None = None, **options) -> Small:
    """Trains a module with LookAhead in a Trainer of STEPS steps, stopped after `steps`."""
    module, look_ahead = Small(), LookAhead(every=3, max_decay=0.7, power=2.0)

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == steps < STEPS:
                trainer.save_checkpoint(folder / "stopped.ckpt")
                trainer.should_stop = True

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, min_steps=0, callbacks=[look_ahead, Stop()], **off, **options)
    trainer.fit(module, Batches(), ckpt_path=ckpt)
    return module


class Batches:
    """The inputs, from which a resumed epoch goes on."""

    done = 0

    def __len__(self) -> int:
        return STEPS

    def __iter__(self):
        for index in range(self.done, STEPS):
            self.done = index + 1
            yield INPUTS[index]

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def reference(accumulate: int = 1) -> dict[str, torch.Tensor]:
    """The weights of a plain loop."""
    module = Small()
    optimizer = module.configure_optimizers()
    slow = copy.deepcopy(module.network.state_dict())
    total, step = -(-STEPS // accumulate), 0

    def move(decay: float) -> None:
        for name, weight in module.network.state_dict().items():
            if weight.is_floating_point():
                slow[name] = slow[name] * decay + weight * (1 - decay)
                weight.copy_(slow[name])

    for number, batch in enumerate(INPUTS, start=1):
        (module.training_step(batch, 0) / accumulate).backward()
        if number % accumulate and number != STEPS:
            continue
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 3 == 0:
            move(0.7 * (step / total) ** 2)
    move(1.0)
    return module.network.state_dict()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_weights_equal_those_of_a_plain_loop(accumulate):
    trained = fit(accumulate_grad_batches=accumulate).network.state_dict()
    for name, expected in reference(accumulate).items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-6, atol=1e-6, msg=name)


def test_without_it_the_weights_are_others():
    module = Small()
    optimizer = module.configure_optimizers()
    for batch in INPUTS:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    assert not torch.allclose(module.network[1].weight, fit().network[1].weight, atol=1e-3)


@pytest.mark.parametrize("steps", [4, 6])  # between two moves, and right after one
def test_a_resumed_run_ends_with_the_same_weights(steps, tmp_path):
    fit(steps, folder=tmp_path)
    resumed = fit(ckpt=tmp_path / "stopped.ckpt").network.state_dict()
    for name, expected in fit().network.state_dict().items():
        assert torch.equal(resumed[name], expected), name


@pytest.mark.parametrize("values", [{"every": 0}, {"max_decay": 1.0}, {"power": 0.0}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ConfigurationError, match=f"LookAhead.{next(iter(values))}"):
        LookAhead(**values)

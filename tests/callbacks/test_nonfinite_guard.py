"""What a run is kept from, with real Trainers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.callbacks.nonfinite_guard import NonfiniteGuard
from cifar_resnets.callbacks.writable_folders import WritableFolders
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.cli.config_checks import check_strategy
from cifar_resnets.data.digits import Digits
from cifar_resnets.errors import ConfigurationError, DivergenceError, OutputError
from cifar_resnets.runs.run_dir import check_writable

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"depths": [1], "widths": [8], "stem_width": 8}


class Poisoned(ImageClassifier):
    """Some of whose steps have a loss, or gradients, that are not finite; steps counted from 1."""

    bad: tuple[int, ...] = ()
    infinite_loss = False

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        value = super().loss(logits, labels)
        if self.trainer.global_step + 1 not in self.bad:
            return value
        # the second leaves the gradients as they are
        return value + math.inf if self.infinite_loss else value * math.nan


def fit(guard: NonfiniteGuard, bad: tuple[int, ...], infinite: bool = False, steps: int = 6, **more: Any) -> Poisoned:
    data = Digits(batch_size=20, num_train=200)
    pl.seed_everything(0, verbose=False)
    module = Poisoned(data.class_names, "cifar_resnet20", TINY, lr=0.05)
    module.bad, module.infinite_loss = bad, infinite
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[guard], limit_val_batches=0, num_sanity_val_steps=0, **more,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


class Snapshots(NonfiniteGuard):
    """Notes the weights before each step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.weights: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()]))
        super().on_before_optimizer_step(trainer, pl_module, optimizer)


@pytest.mark.parametrize("infinite", [False, True], ids=["nan gradients", "infinite loss alone"])
def test_a_bad_step_ends_the_run_before_its_update(infinite: bool) -> None:
    with pytest.raises(DivergenceError, match=r"in step 3, epoch 1, at a learning rate of 0\.0"):
        fit(NonfiniteGuard(), (3,), infinite)


@pytest.mark.parametrize("infinite", [False, True], ids=["nan gradients", "infinite loss alone"])
def test_a_skipped_step_changes_nothing(infinite: bool, capsys: pytest.CaptureFixture[str]) -> None:
    guard = Snapshots("skip", 2)
    module = fit(guard, (3, 4), infinite)
    steps = [not torch.equal(one, other) for one, other in zip(guard.weights, guard.weights[1:], strict=False)]
    assert steps == [True, True, False, False, True]
    assert capsys.readouterr().out.count("skipped step") == 2
    assert all(p.isfinite().all() for p in module.parameters())
    assert module.train_metrics.is_empty  # logged, of the steps that were taken
    assert math.isfinite(module.trainer.callback_metrics["train/loss"])


def test_so_many_in_a_row_and_no_more() -> None:
    fit(NonfiniteGuard("skip", 2), (2, 3, 5, 6))
    with pytest.raises(DivergenceError, match="3 times in a row in step 4"):
        fit(NonfiniteGuard("skip", 2), (2, 3, 4))


def test_the_count_is_not_forgotten_by_a_resumed_run() -> None:
    first, second = NonfiniteGuard("skip", 2), NonfiniteGuard("skip", 2)
    first.num_skipped = 2
    second.load_state_dict(first.state_dict())
    assert second.num_skipped == 2


def test_without_a_guard_the_weights_would_be_lost() -> None:
    class Blind(NonfiniteGuard):
        def on_before_optimizer_step(self, *args: Any) -> None:
            pass

    with pytest.raises(
        DivergenceError, match="the training loss became infinite or NaN"
    ):  # the module sees it, hours later
        fit(Blind(), (3,))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_gradient_among_many_is_found(bad: float, dtype: torch.dtype) -> None:
    network = torch.nn.ModuleList([torch.nn.Linear(40, 40), torch.nn.Linear(3, 2)]).to(dtype)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer, module = torch.optim.SGD(network.parameters(), lr=0.1), ImageClassifier(["a", "b"], network_args=TINY)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    NonfiniteGuard().on_before_optimizer_step(trainer, module, optimizer)
    network[0].weight.grad[7, 3] = bad
    with pytest.raises(DivergenceError, match="in step 1"):
        NonfiniteGuard().on_before_optimizer_step(trainer, module, optimizer)


def test_a_count_that_makes_no_sense() -> None:
    with pytest.raises(ConfigurationError, match=r"max_skipped_steps: 0 is not allowed"):
        NonfiniteGuard("skip", 0)


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b", "key")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"key: .*file/deeper cannot be written"):
        check_writable(tmp_path / "file/deeper", "key")


def test_the_folders_of_all_checkpoints_are_tried_before_a_fit(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[LastCheckpoint(dirpath=str(tmp_path / "file"))])
    folders = WritableFolders(tmp_path)
    folders.setup(trainer, pl.LightningModule(), "test")
    with pytest.raises(OutputError, match="dirpath of the checkpoints"):
        folders.setup(trainer, pl.LightningModule(), "fit")


def test_strategies_that_do_not_serve_are_refused() -> None:
    for strategy in ("ddp", "ddp_fork"):
        check_strategy(pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False))
    with pytest.raises(ConfigurationError, match="ddp_spawn is not supported, give ddp"):
        check_strategy(pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False))

"""Counters of a fit in checkpoints; that Lightning goes on from them exactly is shown in test_continuation.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from cifar_resnets.runs.loop_state import settle


class Settles(pl.Callback):
    """Settles the counters in each hook in which a checkpoint may be written."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int, int]] = []

    def note(self, trainer: pl.Trainer, hook: str) -> None:
        loops: dict[str, Any] = trainer.fit_loop.state_dict()
        place = settle(trainer, loops)
        batch, epoch = loops["epoch_loop.batch_progress"]["current"], loops["epoch_progress"]["current"]
        assert batch["completed"] == batch["processed"] == batch["ready"]
        self.seen.append((hook, place, batch["completed"], epoch["completed"]))

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.note(trainer, "batch")

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.note(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.note(trainer, "epoch")


def test_each_hook_is_over(tmp_path: Path) -> None:
    settles = Settles()
    pl.Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=2, limit_val_batches=1, num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[settles],
    ).fit(BoringModel())  # fmt: skip
    assert settles.seen == [
        (hook, hook, batch, epoch + (hook == "epoch"))
        for epoch in (0, 1)
        for hook, batch in (("batch", 1), ("batch", 2), ("validation", 2), ("epoch", 2))
    ]


def test_private_names_that_this_uses_are_there() -> None:
    epoch_loop = pl.Trainer(accelerator="cpu", logger=False).fit_loop.epoch_loop
    assert hasattr(epoch_loop.val_loop, "_restart_stage")
    assert "_batches_that_stepped" in epoch_loop.on_save_checkpoint()
    with pytest.raises(AttributeError):
        epoch_loop.val_loop._no_such_name  # noqa: B018  # what the lines above would raise

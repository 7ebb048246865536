"""How a Trainer writes and reads with it."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from cifar_resnets.errors import CheckpointError
from cifar_resnets.runs.checkpoint_file import AtomicCheckpointIO, read_checkpoint_file


def trainer(max_steps: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_steps=max_steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()],
    )  # fmt: skip


def test_a_trainer_goes_on_from_what_it_wrote(tmp_path: Path) -> None:
    first, model = trainer(2), BoringModel()
    first.fit(model)
    first.save_checkpoint(tmp_path / "a/b/x.ckpt")
    second, again = trainer(3), BoringModel()
    second.fit(again, ckpt_path=tmp_path / "a/b/x.ckpt")
    assert second.global_step == 3
    assert read_checkpoint_file(tmp_path / "a/b/x.ckpt")["global_step"] == 2


def test_nothing_is_read_otherwise_than_as_plain_values(tmp_path: Path) -> None:
    torch.save({"x": Path("x")}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=False)


def test_removing(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x.ckpt")
    for _ in range(2):
        AtomicCheckpointIO().remove_checkpoint(tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []

"""Corrects the loop counters in a checkpoint, so that Lightning resumes exactly where the checkpoint was written.

Lightning 2.6 saves its counters as they are in the middle of a hook. A fit that is resumed from them is off by a
logging step within an epoch, skips a validation that was due, and ends an epoch twice. Here the counters are those
after the hook. tests/callbacks/test_exact_resume.py compares resumed runs with uninterrupted ones, and fails if
Lightning changes.
"""

from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import RestartStage

Place = Literal["batch", "validation", "epoch"]


def settle(trainer: pl.Trainer, loops: dict[str, Any]) -> Place:
    """Sets the counters in a checkpoint to their values after the hook that is running.

    Args:
        trainer: in a fit.
        loops: the part `fit_loop` of the checkpoint's `loops`, changed in place.

    Returns:
        What has just ended: a batch, a validation, or an epoch.
    """
    batch, epoch = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    if epoch["current"]["processed"] > epoch["current"]["completed"]:
        _complete(epoch)
        loops["state_dict"].pop("combined_loader", None)  # the next epoch begins with its first batch
        return "epoch"
    if batch["current"]["processed"] == batch["current"]["completed"]:
        return "validation"
    _complete(batch)
    # private: whether a validation follows; it is logged at the step before
    if not trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]  # it is there
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    return "batch"


def enter(trainer: pl.Trainer, place: Place) -> None:
    """Makes a resumed fit go on at a place; called when Lightning has restored the counters.

    Args:
        trainer: at the start of the training.
        place: see `settle`.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    if place == "epoch":
        epoch_loop.restarting = False  # a new epoch
    elif place == "batch":
        # private: if a validation is due here, Lightning goes on with one that was interrupted before its first batch
        epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
        epoch_loop.val_loop.batch_progress.current.reset()


def _complete(progress: dict[str, Any]) -> None:
    for part in ("total", "current"):
        progress[part]["completed"] += 1

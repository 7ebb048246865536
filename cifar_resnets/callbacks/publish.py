"""When figures are made, and where they go: to TensorBoard under a tag, and to a PNG beside the logs."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from cifar_resnets.callbacks.progress import num_epochs
from cifar_resnets.figures.render import to_image
from cifar_resnets.support.atomic_file import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = 10  # a run, if the user does not say how often: as many as TensorBoard keeps of a tag


def is_due(trainer: pl.Trainer, every_n_epochs: int | None) -> bool:
    """Whether figures are to be made after the validation that just ran.

    Args:
        trainer: in a fit or another stage.
        every_n_epochs: so often in a fit; ten times a run, evenly, if None. Where not every epoch is validated, after
            the next one that is. Always after the last, and after `validate`; never after the sanity check.
    """
    if trainer.state.fn != "fit":
        return True
    epochs, gap = num_epochs(trainer), _epochs_between_validations(trainer)
    times, span = (TIMES, epochs) if every_n_epochs is None else (1, every_n_epochs)
    done = trainer.current_epoch + 1
    passed = done * times // span > (done - gap) * times // span
    return not trainer.sanity_checking and (passed or done + gap > epochs)


def _epochs_between_validations(trainer: pl.Trainer) -> int:
    """Rounded up; the interval may also be given in batches, over the ends of epochs."""
    batches = trainer.val_check_batch or 1
    return trainer.check_val_every_n_epoch or max(1, math.ceil(batches / trainer.num_training_batches))


def output_dir(trainer: pl.Trainer, run_dir: Path | None) -> Path | None:
    """Where files go: the run's folder, or else the logger's; None without either. All ranks have to call it."""
    if run_dir is None and trainer.loggers and (log_dir := trainer.log_dir):  # a broadcast
        return Path(log_dir)
    return run_dir


def publish(
    trainer: pl.Trainer, folder: Path | None, tag: str, picture: Figure | Image.Image, step: int | None = None
) -> None:
    """Shows a picture in TensorBoard, and writes it as `figures/<tag>.png`, which replaces an earlier one.

    Args:
        trainer: whose loggers are used; only rank 0 may call this.
        folder: see `output_dir`; no file is written if None.
        tag: the name in TensorBoard, for example `val_confusion/matrix`.
        picture: a figure, or an RGB image.
        step: of the weights that it shows; the newest if not given.
    """
    image = picture if isinstance(picture, Image.Image) else to_image(picture)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            at = trainer.global_step if step is None else step
            logger.experiment.add_image(tag, np.asarray(image), at, dataformats="HWC")
    if folder is not None:
        path = folder / "figures" / f"{tag.replace('/', '_')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            image.save(file, "PNG")


@contextmanager
def garbage_collected() -> Iterator[None]:
    """Frees at the end of the block what was made in it and refers to itself, as figures do.

    Python would look for it many epochs later, and a search through all objects takes half a second: with the collector
    off until then, what is young is hardly more than what the block has made.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if was_enabled:
            gc.enable()

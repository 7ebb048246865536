"""Decides when figures are made, and publishes them: to the loggers under a tag, and as files beside the logs."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image, ImageOps

from cifar_resnets.callbacks.progress import num_epochs
from cifar_resnets.figures.gallery import Gallery
from cifar_resnets.figures.render import to_image
from cifar_resnets.support.atomic_file import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = 10  # a run, if the user does not say how often: as many as TensorBoard keeps of a tag


def is_due(trainer: pl.Trainer, every_n_epochs: int | None) -> bool:
    """Returns whether figures are to be made after the validation that just ran.

    Always after the last validation of a fit, and after `validate`; never after the sanity check.

    Args:
        trainer: in any stage.
        every_n_epochs: epochs from one figure of a fit to the next, or to the next validation after that; ten times
            a run, evenly, if None.
    """
    if trainer.state.fn != "fit":
        return True
    epochs, gap = num_epochs(trainer), _epochs_between_validations(trainer)
    times, span = (TIMES, epochs) if every_n_epochs is None else (1, every_n_epochs)
    done = trainer.current_epoch + 1
    passed = done * times // span > (done - gap) * times // span
    return not trainer.sanity_checking and (passed or done + gap > epochs)


def _epochs_between_validations(trainer: pl.Trainer) -> int:
    """Returns the validation interval in epochs, rounded up; it may be given in batches that span several epochs."""
    batches = trainer.val_check_batch or 1
    return trainer.check_val_every_n_epoch or max(1, math.ceil(batches / trainer.num_training_batches))


def output_dir(trainer: pl.Trainer, run_dir: Path | None) -> Path | None:
    """Returns the folder for files: the run's, or else the logger's, or None; all ranks have to call it."""
    if run_dir is None and trainer.loggers and (log_dir := trainer.log_dir):  # a broadcast
        return Path(log_dir)
    return run_dir


def has_pictures(trainer: pl.Trainer) -> bool:
    """Returns whether a logger shows pictures."""
    return any(isinstance(each, (TensorBoardLogger, WandbLogger, MLFlowLogger)) for each in trainer.loggers)


def publish(
    trainer: pl.Trainer,
    folder: Path | None,
    tag: str,
    picture: Figure | Image.Image,
    step: int | None = None,
    height: int = 0,
) -> None:
    """Shows a picture in the loggers, and writes it as `figures/<tag>.png`, which replaces an earlier one.

    Args:
        trainer: provides the loggers; only rank 0 may call this.
        folder: see `output_dir`; no file is written if None.
        tag: the name in the loggers, for example `val_confusion/matrix`.
        picture: a figure, or an RGB image.
        step: of the weights that it shows; the newest if not given.
        height: least height of the image in the loggers, in pixels: the pictures of a tag should have one size.
    """
    image = picture if isinstance(picture, Image.Image) else to_image(picture)
    padded = ImageOps.expand(image, (0, 0, 0, max(0, height - image.height)), "white")
    for logger in trainer.loggers:
        _show(logger, tag, padded, trainer.global_step if step is None else step)
    if folder is not None:
        path = folder / "figures" / f"{tag.replace('/', '_')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            image.save(file, "PNG")


def _show(logger: Logger, tag: str, image: Image.Image, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(tag, [image], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, image, key=tag, step=step)


def write_gallery(path: Path, gallery: Gallery, layers: Iterable[str], method: str) -> None:
    """Writes `gallery.npz`: a gallery with its heatmaps, and the layers and the method that these are of."""
    heat = np.zeros((0, 2, *gallery.images.shape[1:3])) if gallery.heat is None else gallery.heat
    write_arrays(
        path,
        **gallery.columns(),
        heat_predicted=heat[:, 0].astype(np.float16),
        heat_true=heat[:, 1].astype(np.float16),
        layer=np.array("" if gallery.heat is None else ", ".join(layers)),
        method=np.array(method),
    )


def write_arrays(path: Path, /, **arrays: Any) -> None:
    """Writes a compressed .npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


@contextmanager
def garbage_collected() -> Iterator[None]:
    """Frees objects in reference cycles, such as figures, at the end of the block.

    Python would collect them many epochs later, and a full collection takes half a second. With the collector disabled
    in the block, its youngest generation is little more than what the block has made.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if was_enabled:
            gc.enable()

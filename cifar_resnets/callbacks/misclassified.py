"""Shows which images the network gets wrong, and where it looked."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from cifar_resnets.callbacks.collectors import SampleCollector
from cifar_resnets.callbacks.progress import print_line
from cifar_resnets.callbacks.publish import is_due, output_dir, publish
from cifar_resnets.cam.explainer import Attention, reclassified
from cifar_resnets.cam.feature_maps import check_layers
from cifar_resnets.cam.gradcam import METHODS
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import ConfigurationError, require
from cifar_resnets.evaluation.mistakes import (
    Chosen,
    Samples,
    TopLosses,
    by_pair,
    in_order_of,
    ranked,
    shown,
    write_arrays,
)
from cifar_resnets.figures.gallery import Gallery, draw_gallery
from cifar_resnets.support.sandbox import plain_network

WORST, SAME = "most_confident", "same_images"
MOST, MAX_SIDE = 500, 64  # images in a picture or in mistakes.npz, and the largest side of the latter in pixels

_require = functools.partial(require, "Misclassified")
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Misclassified(pl.Callback):
    """Shows the most confidently wrong images of each evaluation, and where the network looked.

    Pictures in TensorBoard and below `figures` beside the logs: `val_misclassified/most_confident`,
    `val_misclassified/same_images`, whose images stay those of the run's first picture, and
    `test_misclassified/most_confident`. A test also writes `gallery.npz` and `mistakes.npz`, with up to 500 mistakes.

    Images are counted in the order of the data, as `ImageDataModule` and a `DataLoader` without shuffling have it.

    Args:
        num_samples: images in a picture, at most 500.
        every_n_epochs: so often in a fit; ten times a run if not given. Always after the last epoch, and after `test`.
        method: how heatmaps are computed: `gradcam`, or the name of another method of pytorch-grad-cam.
        layers: names of the network's modules whose heatmaps are averaged, for example `[layer2, layer3]`; the last
            with 8x8 units or more if not given.
        receptive_field: whether a box shows what the hottest unit for the predicted class sees of the image.

    Raises:
        ConfigurationError: for a value out of range; before the first step, for a layer that the network does not have,
            or a network whose receptive fields cannot be followed.
    """

    num_samples: int = 16
    every_n_epochs: int | None = None
    method: str = "gradcam"
    layers: list[str] | None = None
    receptive_field: bool = False
    run_dir: Path | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _require(1 <= self.num_samples <= MOST, "num_samples", self.num_samples, f"1 to {MOST}")
        every = self.every_n_epochs
        _require(every is None or every >= 1, "every_n_epochs", every, "1 or more")
        _require(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        _require(self.layers != [], "layers", self.layers, "one name or more, or null")
        self._kept: SampleCollector | None = None
        self._same: list[int] | None = None
        self._attention: Attention | None = None
        self._gave_up = False
        self._printed = ""

    # What stays from one evaluation to the next.

    def state_dict(self) -> dict[str, Any]:
        """The places in the data of the images that stay the same."""
        return {} if self._same is None else {"same_images": list(self._same)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed fit goes on with the same images."""
        self._same = [int(place) for place in state_dict["same_images"]][: self.num_samples]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses layers that are not there."""
        assert isinstance(pl_module, ImageClassifier)
        if self.layers is not None:
            check_layers(plain_network(pl_module.network), self.layers)
        self._kept, self._attention, self._gave_up = None, None, False
        if stage == "fit" and trainer.global_step == 0:  # a resumed fit gets its state after this
            self._same = None

    # An evaluation.

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the layer, and refuses what cannot be drawn, before anything is trained."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # of Lightning
            self._prepare(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to keep images."""
        self._start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to keep images."""
        self._start(trainer, pl_module, TopLosses(MOST, MAX_SIDE))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the images of a batch that are the most confidently wrong so far."""
        if self._kept is not None:
            loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
            self._kept.update(trainer, loaders, batch_idx, batch, outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws, if it is time to."""
        if self._kept is not None and is_due(trainer, self.every_n_epochs):
            self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws."""
        self._finish(trainer, pl_module, "test")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the last validation, if it was not time to yet: a run may end early."""
        self._finish(trainer, pl_module, "val")

    def _start(self, trainer: pl.Trainer, module: pl.LightningModule, *more: TopLosses) -> None:
        self._kept = None
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]  # of Lightning
            return
        if trainer.state.fn != "fit":
            self._prepare(trainer, module)
        same = self._same if self._same and trainer.state.fn == "fit" else []
        self._kept = SampleCollector([TopLosses(self.num_samples), Chosen(same), *more], trainer.global_step)

    def _finish(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        kept, self._kept = self._kept, None
        if kept is None:
            return
        folder = output_dir(trainer, self.run_dir)
        top, same, *more = kept.pop(trainer)
        if top is None:  # there was no batch
            return
        top = ranked(top, self.num_samples)
        if trainer.state.fn == "fit" and self._same is None:
            self._same, same = by_pair(top).index.tolist(), top
        if not trainer.is_global_zero:
            return
        assert isinstance(module, ImageClassifier)
        if trainer.global_step != kept.global_step:  # at the end of a fit, epochs after its last validation
            top, same = reclassified(module.network, top), same and reclassified(module.network, same)
        gallery = self._show(trainer, module, folder, f"{stage}_misclassified/{WORST}", by_pair(top.take(top.wrong)))
        if same is not None and self._same is not None:
            self._show(trainer, module, folder, f"{stage}_misclassified/{SAME}", in_order_of(self._same, same))
        if folder is not None and more and more[0] is not None:
            self._write(folder, gallery, _gallery(trainer, ranked(more[0].take(more[0].wrong), MOST)))

    # A picture.

    def _prepare(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Chooses the layer where the size of the images is known: a plain DataLoader tells it by its first batch."""
        data = getattr(trainer, "datamodule", None)
        if self._attention is not None or not isinstance(data, ImageDataModule):
            return
        # not zeros, on which units may be dead; from a generator of its own
        noise = torch.randn(1, 3, *data.image_shape, generator=torch.Generator().manual_seed(0))
        try:
            self._attend(trainer, module, noise.to(module.device))
        except ConfigurationError as error:
            if self.layers or self.receptive_field:
                raise
            self._give_up(error)

    def _attend(self, trainer: pl.Trainer, module: pl.LightningModule, images: Tensor) -> Attention:
        assert isinstance(module, ImageClassifier)
        attention = Attention(module.network, images, self.method, self.layers, self.receptive_field)
        if self._printed != str(attention):
            self._printed = str(attention)
            print_line(trainer, f"heatmaps: {attention}")
        self._attention = attention
        return attention

    def _give_up(self, error: Exception) -> None:
        self._gave_up = True
        logger.warning(f"Misclassified: there will be no heatmaps: {' '.join(str(error).split())}")

    def _show(
        self, trainer: pl.Trainer, module: ImageClassifier, folder: Path | None, tag: str, samples: Samples
    ) -> Gallery:
        gallery = _gallery(trainer, samples)
        if len(samples) and not self._gave_up:
            gallery = self._with_heat(trainer, module, samples, gallery)
        note = f"{self._attention}" if gallery.heat is not None else ""
        grouped = tag.endswith(WORST)
        publish(trainer, folder, tag, draw_gallery(gallery, module.class_names, self.num_samples, note, grouped))
        return gallery

    def _with_heat(self, trainer: pl.Trainer, module: ImageClassifier, samples: Samples, gallery: Gallery) -> Gallery:
        """The gallery with heatmaps; without them where they fail, for a picture must not end a training."""
        images = samples.images.to(module.device)
        classes = torch.stack([samples.predicted, samples.labels], dim=1).to(module.device)
        try:
            attention = self._attention or self._attend(trainer, module, images)
            heat = attention.heat(module.network, images, classes)
            return replace(gallery, heat=heat, fields=attention.fields(heat[:, 0]))
        except (ValueError, RuntimeError) as error:
            self._give_up(error)
            return gallery

    def _write(self, folder: Path, gallery: Gallery, mistakes: Gallery) -> None:
        write_arrays(folder / "mistakes.npz", **_arrays(mistakes))
        heat = np.zeros((0, 2, *gallery.images.shape[1:3])) if gallery.heat is None else gallery.heat
        layers = [] if gallery.heat is None or self._attention is None else self._attention.layers
        write_arrays(
            folder / "gallery.npz",
            **_arrays(gallery),
            heat_predicted=heat[:, 0].astype(np.float16),
            heat_true=heat[:, 1].astype(np.float16),
            layer=np.array(", ".join(layers)),
            method=np.array(self.method),
        )


def _arrays(gallery: Gallery) -> dict[str, Any]:
    """The columns of a gallery, each row's figures under names in the singular."""
    same = {name: getattr(gallery, name) for name in ("images", "index", "predicted", "p_label", "p_predicted")}
    return {**same, "label": gallery.labels}


def _gallery(trainer: pl.Trainer, samples: Samples) -> Gallery:
    """The samples as they are drawn and written."""
    data = getattr(trainer, "datamodule", None)
    statistics = (data.mean, data.std) if isinstance(data, ImageDataModule) else ()
    columns = (samples.index, samples.labels, samples.predicted, samples.p_label, samples.p_predicted)
    return Gallery(shown(samples.images, *statistics), *(column.numpy() for column in columns))

"""Shows which images the network gets wrong, and where it looked.

A mistake takes three steps to its picture: `SampleCollector` collects it while an evaluation runs, `Explainer.explain`
computes its heatmaps, and `publish` shows the gallery that they are drawn in.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from cifar_resnets.callbacks.collectors import SampleCollector
from cifar_resnets.callbacks.progress import print_line
from cifar_resnets.callbacks.publish import is_due, output_dir, publish, write_arrays, write_gallery
from cifar_resnets.cam.explainer import Explainer
from cifar_resnets.cam.feature_maps import check_layers
from cifar_resnets.cam.gradcam import METHODS
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import require
from cifar_resnets.evaluation.mistakes import (
    HighestLosses,
    Samples,
    SamplesAt,
    classify_again,
    group_by_pair,
    to_pixels,
)
from cifar_resnets.figures.gallery import Gallery, draw_gallery, gallery_height

MOST, MAX_SIDE = 500, 64  # images in a picture or in mistakes.npz, and the longest side in the latter in pixels

_require = functools.partial(require, "Misclassified")
logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Misclassified(pl.Callback):
    """Shows the most confidently wrong images of each evaluation, and where the network looked.

    Pictures in TensorBoard and below `figures` beside the logs: `val_misclassified/most_confident`,
    `val_misclassified/same_images`, which shows the images of the run's first picture again, and
    `test_misclassified/most_confident`. A test also writes `gallery.npz` and `mistakes.npz`, with up to 500 mistakes.

    An image is shown with the name of its file, or, if it has none, with its number in the order of the data, as
    `ImageDataModule` and a `DataLoader` without shuffling have it.

    Args:
        num_samples: images in a picture, at most 500.
        every_n_epochs: epochs from one picture of a fit to the next; ten pictures a run if not given. There is always
            one after the last epoch, and after `test`.
        method: how heatmaps are computed: `gradcam`, or the name of another method of pytorch-grad-cam.
        layers: names of the network's modules over which heatmaps are averaged, for example `[layer2, layer3]`; the
            last with 8x8 units or more if not given.
        receptive_field: whether a box shows which part of the image the hottest unit for the predicted class sees.

    Raises:
        ConfigurationError: for a value out of range; before the first step, for a layer that the network does not have,
            or receptive fields that cannot be computed.
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
        self._explainer = Explainer(self.method, self.layers, self.receptive_field)
        self._collector: SampleCollector | None = None
        self._same_images: list[int] | None = None
        self._names: Sequence[str] | None = None  # of all images that were evaluated, in the order of the data
        self._announced = ""

    def state_dict(self) -> dict[str, Any]:
        """Returns the places in the data of the images that are shown again."""
        return {} if self._same_images is None else {"same_images": list(self._same_images)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the places, so that a resumed fit shows the same images."""
        self._same_images = [int(place) for place in state_dict["same_images"]][: self.num_samples]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Resets the callback, and refuses layers that the network does not have."""
        assert isinstance(pl_module, ImageClassifier)
        if self.layers is not None:
            check_layers(pl_module.network, self.layers)
        self._collector = None
        self._explainer = Explainer(self.method, self.layers, self.receptive_field)
        if stage == "fit" and trainer.global_step == 0:  # a resumed fit gets its state after this
            self._same_images = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the layers, and refuses those that return no feature map."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # of Lightning
            self._prepare(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to collect images."""
        self._collector = None
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]  # of Lightning
            return
        if trainer.state.fn != "fit":
            self._prepare(trainer, pl_module)
        same = SamplesAt(self._same_images or [] if trainer.state.fn == "fit" else [])
        more = [HighestLosses(MOST, MAX_SIDE)] if trainer.testing else []
        self._collector = SampleCollector([HighestLosses(self.num_samples), same, *more], trainer.global_step)

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the most confident mistakes of a batch."""
        if self._collector is not None:
            loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
            self._collector.update(trainer, loaders, batch_idx, batch, outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the mistakes of the evaluation if a picture is due."""
        if is_due(trainer, self.every_n_epochs):
            self.on_train_end(trainer, pl_module)

    on_test_epoch_end = on_validation_epoch_end

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows what was collected and not shown yet: a run may end early. All ranks call this, and rank 0 draws."""
        collector, self._collector = self._collector, None
        if collector is None:
            return
        assert isinstance(pl_module, ImageClassifier)
        folder = output_dir(trainer, self.run_dir)
        worst, same, *more = collector.pop(trainer)
        if worst is None:  # there was no batch
            return
        if trainer.state.fn == "fit" and self._same_images is None:
            same = group_by_pair(worst)
            self._same_images = same.index.tolist()
        if not trainer.is_global_zero:
            return
        if trainer.global_step != collector.global_step:  # at the end of a fit, epochs after its last validation
            worst, same = classify_again(pl_module.network, worst), same and classify_again(pl_module.network, same)
        tag = "test_misclassified" if trainer.testing else "val_misclassified"
        mistakes = group_by_pair(worst.take(worst.wrong))
        self._names = collector.names
        gallery = self._show(trainer, pl_module, folder, f"{tag}/most_confident", mistakes)
        if same is not None:
            self._show(trainer, pl_module, folder, f"{tag}/same_images", same)
        if folder is not None and more and more[0] is not None:
            write_gallery(folder / "gallery.npz", gallery, self._explainer.sizes, self.method)
            listed = _gallery(trainer, more[0].take(more[0].wrong), self._names)
            write_arrays(folder / "mistakes.npz", **listed.columns())

    def _show(
        self, trainer: pl.Trainer, module: ImageClassifier, folder: Path | None, tag: str, samples: Samples
    ) -> Gallery:
        """Explains samples and publishes their picture."""
        heat, fields = self._explainer.explain(module.network, samples)
        self._announce(trainer)
        note = "" if heat is None else self._explainer.note
        gallery = _gallery(trainer, samples, self._names, heat=heat, fields=fields, note=note)
        picture = draw_gallery(gallery, module.class_names, grouped=tag.endswith("most_confident"))
        publish(trainer, folder, tag, picture, height=gallery_height(self.num_samples))
        return gallery

    def _prepare(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Chooses the layers if the size of the images is known before the first batch."""
        assert isinstance(module, ImageClassifier)
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            self._explainer.prepare(module.network, (3, *data.image_shape))
            self._announce(trainer)

    def _announce(self, trainer: pl.Trainer) -> None:
        """Prints once which layers were chosen, or warns once why there are no heatmaps."""
        news = self._explainer.problem or self._explainer.note
        if news == self._announced or not news:
            return
        self._announced = news
        if self._explainer.problem:
            logger.warning(f"Misclassified: there will be no heatmaps: {news}")
        else:
            print_line(trainer, f"heatmaps: {news}")


def _gallery(trainer: pl.Trainer, samples: Samples, names: Sequence[str] | None, **explanation: Any) -> Gallery:
    """Converts samples to what is drawn and written; `names` are those of all images, in the order of the data."""
    data = getattr(trainer, "datamodule", None)
    statistics = (data.mean, data.std) if isinstance(data, ImageDataModule) else ()
    columns: list[Any] = [column.numpy() for column in samples.tensors()[1:6]]  # from index to p_predicted
    if names is not None:
        explanation["paths"] = [names[place] for place in samples.index.tolist()]
    return Gallery(to_pixels(samples.images, *statistics), *columns, **explanation)

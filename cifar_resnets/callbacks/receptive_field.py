"""Shows theoretical and effective receptive fields of the trained network in TensorBoard."""

import logging

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from cifar_resnets.callbacks.publish import has_pictures, publish
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import require
from cifar_resnets.figures.receptive_fields import plot_fields
from cifar_resnets.receptive_field.effective import follow_layers

logger = logging.getLogger(__name__)


class ReceptiveField(pl.Callback):
    """Adds the figure `receptive_field` to TensorBoard at the end of a fit.

    Args:
        layers: names of the network's modules to show, for example `[layer1, layer3]`; its stages if not given.
        num_images: number of training images over which the effective field is averaged.

    Raises:
        ConfigurationError: for a number below 1; at the start of the fit, for a layer that the network does not have.
    """

    def __init__(self, layers: list[str] | None = None, num_images: int = 32) -> None:
        require("ReceptiveField", num_images >= 1, "num_images", num_images, "1 or more")
        self.layers = layers
        self.num_images = num_images

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses layers that cannot be drawn before the first step."""
        assert isinstance(pl_module, ImageClassifier)
        follow_layers(pl_module.network, self._images(trainer)[0].shape, self.layers)
        if not has_pictures(trainer):
            logger.warning("ReceptiveField: no logger shows pictures, so there will be no figure")

    @rank_zero_only
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the figure with the weights of the last step."""
        assert isinstance(pl_module, ImageClassifier)
        if has_pictures(trainer):
            images = self._images(trainer).to(pl_module.device)
            publish(trainer, None, "receptive_field", plot_fields(pl_module.network, images, self.layers))

    def _images(self, trainer: pl.Trainer) -> Tensor:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule)
        return data.sample(self.num_images)

"""What evaluates a network: the half of the LightningModule that needs no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from torch import Tensor, nn

from cifar_resnets.metrics import Evaluation, EvaluationMetrics
from cifar_resnets.views import average_views


class Evaluator(pl.LightningModule):
    """Evaluates an image classifier, exactly for any number of ranks.

    Batches are (images, labels): images float (n, 3, h, w), normalised; labels int64 (n,).

    Args:
        network: makes logits (n, num_classes) of images.
        class_names: names of the classes, in the order of the labels.
        tta: views of test-time augmentation, see `average_views`.
    """

    def __init__(self, network: nn.Module, class_names: Sequence[str], tta: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.class_names = list(class_names)
        self.tta = list(tta)
        self.val_metrics = EvaluationMetrics(len(self.class_names))
        self.test_metrics = EvaluationMetrics(len(self.class_names))
        self.evaluations: dict[str, Evaluation] = {}  # by stage, val or test: the newest
        self.val_acc: float | None = None  # of the newest validation, also of one before the run was resumed

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, num_classes) of normalised images (n, 3, h, w)."""
        logits: Tensor = self.network(images)
        return logits

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Takes in a validation batch; its logits (n, num_classes) go to the callbacks."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Takes in a test batch; its logits (n, num_classes) go to the callbacks."""
        return self._evaluate(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation figures."""
        self._evaluated("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Logs the test figures."""
        self._evaluated("test", self.test_metrics)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Probabilities (n, num_classes) of a batch."""
        logits: Tensor = self(batch[0])
        return logits.float().softmax(dim=1)

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: EvaluationMetrics) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        metrics.update(logits, labels, average_views(self, images, logits, self.tta) if self.tta else None)
        return logits

    def _evaluated(self, stage: str, metrics: EvaluationMetrics) -> None:
        self.evaluations[stage] = metrics.pop()
        if stage == "val":
            self.val_acc = self.evaluations[stage].accuracy
        self._log(self.evaluations[stage].scalars(stage, self.class_names))

    def _log(self, values: Mapping[str, float | Tensor]) -> None:
        for name, value in values.items():
            self.log(name, value)

"""Loss and accuracy of training, validation and test images, overall and per class, exact for any number of ranks."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from cifar_resnets.distributed.collectives import world_size


@dataclass(frozen=True)
class Evaluation:
    """Results of one pass over a set of images.

    Args:
        loss: mean cross-entropy without label smoothing, in nats.
        confusion: (num_classes, num_classes) counts on the CPU; rows are true, columns predicted classes.
        top5: fraction of the images whose class is among the five most probable; None with five classes or fewer.
        tta_correct: number of images classified correctly with test-time augmentation; None without it.
    """

    loss: float
    confusion: Tensor
    top5: float | None
    tta_correct: int | None = None

    @property
    def accuracy(self) -> float:
        """Returns the fraction of the images that were classified correctly."""
        return self.confusion.diagonal().sum().item() / self.num_images

    @property
    def balanced_accuracy(self) -> float:
        """Returns the mean accuracy of the classes that have images.

        Source: `sklearn.metrics.balanced_accuracy_score`.
        """
        return statistics.fmean(each for each in self.class_accuracy if not math.isnan(each))

    @property
    def macro_f1(self) -> float:
        """Returns the mean F1 score of the classes that have images or are predicted.

        A class without images that is predicted counts as 0, one that is not predicted either does not count.
        Source: `sklearn.metrics.f1_score` with `average="macro"`.
        """
        of_both = self.confusion.sum(dim=0) + self.confusion.sum(dim=1)  # images of each class, and predictions
        return (2 * self.confusion.diagonal().double() / of_both).nanmean().item()

    @property
    def num_images(self) -> int:
        """Returns the number of images."""
        return int(self.confusion.sum())

    @property
    def tta_accuracy(self) -> float | None:
        """Returns the accuracy with test-time augmentation; None without it."""
        return None if self.tta_correct is None else self.tta_correct / self.num_images

    @property
    def class_accuracy(self) -> list[float]:
        """Returns the accuracy of each class; NaN for a class without images."""
        return (self.confusion.diagonal().double() / self.confusion.sum(dim=1)).tolist()

    def scalars(self, stage: str, class_names: Sequence[str]) -> dict[str, float]:
        """Returns loss and accuracies under their TensorBoard tags."""
        optional = {f"{stage}/acc_top5": self.top5, f"{stage}/acc_tta": self.tta_accuracy}
        known = {tag: value for tag, value in optional.items() if value is not None}
        per_class = {f"{stage}_class_acc/{n}": a for n, a in zip(class_names, self.class_accuracy, strict=True)}
        balanced = {f"{stage}/acc_balanced": self.balanced_accuracy, f"{stage}/f1_macro": self.macro_f1}
        return {f"{stage}/loss": self.loss, f"{stage}/acc": self.accuracy, **balanced, **known, **per_class}

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns counts and accuracies with 95 % intervals, ready for JSON; None stands for NaN and infinity."""
        correct, images = self.confusion.diagonal().tolist(), self.confusion.sum(dim=1).tolist()
        classes = [{"name": name, **_proportion(c, n)} for name, c, n in zip(class_names, correct, images, strict=True)]
        loss = self.loss if math.isfinite(self.loss) else None
        whole = _proportion(sum(correct), sum(images))
        tta = {} if self.tta_correct is None else {"tta": _proportion(self.tta_correct, sum(images))}
        balanced = {"balanced_accuracy": self.balanced_accuracy, "macro_f1": self.macro_f1}
        return {**whole, **balanced, **tta, "top5": self.top5, "loss": loss, "classes": classes}


class EvaluationMetrics(nn.Module):
    """Accumulates an `Evaluation` over batches and ranks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # looking for NaN would synchronise in each batch; without it, torchmetrics 1.9 ignores the weight of a value
        self.loss = MeanMetric(nan_strategy="disable")
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.top5 = MeanMetric(nan_strategy="disable") if num_classes > 5 else None
        self.tta_correct = SumMetric(nan_strategy="disable")

    def update(self, logits: Tensor, labels: Tensor, tta_logits: Tensor | None = None) -> None:
        """Adds a batch: logits (n, num_classes), labels int64 (n,), and logits with test-time augmentation if used."""
        logits = logits.float()
        self.loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.confusion.update(logits, labels)
        if self.top5 is not None:
            self.top5.update((logits.topk(5).indices == labels[:, None]).any(dim=1).float())
        if tta_logits is not None:
            self.tta_correct.update((tta_logits.argmax(dim=1) == labels).sum())

    def compute(self) -> Evaluation:
        """Returns the results over all ranks; all ranks have to call this."""
        top5 = None if self.top5 is None else self.top5.compute().item()
        tta = round(self.tta_correct.compute().item()) if self.tta_correct.update_called else None
        return Evaluation(self.loss.compute().item(), self.confusion.compute().cpu(), top5, tta)

    def pop(self) -> Evaluation:
        """Returns the results as `compute` does, and resets the metrics."""
        evaluation = self.compute()
        # a tensor made in inference mode, in which `validate` runs, could not be added to in a `fit` afterwards
        with torch.inference_mode(False):
            for metric in (self.loss, self.confusion, self.top5, self.tta_correct):
                if metric is not None:
                    metric.reset()
        return evaluation


class TrainingMetrics(Metric):
    """Accumulates loss and accuracy over the training steps of an epoch; a batch counts once its step is taken.

    A step only keeps its tensors; they are summed up every `num_kept` batches, because each further kernel slows a
    small network down. Nothing synchronises with the device: torchmetrics' own multiclass metrics call `bincount`,
    which does.
    """

    num_kept = 50  # batches

    loss: Tensor
    correct: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")
        for name in ("correct", "images"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self._num_summed = 0  # batches whose losses are in the sums
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []  # batches of a step that is not taken yet
        self._losses: list[Tensor] = []
        self._classes: list[list[Tensor]] = []  # predictions and labels

    @property
    def num_batches(self) -> int:
        """Returns how many batches count; the same on all ranks."""
        return self._num_summed + len(self._losses)

    @property
    def is_empty(self) -> bool:
        """Returns whether no batch has counted yet; the same on all ranks."""
        return self.num_batches == 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Keeps a batch until its step is taken: its mean loss, logits (n, num_classes), labels (n,)."""
        # new tensors: a network in a CUDA graph overwrites its outputs of the step before
        self._pending.append((loss.detach() * len(labels), logits.argmax(dim=1), labels))

    def forget(self) -> None:
        """Drops the batches of a step that is skipped."""
        self._pending.clear()

    def count(self) -> None:
        """Counts the batches of a step that is taken."""
        # no `+=`, which would assign an attribute of a Module: a microsecond each
        self._losses.extend(loss for loss, _, _ in self._pending)
        self._classes.extend(classes for _, *classes in self._pending)
        self._pending.clear()
        if len(self._losses) >= self.num_kept:
            self.update()

    def update(self, keep_losses: bool = False) -> None:
        """Adds what is kept to the sums, or all but the losses: where a sum is split decides its last bit."""
        if self._classes:
            predictions, labels = (torch.cat(parts) for parts in zip(*self._classes, strict=True))
            self.correct.index_add_(0, labels, (predictions == labels).long())
            self.images.index_add_(0, labels, torch.ones_like(labels))
            self._classes.clear()
        if self._losses and not keep_losses:
            # those of a checkpoint are on the CPU
            self.loss += torch.stack([loss.to(self.loss.device) for loss in self._losses]).sum()
            self._num_summed += len(self._losses)
            self._losses.clear()

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns mean loss in nats, accuracy, and accuracy of each class (num_classes,), from the sums."""
        total = self.images.sum()
        return self.loss / total, self.correct.sum() / total, self.correct / self.images  # NaN without images

    def figures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `compute` of all batches that count, over all ranks; all ranks have to call this."""
        self.update()
        figures: tuple[Tensor, Tensor, Tensor] = self.compute()
        return figures

    def pop(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the figures, and resets the metrics."""
        figures = self.figures()
        self.reset()
        self._num_summed = 0
        return figures

    def states(self) -> list[dict[str, Any]]:
        """Returns what each rank has counted, on the CPU, for `load_states`; all ranks have to call this."""
        self.update(keep_losses=True)
        own: dict[str, Any] = {name: getattr(self, name).cpu() for name in self.metric_state}
        own |= {"losses": [loss.cpu() for loss in self._losses], "num_batches": self.num_batches}
        states: list[dict[str, Any]] = [own] * world_size()
        if len(states) > 1:
            dist.all_gather_object(states, own)
        return states

    def load_states(self, states: Sequence[Mapping[str, Any]], rank: int, world_size: int) -> None:
        """Continues from what all ranks had counted; on another number of ranks, rank 0 takes all of it."""
        same = len(states) == world_size
        for name in self.metric_state:
            values = torch.stack([state[name] for state in states])
            setattr(self, name, values[rank] if same else values.sum(dim=0) * (rank == 0))
        own = [states[rank]] if same else states if rank == 0 else []
        self._losses = [loss for state in own for loss in state["losses"]]
        self._num_summed = states[0]["num_batches"] - len(self._losses)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the ends of the 95 % interval of a proportion, which are between 0 and 1 also for few images.

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    from scipy.stats import binomtest  # takes half a second

    low, high = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)


def _proportion(correct: int, images: int) -> dict[str, Any]:
    accuracy, interval = (correct / images, list(wilson_interval(correct, images))) if images else (None, None)
    return {"accuracy": accuracy, "correct": correct, "images": images, "interval": interval}

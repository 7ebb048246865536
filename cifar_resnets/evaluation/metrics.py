"""What is measured on validation and test images: exact for any number of ranks, per class."""

from __future__ import annotations

import math
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
    """Figures of one pass over a set of images.

    Args:
        loss: mean cross-entropy without label smoothing, in nats.
        confusion: (num_classes, num_classes) counts on the CPU; rows are true, columns predicted classes.
        top5: part of the images whose class is among the five most probable; None with five classes or fewer.
        tta_correct: images that were classified rightly with test-time augmentation; None without.
    """

    loss: float
    confusion: Tensor
    top5: float | None
    tta_correct: int | None = None

    @property
    def accuracy(self) -> float:
        """Part of the images that were classified rightly, from 0 to 1."""
        return self.confusion.diagonal().sum().item() / self.num_images

    @property
    def num_images(self) -> int:
        """How many images there were."""
        return int(self.confusion.sum())

    @property
    def tta_accuracy(self) -> float | None:
        """The accuracy with test-time augmentation; None without."""
        return None if self.tta_correct is None else self.tta_correct / self.num_images

    @property
    def class_accuracy(self) -> list[float]:
        """The same for the images of each class; NaN for a class without images."""
        return (self.confusion.diagonal() / self.confusion.sum(dim=1)).tolist()

    def scalars(self, stage: str, class_names: Sequence[str]) -> dict[str, float]:
        """The figures under their TensorBoard tags."""
        optional = {f"{stage}/acc_top5": self.top5, f"{stage}/acc_tta": self.tta_accuracy}
        known = {tag: value for tag, value in optional.items() if value is not None}
        per_class = {f"{stage}_class_acc/{n}": a for n, a in zip(class_names, self.class_accuracy, strict=True)}
        return {f"{stage}/loss": self.loss, f"{stage}/acc": self.accuracy, **known, **per_class}

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The figures in primitives that JSON knows, with 95 % intervals; None where there is no number."""
        correct, images = self.confusion.diagonal().tolist(), self.confusion.sum(dim=1).tolist()
        classes = [{"name": name, **_proportion(c, n)} for name, c, n in zip(class_names, correct, images, strict=True)]
        loss = self.loss if math.isfinite(self.loss) else None
        whole = _proportion(sum(correct), sum(images))
        tta = {} if self.tta_correct is None else {"tta": _proportion(self.tta_correct, sum(images))}
        return {**whole, **tta, "top5": self.top5, "loss": loss, "classes": classes}


class EvaluationMetrics(nn.Module):
    """Accumulates an `Evaluation` over batches and ranks, without bringing a value to Python in each batch.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # looking for NaN would synchronise in each batch; without it, torchmetrics 1.9 ignores the weight of a value
        self.loss = MeanMetric(nan_strategy="disable")
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.top5 = MeanMetric(nan_strategy="disable") if num_classes > 5 else None
        self.tta_correct = SumMetric(nan_strategy="disable")

    def update(self, logits: Tensor, labels: Tensor, tta_logits: Tensor | None = None) -> None:
        """Takes in a batch: logits and, where there are any, those of test-time augmentation, labels (n,)."""
        logits = logits.float()
        self.loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.confusion.update(logits, labels)
        if self.top5 is not None:
            self.top5.update((logits.topk(5).indices == labels[:, None]).any(dim=1).float())
        if tta_logits is not None:
            self.tta_correct.update((tta_logits.argmax(dim=1) == labels).sum())

    def pop(self) -> Evaluation:
        """The figures over all ranks; starts anew."""
        top5 = None if self.top5 is None else self.top5.compute().item()
        tta = round(self.tta_correct.compute().item()) if self.tta_correct.update_called else None
        evaluation = Evaluation(self.loss.compute().item(), self.confusion.compute().cpu(), top5, tta)
        # a tensor made in inference mode, in which `validate` runs, could not be added to in a `fit` afterwards
        with torch.inference_mode(False):
            for metric in (self.loss, self.confusion, self.top5, self.tta_correct):
                if metric is not None:
                    metric.reset()
        return evaluation


class TrainingSums(Metric):
    """Mean loss and accuracy over batches and ranks, in sums that synchronise with no device.

    Args:
        num_classes: number of classes.
    """

    loss: Tensor
    correct: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")
        for name in ("correct", "images"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, predictions: Tensor, labels: Tensor) -> None:
        """Takes in images: losses in sums of any number of them (m,), predicted classes (n,), labels (n,)."""
        self.loss += losses.sum()
        self.correct.index_add_(0, labels, (predictions == labels).long())
        self.images.index_add_(0, labels, torch.ones_like(labels))

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss and accuracy of all images, and that of each class (num_classes,); NaN for one without images."""
        total = self.images.sum()
        return self.loss / total, self.correct.sum() / total, self.correct / self.images


class TrainingMetrics(nn.Module):
    """Loss and accuracy over the training steps of an epoch; a batch counts when its step is taken.

    In a step they are only noted, and summed up every so many steps: small networks are held up by each kernel more.

    Args:
        num_classes: number of classes.
    """

    num_noted = 50  # batches, after which they are summed up

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.sums = TrainingSums(num_classes)
        self._num_batches = 0  # that count, the same on all ranks
        self._open: list[tuple[Tensor, Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        self._classes: list[tuple[Tensor, Tensor]] = []

    @property
    def is_empty(self) -> bool:
        """Whether no batch has counted yet; the same on all ranks."""
        return self._num_batches == 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Keeps a batch until its step is taken: its mean loss, logits (n, num_classes), labels (n,)."""
        # new tensors: a network in a CUDA graph overwrites what it gave in the step before
        self._open.append((loss.detach() * len(labels), logits.argmax(dim=1), labels))

    def forget(self) -> None:
        """Leaves out the batches of a step that is not taken."""
        self._open.clear()

    def count(self) -> None:
        """Takes in the batches of a step."""
        for loss, predictions, labels in self._open:
            self._losses.append(loss)
            self._classes.append((predictions, labels))
        self._num_batches += len(self._open)
        self._open.clear()
        if len(self._losses) >= self.num_noted:
            self._sum_up()

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss in nats, accuracy, and that of each class (num_classes,), over all ranks."""
        self._sum_up()
        return self.sums.compute()

    def pop(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `compute`; starts anew."""
        figures = self.compute()
        self.sums.reset()
        self._num_batches = 0
        return figures

    def _sum_up(self) -> None:
        self._sum_up_classes()
        if self._losses:
            none = self.sums.images[:0]
            self.sums.update(torch.stack(self._losses), none, none)
            self._losses.clear()

    def _sum_up_classes(self) -> None:
        if self._classes:
            predictions, labels = (torch.cat(parts) for parts in zip(*self._classes, strict=True))
            self.sums.update(self.sums.loss.new_zeros(1), predictions, labels)
            self._classes.clear()

    def states(self) -> list[dict[str, Any]]:
        """What each rank has taken in, on the CPU; a state dict would leave it out. All ranks have to call this."""
        # losses are not summed up before their time: the last bit of a sum depends on where it is split
        self._sum_up_classes()
        mine: dict[str, Any] = {key: getattr(self.sums, key).cpu() for key in self.sums.metric_state}
        mine |= {"losses": [loss.cpu() for loss in self._losses], "num_batches": self._num_batches}
        states: list[dict[str, Any]] = [mine] * world_size()
        if len(states) > 1:
            dist.all_gather_object(states, mine)
        return states

    def load_states(self, states: Sequence[Mapping[str, Any]], rank: int, world_size: int) -> None:
        """Goes on with what all ranks had taken in; for another number of ranks, rank 0 takes all of it.

        Args:
            states: see there.
            rank: of this process.
            world_size: number of ranks now.
        """
        same = len(states) == world_size
        for key in self.sums.metric_state:
            values = torch.stack([state[key] for state in states])
            setattr(self.sums, key, values[rank] if same else values.sum(dim=0) * (rank == 0))
        mine = [states[rank]] if same else states if rank == 0 else []
        self._losses = [loss for state in mine for loss in state["losses"]]
        self._num_batches = states[0]["num_batches"]
        # torchmetrics keeps it from the outside; tests/evaluation/test_metrics.py notices when it has another name
        self.sums._update_count = self._num_batches


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Interval of a proportion, 95 % by default; it stays between 0 and 1, also for few images.

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    p = correct / total
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def _proportion(correct: int, images: int) -> dict[str, Any]:
    known = images > 0
    return {
        "accuracy": correct / images if known else None,
        "correct": correct,
        "images": images,
        "interval": list(wilson_interval(correct, images)) if known else None,
    }

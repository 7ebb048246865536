"""The loss of a training step: cross-entropy with a weight for each class, and the check that it stays finite."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError, DivergenceError, require

ClassWeights = Literal["balanced"] | list[float]
RANGE = 1e-9, 1e9  # of a weight; beside a much larger one, it would be 0 in float32


def cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Computes the mean cross-entropy of a batch in nats.

    Args:
        logits: (n, num_classes).
        labels: int64 (n,), or probabilities (n, num_classes).
        label_smoothing: part of each label that is spread over all classes.
        class_weights: (num_classes,), of the terms of each class as in `torch.nn.CrossEntropyLoss`, but the sum over
            the images is divided by their number, not by the sum of their weights. That sum differs from batch to
            batch: an image would count more or less by its neighbours, and otherwise on several ranks than on one.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    dtype = torch.promote_types(logits.dtype, torch.float32)  # torch takes weights of the type of the logits alone
    labels = labels.to(dtype) if labels.is_floating_point() else labels
    weights = class_weights.to(dtype)
    total = F.cross_entropy(logits.to(dtype), labels, weights, reduction="sum", label_smoothing=label_smoothing)
    return total / len(labels)


def fit_weights(given: ClassWeights | None, frequencies: Sequence[float] | None, device: torch.device) -> Tensor | None:
    """Returns the weights of the classes (num_classes,) on a device, for `cross_entropy`; None without any.

    Args:
        given: a number for each class, or `balanced`: in inverse proportion to the frequency, as in
            `sklearn.utils.class_weight.compute_class_weight`. They are scaled so that their mean over the training
            images is 1: loss and gradients stay on the scale of a training without weights, as does the learning rate.
        frequencies: part of each class in the training images, above 0, with sum 1; None if it is not known, and the
            mean is that over the classes.
        device: of the training.

    Raises:
        ConfigurationError: for `balanced` with unknown frequencies.
    """
    if given is None:
        return None
    if frequencies is None:
        if isinstance(given, str):
            raise ConfigurationError("model.class_weights: balanced takes an ImageDataModule, give a list of numbers")
        frequencies = [1 / len(given)] * len(given)
    weights = [1 / part for part in frequencies] if isinstance(given, str) else given
    mean = math.fsum(part * weight for part, weight in zip(frequencies, weights, strict=True))
    return torch.tensor([weight / mean for weight in weights], device=device)


def checked_weights(given: ClassWeights | None, label_smoothing: float, num_classes: int) -> ClassWeights | None:
    """Returns the weights of the classes as plain values, after checking the arguments of the loss.

    Raises:
        ConfigurationError: for a smoothing out of range, or weights that are neither `balanced` nor a number in `RANGE`
            for each class.
    """
    require("model", 0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "a number from 0 to below 1")
    if given is None or given == "balanced":
        return given
    allowed = f"balanced, or {num_classes} numbers above 0 (from 1e-9 to 1e9), one for each class"
    is_list = not isinstance(given, str) and len(given) == num_classes
    in_range = is_list and all(RANGE[0] <= each <= RANGE[1] for each in given)
    require("model", in_range, "class_weights", given, allowed)
    return [float(each) for each in given]


def require_finite(what: str, is_finite: Tensor, epoch: int, rates: Mapping[str, float]) -> None:
    """Raises DivergenceError, with the epoch, counted from 0, and the newest rates, if something is not finite."""
    if not is_finite:
        raise DivergenceError(
            f"the {what} became infinite or NaN in epoch {epoch + 1}, at a learning rate of "
            f"{rates['lr']:.3g}: try a lower model.lr or a longer warm-up"
        )


def require_finite_weights(network: nn.Module, epoch: int, rates: Mapping[str, float]) -> None:
    """Raises DivergenceError if a weight is not finite: a step with finite gradients can overflow it."""
    finite = torch.stack([parameter.isfinite().all() for parameter in network.parameters()]).all()
    require_finite("weights", finite, epoch, rates)

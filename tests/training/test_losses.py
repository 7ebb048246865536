"""The loss with weights of the classes, against torch, scikit-learn and a sum written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.losses import checked_weights, cross_entropy, fit_weights

CPU = torch.device("cpu")
WEIGHTS = torch.tensor([0.2, 1.0, 3.5, 0.7], dtype=torch.float64)


def batch(mixed: bool = False, num: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = rng.dirichlet(np.ones(4), size=num) if mixed else rng.integers(4, size=num)
    return torch.tensor(rng.normal(size=(num, 4))), torch.tensor(labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_each_class_counts_by_its_weight_and_each_image_as_one(mixed: bool, smoothing: float) -> None:
    logits, labels = batch(mixed)
    hard = labels.numpy() if mixed else np.eye(4)[labels]
    soft = (1 - smoothing) * hard + smoothing / 4
    expected = -(WEIGHTS.numpy() * soft * log_softmax(logits.numpy(), axis=1)).sum() / 12
    assert cross_entropy(logits, labels, smoothing, WEIGHTS).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_torchs_loss_where_that_divides_by_the_number_of_images(smoothing: float) -> None:
    torchs = torch.nn.CrossEntropyLoss(WEIGHTS, label_smoothing=smoothing)
    logits, labels = batch(mixed=True)
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing, WEIGHTS), torchs(logits, labels))
    logits, labels = batch()  # here torch divides by the sum of the weights
    sums = WEIGHTS[labels].mean() * torchs(logits, labels)
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing, WEIGHTS), sums)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_mean_over_ranks_or_accumulated_batches_is_that_of_the_whole_batch(mixed: bool) -> None:
    logits, labels = batch(mixed)
    parts = [cross_entropy(logits[i : i + 4], labels[i : i + 4], 0.1, WEIGHTS) for i in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).mean(), cross_entropy(logits, labels, 0.1, WEIGHTS))


def test_without_weights_it_is_torchs_own() -> None:
    logits, labels = batch()
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(cross_entropy(logits, labels, 0.1), expected)
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1, torch.ones(4)), expected)


@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_and_autocast_are_summed_in_single_precision(mixed: bool) -> None:
    logits, labels = batch(mixed)
    logits = logits.bfloat16()
    expected = cross_entropy(logits.float(), labels.float() if mixed else labels, 0.1, WEIGHTS.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cross_entropy(logits, labels, 0.1, WEIGHTS.float()), expected)
    found = cross_entropy(logits, labels.bfloat16() if mixed else labels, 0.1, WEIGHTS.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


# The weights.


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.repeat(np.arange(4), [500, 30, 4, 121])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    found = fit_weights("balanced", (np.bincount(labels) / len(labels)).tolist(), CPU)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[torch.tensor(labels)].mean().item() == pytest.approx(1, rel=1e-5)  # of the images


def test_of_given_weights_the_ratios_count() -> None:
    frequencies = [0.7, 0.2, 0.1]
    one, other = (fit_weights([scale * 1, scale * 2, scale * 5], frequencies, CPU) for scale in (1, 1e-4))
    torch.testing.assert_close(one, torch.tensor([1, 2, 5]) / (0.7 + 0.4 + 0.5))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(fit_weights([1, 2, 5], None, CPU), torch.tensor([1, 2, 5]) / (8 / 3))  # of the classes
    assert fit_weights(None, frequencies, CPU) is None


def test_balanced_weights_need_images_that_can_be_counted() -> None:
    with pytest.raises(ConfigurationError, match=r"^model\.class_weights: balanced takes an ImageDataModule"):
        fit_weights("balanced", None, CPU)


@pytest.mark.parametrize(
    "given",
    ["balance", [], [1.0], [1.0, 2.0, 3.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]]
    + [[5e-324, 5e-324], [1e-10, 1.0], [1.0, 1e300]],  # beside which a float32 of 1 would be 0
)
def test_weights_that_make_no_sense_are_refused(given) -> None:
    with pytest.raises(ConfigurationError, match=r"^model\.class_weights: .* give balanced, or 2 numbers above 0"):
        checked_weights(given, 0.0, 2)


def test_what_is_kept_is_plain() -> None:
    assert [type(each) for each in checked_weights((1, np.float32(2)), 0.1, 2)] == [float, float]  # type: ignore
    assert (checked_weights("balanced", 0.0, 2), checked_weights(None, 0.0, 2)) == ("balanced", None)

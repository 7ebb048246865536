"""The evaluation of the LightningModule, compared with scikit-learn; `test_classifier.py` has the rest of its tests."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss
from support import TINY_NETWORK
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_resnets.classifier import ImageClassifier

NAMES = ["cat", "dog", "frog"]


def classifier(network: nn.Module, tta: list[str] | None = None) -> ImageClassifier:
    module = ImageClassifier(NAMES, network_args=TINY_NETWORK, tta=tta)
    module.network = network
    return module


def evaluated(module: ImageClassifier, images: torch.Tensor, labels: torch.Tensor, what: str) -> Any:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    batches = DataLoader(TensorDataset(images, labels), batch_size=7)
    return getattr(trainer, what)(module, batches, **({} if what == "predict" else {"verbose": False}))


@pytest.fixture
def case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 3))
    return network.eval(), torch.randn(40, 3, 6, 6), torch.randint(3, (40,))


@pytest.mark.parametrize(("what", "stage"), [("validate", "val"), ("test", "test")])
def test_any_network_is_evaluated(case: tuple[nn.Module, torch.Tensor, torch.Tensor], what: str, stage: str) -> None:
    network, images, labels = case
    [figures] = evaluated(classifier(network, ["mirror"]), images, labels, what)
    with torch.no_grad():
        logits = network(images)
        both = (logits + network(images.flip(3))) / 2
    assert figures[f"{stage}/acc"] == pytest.approx(accuracy_score(labels, logits.argmax(1)), rel=1e-6)
    assert figures[f"{stage}/acc_tta"] == pytest.approx(accuracy_score(labels, both.argmax(1)), rel=1e-6)
    assert figures[f"{stage}/loss"] == pytest.approx(log_loss(labels, F.softmax(logits, dim=1)), rel=1e-5)
    assert {f"{stage}_class_acc/{name}" for name in NAMES} <= figures.keys()


def test_without_test_time_augmentation_there_is_one_accuracy(
    case: tuple[nn.Module, torch.Tensor, torch.Tensor],
) -> None:
    module = classifier(case[0])
    [figures] = evaluated(module, *case[1:], "validate")
    assert "val/acc_tta" not in figures
    assert module.val_acc == pytest.approx(figures["val/acc"])


def test_predictions_are_probabilities(case: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    network, images, labels = case
    batches = evaluated(classifier(network), images, labels, "predict")
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(batches), F.softmax(network(images), dim=1))

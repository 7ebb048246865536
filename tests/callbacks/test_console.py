from __future__ import annotations

import pytest
import torch

from cifar_resnets.callbacks.console import duration, epoch_line


def test_line_of_an_epoch() -> None:
    metrics = {"train/loss": torch.tensor(0.81234), "train/acc": torch.tensor(0.7), "val/acc": torch.tensor(0.712)}
    line = epoch_line(3, 10, metrics, 38.04, 266)
    assert line == "epoch  3/10  loss 0.8123  train 70.00 %  val 71.20 %  38.0 s  ETA 4:26"


def test_line_of_the_last_epoch_without_validation() -> None:
    line = epoch_line(10, 10, {"train/loss": torch.tensor(0.5), "train/acc": torch.tensor(1.0)}, 38.0, 0)
    assert line == "epoch 10/10  loss 0.5000  train 100.00 %  val - %  38.0 s"


def test_line_fits_a_terminal() -> None:
    metrics = {"train/loss": torch.tensor(123.4), "train/acc": torch.tensor(1.0), "val/acc": torch.tensor(1.0)}
    assert len(epoch_line(100, 200, metrics, 12345.6, 86400 * 3)) <= 80


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (7325, "2:02:05")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cifar_resnets.callbacks.progress import EpochBar, EpochLines, duration, epoch_line, weights_line
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits


def test_line_of_an_epoch() -> None:
    metrics = {"train/loss": torch.tensor(0.81234), "train/acc": torch.tensor(0.7), "val/acc": torch.tensor(0.712)}
    line = epoch_line(3, 10, metrics, 38.04, 266)
    assert line == "epoch  3/10  loss 0.812  train 70.00 %  val 71.20 %  38.0 s  ETA 4:26"


def test_line_of_the_last_epoch_without_validation() -> None:
    line = epoch_line(10, 10, {"train/loss": torch.tensor(0.5), "train/acc": torch.tensor(1.0)}, 38.0, 0)
    assert line == "epoch 10/10  loss 0.500  train 100.00 %  val - %  38.0 s"


def test_line_fits_a_terminal() -> None:
    metrics = {"train/loss": torch.tensor(123.4), "train/acc": torch.tensor(1.0), "val/acc": torch.tensor(1.0)}
    assert len(epoch_line(100, 200, metrics, 12345.6, 86400 * 3)) <= 80


def test_line_of_the_weights_of_the_classes() -> None:
    assert weights_line([0.52631, 5.5, 1], ["cat", "d\x1bg", "bee"]) == r"class weights: 0.526 (cat) to 5.5 (d\x1bg)"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (7325, "2:02:05")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_bar_counts_from_one_to_the_real_number_of_epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # also notices when Lightning no longer calls the private method that `EpochBar` overrides
    shown: list[str] = []
    bar = EpochBar()
    describe = bar._get_train_description
    monkeypatch.setattr(bar, "_get_train_description", lambda epoch: shown.append(describe(epoch)) or shown[-1])
    data = Digits(num_train=40, batch_size=10)
    module = ImageClassifier(data.class_names, network_args={"depths": [1], "widths": [16]})
    trainer = pl.Trainer(
        callbacks=[bar, EpochLines()],
        max_epochs=-1,
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    assert list(dict.fromkeys(shown)) == ["Epoch 1/2", "Epoch 2/2"]


def test_a_resumed_run_has_a_line_for_each_epoch_that_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Digits(num_train=40, batch_size=10)

    def fit(max_epochs: int, ckpt_path: Path | None = None) -> tuple[list[str], pl.Trainer]:
        # in the validation, as the last.ckpt of the command line: Lightning ends that epoch once more, without a batch
        last = ModelCheckpoint(tmp_path / str(max_epochs), filename="last", save_on_train_epoch_end=False)
        run = pl.Trainer(
            callbacks=[EpochLines(), last],
            max_epochs=max_epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = ImageClassifier(data.class_names, network_args={"depths": [1], "widths": [16]})
        run.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")], run

    fit(2)
    lines, run = fit(4, tmp_path / "2/last.ckpt")
    assert [line.partition("  ")[0] for line in lines] == ["epoch 3/4", "epoch 4/4"]
    assert not any("nan" in line for line in lines)
    assert all(metric.isfinite() for name, metric in run.callback_metrics.items() if name.startswith("train/"))

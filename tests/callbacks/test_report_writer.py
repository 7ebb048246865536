"""The report at the end of a real test: written once, never the end of it, and without a trace."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from support import TINY_NETWORK
from torch import nn

from cifar_resnets.callbacks.per_class import PerClassReport
from cifar_resnets.callbacks.report_writer import ReportWriter
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.cli.summary import build
from cifar_resnets.data.digits import Digits
from cifar_resnets.reports import page as report

pytestmark = pytest.mark.usefixtures("one_thread")


def run(folder: Path, *more: pl.Callback, network: nn.Module | None = None, fit: bool = True, **options: Any) -> Any:
    """A fit of one epoch and a test, both of few images."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    module = ImageClassifier(list("0123456789"), network_args=TINY_NETWORK)
    module.network = module.network if network is None else network
    options = {"logger": CSVLogger(folder, name="", version=""), "callbacks": [PerClassReport(folder), *more]} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    data = Digits(batch_size=50, num_train=100, seed=0)
    if fit:
        trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return module


def test_a_test_ends_with_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ReportWriter(tmp_path))
    text = (tmp_path / "report.html").read_text()
    accuracy = json.loads((tmp_path / "test.json").read_text())["accuracy"]
    assert f"{100 * accuracy:.2f}\N{NO-BREAK SPACE}%" in text
    assert "Accuracy over the epochs" in text  # metrics.csv was there
    rows = list(csv.DictReader((tmp_path / "layers.csv").open()))
    assert [row["layer"] for row in rows][:1] == ["conv1"]
    expected = sum(p.numel() for p in build("cifar_resnet20", network_args=json.dumps(TINY_NETWORK)).parameters())
    assert sum(int(row["parameters"]) for row in rows) == expected
    assert "layers.csv was not written" not in text


class Late(pl.Callback):
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.logger is not None
        trainer.logger.log_metrics({"time/images_per_second": 123.0, "epoch": 0}, step=0)


def test_what_the_loggers_still_hold_is_written_first(tmp_path: Path) -> None:
    run(tmp_path, Late(), ReportWriter(tmp_path), fit=False)
    assert "123\N{NO-BREAK SPACE}images/s" in (tmp_path / "report.html").read_text()


def test_layers_are_as_summary_prints_them(tmp_path: Path, cli: Any) -> None:
    run(tmp_path / "run", ReportWriter(tmp_path / "run"), fit=False)
    printed = cli("summary", "cifar_resnet20", "--network_args", json.dumps(TINY_NETWORK), "--format", "csv")
    assert (tmp_path / "run/layers.csv").read_text() == printed.out


def test_it_leaves_no_trace(tmp_path: Path) -> None:
    states = []
    for name, callbacks in (("with", [ReportWriter(tmp_path / "with")]), ("without", [])):
        module = run(tmp_path / name, *callbacks)
        states.append((module.state_dict(), torch.get_rng_state(), [m.training for m in module.modules()]))
    first, second = states
    assert all(torch.equal(first[0][key], second[0][key]) for key in first[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert float(images.sum()) != float("inf")  # a value, which a network that is followed has not
        return self.head(images.flatten(1))


def test_a_network_that_cannot_be_followed_has_a_report_with_a_note(tmp_path: Path) -> None:
    run(tmp_path, ReportWriter(tmp_path), network=Untraceable())
    assert not (tmp_path / "layers.csv").exists()
    assert "layers.csv was not written: " in (tmp_path / "report.html").read_text()


def test_a_compiled_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.compile(build("cifar_resnet20", network_args=json.dumps(TINY_NETWORK)), backend="eager")
    run(tmp_path, ReportWriter(tmp_path), network=network, fit=False)
    assert (tmp_path / "layers.csv").read_text().splitlines()[1].startswith("conv1,Conv2d,")


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    class Full(pl.Callback):
        """Fills the disk after all other files were written."""

        def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            monkeypatch.setattr(os, "fsync", full)

    with caplog.at_level(logging.WARNING, "cifar_resnets"):
        run(tmp_path, Full(), ReportWriter(tmp_path), fit=False)
    messages = [
        record.getMessage() for record in caplog.records if record.name == "cifar_resnets.callbacks.report_writer"
    ]
    assert len(messages) == 1
    assert "report.html cannot be written (No space left on device)" in messages[0]
    assert "\n" not in messages[0]
    assert (tmp_path / "test.json").is_file()


def test_without_a_logger(tmp_path: Path) -> None:
    run(tmp_path, ReportWriter(tmp_path), logger=False)
    assert "There are no curves" in (tmp_path / "report.html").read_text()


def test_nothing_in_a_dry_run_or_after_a_validation(tmp_path: Path) -> None:
    run(tmp_path, fast_dev_run=True, callbacks=[ReportWriter(tmp_path)])
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[ReportWriter(tmp_path)], enable_progress_bar=False)
    module = ImageClassifier(list("0123456789"), network_args=TINY_NETWORK)
    trainer.validate(module, datamodule=Digits(num_train=50), verbose=False)
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob("layers.csv"))


@pytest.mark.process
def test_two_ranks_write_one_report(tmp_path: Path) -> None:
    run(tmp_path, ReportWriter(tmp_path), Counter(tmp_path), strategy="ddp_fork", devices=2, fit=False)
    assert [path.name for path in sorted(tmp_path.glob("rank*"))] == ["rank0-wrote", "rank1-did-not"]
    assert (tmp_path / "report.html").is_file()


class Counter(pl.Callback):
    """Notes on which rank the report is newer than the end of the other callbacks; stands last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        original = report.write_report

        def counted(*args: Any) -> None:
            self.calls += 1
            original(*args)

        report.write_report = counted

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (self.folder / f"rank{trainer.global_rank}-{'wrote' if self.calls == 1 else 'did-not'}").touch()

"""The results of each class after an evaluation, on the console and as JSON."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich import get_console
from rich.table import Table
from rich.text import Text

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.support.atomic_file import replacing
from cifar_resnets.support.text import printable


class PerClassReport(pl.Callback):
    """Prints a table of the classes after `test` and `validate`, and writes `test.json` or `val.json` in `run_dir`."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports the images of `validate` and `test`; not of a fit."""
        if trainer.state.fn == "fit" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, ImageClassifier)
        stage, network = "test" if trainer.testing else "val", pl_module.hparams["network"]
        figures = pl_module.evaluations[stage].to_dict(pl_module.class_names)
        known = {"stage": stage, "checkpoint": evaluated_file(trainer, pl_module), "network": network}
        report = {**known, "complete": is_complete(trainer), **figures}
        with replacing(self.run_dir / f"{stage}.json") as file:
            file.write((json.dumps(report, indent=2) + "\n").encode())
        get_console().print(class_table(report))  # the progress bar's console, which prints above the bar

    on_test_end = on_validation_end


def evaluated_file(trainer: pl.Trainer, module: ImageClassifier) -> str:
    """Returns the path of the checkpoint or the public weights that are evaluated; `None` for those of a training."""
    return str(module.weights if trainer.ckpt_path is None and trainer.global_step == 0 else trainer.ckpt_path)


def is_complete(trainer: pl.Trainer) -> bool:
    """Returns whether a test or validation sees all images, which `limit_test_batches` can prevent."""
    loaders, numbers = trainer.val_dataloaders, trainer.num_val_batches
    if trainer.testing:
        loaders, numbers = trainer.test_dataloaders, trainer.num_test_batches
    loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    return all(number >= len(each) for each, number in zip(loaders, numbers, strict=True) if hasattr(each, "__len__"))


def class_table(report: dict[str, Any]) -> Table:
    """Builds the table of the console."""
    title = {"test": "Test images", "val": "Validation images"}[report["stage"]]
    part = "" if report.get("complete", True) else f", only {report['images']:,} of them"
    table = Table(title=title + part, title_justify="left")
    table.add_column("class", overflow="fold")
    for heading in ("accuracy", "95 % interval", "correct", "images"):
        table.add_column(heading, justify="right")
    for row in report["classes"]:
        table.add_row(Text(printable(row["name"])), *_cells(row))
    table.add_section()
    table.add_row("all", *_cells(report), style="bold")
    if "tta" in report:
        table.add_row("all, by model.tta", *_cells(report["tta"]))
    for name, key in (("balanced accuracy", "balanced_accuracy"), ("macro F1", "macro_f1")):
        table.add_row(name, _percent(report[key]))
    return table


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if row["accuracy"] is None:
        return "-", "-", "0", "0"
    low, high = row["interval"]
    interval = f"{_percent(low)} - {_percent(high)}"
    return _percent(row["accuracy"]), interval, f"{row['correct']:,}", f"{row['images']:,}"


def _percent(part: float) -> str:
    return f"{part:.2%}".replace("%", " %")

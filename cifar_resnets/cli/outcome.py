"""What a command prints when it is done: accuracies, and the paths of what it has written."""

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_resnets.callbacks.predictions import PredictionWriter
from cifar_resnets.callbacks.report_writer import ReportWriter

TESTED = {"test": "test/acc", "test by model.tta": "test/acc_tta"}


@rank_zero_only
def print_accuracies(trainer: pl.Trainer, validation: float | None, root: str, limit: float | int | str | None) -> None:
    """Prints the accuracies of a fit, and how to see its dashboard.

    Args:
        trainer: after the test.
        validation: accuracy of the checkpoint on the validation images, if there is one.
        root: folder of all runs.
        limit: `trainer.limit_test_batches`.
    """
    tested = trainer.callback_metrics  # not with `--trainer.limit_test_batches 0`
    figures = {"validation": validation, **{n: tested[tag].item() for n, tag in TESTED.items() if tag in tested}}
    known = ", ".join(f"{name} {value:.2%}" for name, value in figures.items() if value is not None)
    limited = "" if str(limit) in ("None", "1.0") or "test" not in figures else f" of {limit} test batches"
    if known:  # with neither validation nor test images there is none
        print(f"accuracy: {known}{limited}".replace("%", " %"))
    if any(isinstance(each, TensorBoardLogger) for each in trainer.loggers):
        print(f"dashboard: tensorboard --logdir {root}")


@rank_zero_only
def print_paths(trainer: pl.Trainer) -> None:
    """Prints where the predictions and the report are."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # of Lightning
        if isinstance(callback, (PredictionWriter, ReportWriter)) and callback.path.exists():
            print(f"{'report' if isinstance(callback, ReportWriter) else 'predictions'}: {callback.path}")

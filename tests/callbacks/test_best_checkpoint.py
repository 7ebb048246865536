"""Which checkpoints are kept, under which names, and which of them is the best, in real fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from cifar_resnets.callbacks.best_checkpoint import BestCheckpoint
from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file
from cifar_resnets.runs.checkpoint_io import AtomicCheckpointIO

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
TINY = {"depths": [1], "widths": [8], "stem_width": 8}
SCORE = "val/acc_of_test"


class Scores(pl.Callback):
    """Logs a figure that is known beforehand after each validation."""

    def __init__(self, *figures: float) -> None:
        self.figures = list(figures)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log(SCORE, self.figures.pop(0))


class Fails(pl.Callback):
    """Ends a fit by an error in its third epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.current_epoch == 2:
            raise KeyError("a bug")


def fit(folder: Path, figures: list[float], *others: pl.Callback, steps: int = 1, **best: Any) -> BestCheckpoint:
    """Trains an epoch of a few steps for each figure."""
    keeper = BestCheckpoint(dirpath=str(folder), **{"monitor": SCORE, **best})
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        plugins=[AtomicCheckpointIO()], callbacks=[Scores(*figures), *others, keeper],
        max_epochs=len(figures), limit_train_batches=steps, limit_val_batches=1, num_sanity_val_steps=0,
    )  # fmt: skip
    data = Digits(batch_size=20, num_train=100)
    trainer.fit(ImageClassifier(data.class_names, "cifar_resnet20", TINY), datamodule=data)
    return keeper


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def steps(folder: Path) -> dict[str, int]:
    return {path.name: read_checkpoint_file(path)["global_step"] for path in folder.iterdir()}


def test_one_file_holds_the_best_and_is_replaced(tmp_path: Path) -> None:
    keeper = fit(tmp_path, [0.1, 0.3, 0.2])
    assert steps(tmp_path) == {"best.ckpt": 2}
    assert keeper.best_model_path == str(tmp_path / "best.ckpt")


@pytest.mark.parametrize(("top_k", "kept"), [(2, {2, 3}), (3, {1, 2, 3}), (-1, {1, 2, 3, 4})])
def test_several_files_tell_epoch_and_figure_and_the_best_is_found_by_it(
    tmp_path: Path, top_k: int, kept: set[int]
) -> None:
    keeper = fit(tmp_path, [0.1, 0.3, 0.2, 0.0], save_top_k=top_k)
    assert set(steps(tmp_path).values()) == kept
    best = tmp_path / "best-epoch=1-step=2-val_acc_of_test=0.3000.ckpt"
    assert keeper.best_model_path == str(best) and read_checkpoint_file(best)["epoch"] == 1
    assert "best-epoch=2-step=3-val_acc_of_test=0.2000.ckpt" in names(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"enable_version_counter": True}])
def test_files_of_equal_names_do_not_replace_each_other(tmp_path: Path, changes: dict[str, Any]) -> None:
    keeper = fit(tmp_path, [0.1, 0.3, 0.2], save_top_k=-1, filename="{val/loss:.0f}", **changes)
    assert len(names(tmp_path)) == len(keeper.best_k_models) == 3
    assert sorted(steps(tmp_path).values()) == [1, 2, 3]
    assert steps(tmp_path)[Path(keeper.best_model_path).name] == 2


def test_the_slash_of_a_figure_makes_no_folder(tmp_path: Path) -> None:
    fit(tmp_path, [0.25], filename="a-{val/acc_of_test:.2f}")
    fit(tmp_path, [0.25], filename="b-{val/acc_of_test:.2f}", auto_insert_metric_name=False)
    assert names(tmp_path) == {"a-val_acc_of_test=0.25.ckpt", "b-0.25.ckpt"}


def test_a_checkpoint_after_an_error_does_not_replace_the_best(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fit(tmp_path, [0.1, 0.3, 0.2], Fails(), save_on_exception=True)
    assert steps(tmp_path) == {"best.ckpt": 2, "best-v1.ckpt": 3}


def test_no_checkpoint_is_kept_for_the_figure_of_other_weights(tmp_path: Path) -> None:
    keeper = fit(tmp_path, [0.1, 0.3], steps=5, every_n_train_steps=2, save_top_k=-1)
    assert set(steps(tmp_path).values()) <= {5, 10}
    assert all(f"step={step}-" in name for name, step in steps(tmp_path).items())
    assert len(keeper.best_k_models) == len(steps(tmp_path))


def test_the_accuracy_in_a_checkpoint_is_that_of_its_weights(tmp_path: Path) -> None:
    every_step = ModelCheckpoint(str(tmp_path / "all"), "{step}", every_n_train_steps=1, save_top_k=-1)
    last = LastCheckpoint(every_n_steps=2, dirpath=str(tmp_path))
    fit(tmp_path / "best", [0.1, 0.3], every_step, last, steps=3)
    found = [read_checkpoint_file(path) for path in sorted(tmp_path.rglob("*.ckpt"))]
    assert {(each["global_step"], "val_acc" in each) for each in found if each["global_step"] % 3} == {
        (1, False), (2, False), (4, False), (5, False)
    }  # fmt: skip
    assert "val_acc" in read_checkpoint_file(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/loss", "min"), ("train/loss", "min"), ("val/acc", "max"), ("val_class_acc/cat", "max"), (None, "max")],
)
def test_the_mode_follows_from_the_figure(monitor: str | None, mode: Any) -> None:
    assert BestCheckpoint(monitor=monitor).mode == BestCheckpoint(monitor=monitor, mode=mode).mode == mode
    if monitor is not None:
        other: Any = {"min": "max", "max": "min"}[mode]
        with pytest.raises(ConfigurationError, match=f"checkpoint.mode: {other} .* {mode}imum: give {mode}$"):
            BestCheckpoint(monitor=monitor, mode=other)


def test_a_figure_that_is_not_known_needs_a_mode() -> None:
    assert BestCheckpoint(monitor="time/epoch_seconds", mode="min").mode == "min"
    with pytest.raises(ConfigurationError, match="checkpoint.mode is missing: give min or max"):
        BestCheckpoint(monitor="time/epoch_seconds")


def test_the_state_is_found_in_checkpoints_of_former_versions() -> None:
    former = ModelCheckpoint(monitor="val/acc", mode="max", filename="best", enable_version_counter=False)
    assert BestCheckpoint().state_key == former.state_key

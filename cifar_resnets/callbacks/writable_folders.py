"""Checks before the first step that all folders of a run can be written."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from cifar_resnets.runs.run_dir import check_writable


class WritableFolders(pl.Callback):
    """Writes a trial file to each folder that a fit will write to, before the first step.

    Args:
        run_dir: folder of the run.

    Raises:
        OutputError: in a fit, when one cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks the folders."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        keys = {self.run_dir: "trainer.default_root_dir"}
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoint) and (folder := getattr(callback, "dirpath", None)):
                keys.setdefault(Path(folder), "dirpath of the checkpoints")
        for folder, key in keys.items():
            check_writable(folder, key)

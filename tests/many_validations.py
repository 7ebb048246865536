"""Prints how much memory 6 validation epochs with all callbacks take, in MB; run in a process of its own."""

import os
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support import TINY_NETWORK

from cifar_resnets.callbacks.confusion import Confusion
from cifar_resnets.callbacks.dashboard import Dashboard
from cifar_resnets.callbacks.misclassified import Misclassified
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.support.malloc import keep_freed_memory

WARM_UP = 5  # validations after which everything is imported, and every cache filled


class Memory(pl.Callback):
    """Notes the resident memory of the process after each epoch."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def main(folder: str) -> None:
    memory = Memory()
    callbacks = [Dashboard(), Misclassified(every_n_epochs=1), Confusion(every_n_epochs=1), memory]
    loggers: list[Any] = [TensorBoardLogger(folder, name="", version=""), CSVLogger(folder, name="", version="")]
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    data = Digits(num_train=50, batch_size=50, classes=[0, 1, 2])
    trainer = pl.Trainer(accelerator="cpu", max_epochs=WARM_UP + 6, logger=loggers, callbacks=callbacks, **quiet)
    trainer.fit(ImageClassifier(data.class_names, network_args=TINY_NETWORK), datamodule=data)
    print(memory.megabytes[-1] - memory.megabytes[WARM_UP - 1])


if __name__ == "__main__":
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as run_dir:
        main(run_dir)

"""`fit`, `validate`, `test` and `predict` by LightningCLI."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

# the sources and schedules that a recipe can name without their module
# import cifar_resnets.data.cifar
import cifar_resnets.data.digits
# import cifar_resnets.data.image_folder  # noqa: F401
from cifar_resnets.callbacks.console import EpochLines
from cifar_resnets.callbacks.per_class import PerClassReport
from cifar_resnets.callbacks.predictions import PredictionWriter
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.base import ImageDataModule
from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.runs.record import RunRecord
from cifar_resnets.runs.run_dir import claim_run_dir

TRAINER_DEFAULTS = {
    "default_root_dir": "logs",
    "max_epochs": 10,
    # our own lines say what is trained, and everything is logged once an epoch
    "enable_model_summary": False,
    "log_every_n_steps": 1_000_000_000,
}


def run(args: list[str]) -> None:
    """Runs a subcommand.

    Raises:
        UserError: for what the user got wrong.
    """
    _quiet()
    try:
        CLI(
            ImageClassifier,
            ImageDataModule,
            save_config_callback=RunRecord,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False}
            | {name: {"exit_on_error": False, "allow_abbrev": False} for name in CLI.subcommands()},
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except (argparse.ArgumentError, MisconfigurationException) as error:
        raise ConfigurationError(str(error)) from error


class CLI(LightningCLI):
    """LightningCLI with a folder for each run, the callbacks of this project, and checkpoints that stand alone."""

    run_dir: Path

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's name, the checkpoint callback, and what one part must know of another."""
        parser.add_argument(
            "--name", type=str | None, help="folder of the run below default_root_dir; the network's name if not given"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/acc",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_seed)
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments; for an evaluation, on top of what the checkpoint says."""
        assert isinstance(args, list)
        self.config = parser.parse_args(with_checkpoint(args))

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyperparameters over what the user typed; `parse_arguments` does it the
        # other way round. A private method: tests/test_cli.py notices when it is no longer called.
        pass

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Builds the Trainer with the run's folder, loggers and callbacks."""
        config = self.config_init[self.subcommand]
        self.run_dir = self._claim_run_dir(config)
        self.save_config_kwargs = {"run_dir": self.run_dir}
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(self.run_dir / "checkpoints")
        if config.trainer.logger in (None, True):
            kwargs["logger"] = _loggers(self.run_dir)
        if config.trainer.enable_progress_bar is None:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
        own = [EpochLines(), PerClassReport(self.run_dir), PredictionWriter(self.run_dir)]
        return super().instantiate_trainer(callbacks=[*(config.trainer.callbacks or []), *own], **kwargs)

    def _claim_run_dir(self, config: Any) -> Path:
        root, name = Path(config.trainer.default_root_dir), config.name or config.model.hparams["network"]
        if rank_zero_only.rank == 0 and not config.trainer.fast_dev_run:
            return claim_run_dir(root, name)
        return root / name  # of the other ranks, which write nothing

    def after_fit(self) -> None:
        """Tests the checkpoint that was best on the validation images, once."""
        best = self.trainer.checkpoint_callback
        if not isinstance(best, ModelCheckpoint) or not best.best_model_path:
            return
        assert best.best_model_score is not None
        val = best.best_model_score.item()
        self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=best.best_model_path, verbose=False, weights_only=True
        )
        if self.trainer.is_global_zero:
            test = self.model.evaluations["test"].accuracy
            print(f"best checkpoint: {best.best_model_path}")
            print(f"{best.monitor} {val:.2%}, test accuracy {test:.2%}".replace("%", " %"))
            print(f"dashboard: tensorboard --logdir {self.trainer.default_root_dir}")


def with_checkpoint(args: list[str]) -> list[str]:
    """Puts what the checkpoint says about network and data before what the user says.

    Args:
        args: the command line, beginning with the subcommand.

    Raises:
        ConfigurationError: when a subcommand that needs a checkpoint has none.
        CheckpointError: when the checkpoint is missing or cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    path = parser.parse_known_args(args)[0].ckpt_path
    if {"-h", "--help"} & set(args):
        return args
    if args[0] == "fit":
        if path is not None:
            read_checkpoint(path)
        return args
    if path is None:
        raise ConfigurationError(f"{args[0]}: --ckpt_path is missing, give the checkpoint of a fit")
    checkpoint = read_checkpoint(path)
    model = {key: value for key, value in checkpoint["hyper_parameters"].items() if key != "class_names"}
    config = json.dumps({"model": model, "data": checkpoint["data"]})
    return [args[0], "--config", config, *args[1:]]


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint written by `fit`: tensors and primitives, no code.

    Raises:
        CheckpointError: when it is missing, damaged, or something else.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"--ckpt_path: there is no file {path}, give a checkpoint of a fit")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes zipfile, pickle or torch raise
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"--ckpt_path: {path} is not a checkpoint that can be read: {reason}") from error
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "data", "state_dict"} <= checkpoint.keys():
        raise CheckpointError(f"--ckpt_path: {path} was not written by `cifar-resnets fit`")
    return checkpoint


def _loggers(run_dir: Path) -> list[Any]:
    place = {"save_dir": str(run_dir), "name": "", "version": ""}
    return [TensorBoardLogger(**place, default_hp_metric=False), CSVLogger(**place)]


def _seed(seed_everything: bool | int) -> int:
    if isinstance(seed_everything, bool) or seed_everything < 0:
        raise ValueError(f"seed_everything: {seed_everything} is not allowed, give a number from 0")
    return seed_everything


def _quiet() -> None:
    """Silences what Lightning tells everyone and our users cannot act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)

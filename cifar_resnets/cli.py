"""`fit`, `validate`, `test` and `predict` by LightningCLI."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

# the sources and schedules that a recipe can name without their module
import cifar_resnets.data.cifar
import cifar_resnets.data.digits
import cifar_resnets.data.image_folder  # noqa: F401
from cifar_resnets.callbacks.console import EpochBar, EpochLines
from cifar_resnets.callbacks.dashboard import Dashboard
from cifar_resnets.callbacks.lr_finder import LRFinder  # noqa: F401  a recipe can name it
from cifar_resnets.callbacks.per_class import PerClassReport
from cifar_resnets.callbacks.predictions import PredictionWriter
from cifar_resnets.callbacks.receptive_field import ReceptiveField  # noqa: F401  a recipe can name it
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.base import ImageDataModule, parameter_names
from cifar_resnets.errors import CheckpointError, ConfigurationError, UserError
from cifar_resnets.explanations import ALL, Explanations, known_keys
from cifar_resnets.messages import set_up_messages
from cifar_resnets.models.weights import read_file
from cifar_resnets.reports.writer import ReportWriter
from cifar_resnets.runs.record import RunRecord
from cifar_resnets.runs.run_dir import claim_run_dir
from cifar_resnets.schedules import Schedule
from cifar_resnets.usage import explain

TRAINER_DEFAULTS = {
    "default_root_dir": "logs",
    "max_epochs": 10,
    "enable_model_summary": False,  # our own lines say what is trained
}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "checkpoint": {"filename": "best", "monitor": "val/acc", "mode": "max", "enable_version_counter": False},
    "last_checkpoint": {"filename": "last", "save_on_train_epoch_end": False, "enable_version_counter": False},
}
EXPLAIN = "what is shown of the network's mistakes; nothing if null"
NEED_CHECKPOINT = ("validate", "test", "predict")
PARSER_DEFAULTS = {"exit_on_error": False, "allow_abbrev": False}


def run(args: list[str], cli_class: type[CLI] | None = None) -> None:
    """Runs a subcommand.

    Args:
        args: the command line, the subcommand first.
        cli_class: a class with other subcommands.

    Raises:
        UserError: for what the user got wrong.
        KeyboardInterrupt: when the user stopped it.
    """
    set_up_messages()
    cli_class = cli_class or CLI
    try:
        cli_class(
            ImageClassifier,
            ImageDataModule,
            save_config_callback=RunRecord,
            trainer_class=cli_class.trainer_class,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={**PARSER_DEFAULTS, **{name: dict(PARSER_DEFAULTS) for name in cli_class.subcommands()}},
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except (ValueError, TypeError, argparse.ArgumentError, MisconfigurationException) as error:
        if (culprit := _user_error(error)) is None:
            raise
        raise culprit from error
    except SystemExit as stop:
        # Lightning ends a run that was interrupted as if it had failed
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


def _user_error(error: BaseException) -> UserError | None:
    """What the user got wrong; jsonargparse wraps the errors of the classes that it builds."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MisconfigurationException):
        return ConfigurationError(str(error))
    return None


class CLI(LightningCLI):
    """LightningCLI with a folder for each run, the callbacks of this project, and checkpoints that stand alone."""

    trainer_class: type[pl.Trainer] = pl.Trainer
    checkpoint: dict[str, Any] | None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's name, the checkpoint callback, and what one part must know of another."""
        parser.add_argument(
            "--name", type=str | None, help="folder of the run below default_root_dir; the network's name if not given"
        )
        parser.add_argument("--explain", type=Explanations | None, default=ALL, help=EXPLAIN)
        # two callbacks: `save_last` of one that monitors writes only when the monitored figure has improved
        for key, defaults in CHECKPOINTS.items():
            parser.add_lightning_class_args(ModelCheckpoint, key)
            parser.set_defaults({f"{key}.{name}": value for name, value in defaults.items()})
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_seed)
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments; for an evaluation, on top of what the checkpoint says."""
        assert isinstance(args, list)
        self.checkpoint = _given_checkpoint(args)
        try:
            self.config = parser.parse_args(_on_top_of(self.checkpoint, args))
        except argparse.ArgumentError as error:
            if _user_error(error):
                raise
            _check_yaml(args)
            keys, choices = _known_keys(self._parser(args[0]))
            raise ConfigurationError(explain(error.message, keys, choices)) from error
        model = self.config[args[0]].model
        if self.checkpoint is not None and model.weights is not None:
            if args[0] != "fit":
                raise ConfigurationError(f"model.weights: {args[0]} reads --ckpt_path alone, leave it out or give null")
            model.weights = None  # a resumed run takes those of its checkpoint; the file may be gone

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyperparameters over what the user typed; `parse_arguments` does it the
        # other way round. A private method: tests/test_cli.py notices when it is no longer called.
        pass

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Builds the Trainer with the run's folder, loggers and callbacks."""
        config = self.config_init[self.subcommand]
        own: list[pl.Callback] = [EpochLines()]
        if not config.trainer.fast_dev_run:  # which leaves no files
            root, name = Path(config.trainer.default_root_dir), config.name or self.model.hparams["network"]
            # the other ranks write nothing
            run_dir: Path = rank_zero_only(claim_run_dir, root / name)(root, name)
            self.save_config_kwargs = {"run_dir": run_dir}
            for checkpoint in (config[key] for key in CHECKPOINTS):
                checkpoint.dirpath = checkpoint.dirpath or str(run_dir / "checkpoints")
            if config.trainer.logger in (None, True):
                kwargs["logger"] = _loggers(run_dir)
            own += [Dashboard(), PerClassReport(run_dir), PredictionWriter(run_dir)]
            if config.explain is not None:
                own += config.explain.callbacks(run_dir, config.trainer.callbacks or [])
        if config.trainer.enable_progress_bar is None:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
            own += [EpochBar()] if sys.stdout.isatty() else []
        try:
            return super().instantiate_trainer(callbacks=[*(config.trainer.callbacks or []), *own], **kwargs)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        """Checks that the checkpoint fits the network before Lightning reports every single tensor."""
        if self.checkpoint is None:
            return
        hparams, state = self.model.hparams, self.checkpoint["state_dict"]
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            both = self.checkpoint["hyper_parameters"], hparams
            has, wants = (f"{h['network']} with {len(h['class_names'])} classes" for h in both)
            raise CheckpointError(f"--ckpt_path: the checkpoint is of {has}, the network is {wants}") from error

    def before_validate(self) -> None:
        """Leaves the table to `PerClassReport`."""
        self.config_init[self.subcommand].verbose = False

    before_test = before_validate

    def after_fit(self) -> None:
        """Tests the checkpoint that was best on the validation images, once."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if not best:
            return
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True)
        if self.trainer.is_global_zero:
            # not from the module, which trained in other processes under `ddp_fork` and `ddp_spawn`
            figures = {"validation": read_checkpoint(best)["val_acc"]}
            if "test/acc" in self.trainer.callback_metrics:  # not with `--trainer.limit_test_batches 0`
                figures["test"] = self.trainer.callback_metrics["test/acc"].item()
            print(f"best checkpoint: {best}")
            print("accuracy: " + ", ".join(f"{name} {value:.2%}" for name, value in figures.items()).replace("%", " %"))
            if any(isinstance(each, TensorBoardLogger) for each in self.trainer.loggers):
                print(f"dashboard: tensorboard --logdir {self.trainer.default_root_dir}")
        self.after_test()

    def after_test(self) -> None:
        """Says where the report is."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # of Lightning
            if isinstance(callback, ReportWriter) and callback.path.exists():
                rank_zero_only(print)(f"report: {callback.path}")


def _given_checkpoint(args: list[str]) -> dict[str, Any] | None:
    """Reads the checkpoint of a command line, which begins with the subcommand.

    Raises:
        ConfigurationError: when a subcommand that needs a checkpoint has none.
        CheckpointError: when the checkpoint is missing or cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    path = parser.parse_known_args(args)[0].ckpt_path
    if path is None and args[0] in NEED_CHECKPOINT and not {"-h", "--help"} & set(args):
        raise ConfigurationError(f"{args[0]}: --ckpt_path is missing, give the checkpoint of a fit")
    return None if path is None else read_checkpoint(path)


def _on_top_of(checkpoint: dict[str, Any] | None, args: list[str]) -> list[str]:
    """For an evaluation, puts what the checkpoint says about network and data before what the user says."""
    if checkpoint is None or args[0] == "fit":
        return args
    model = {key: value for key, value in checkpoint["hyper_parameters"].items() if key != "class_names"}
    return [args[0], "--config", json.dumps({"model": model, "data": checkpoint["data"]}), *args[1:]]


def _check_yaml(args: list[str]) -> None:
    """Names the recipe that is no YAML, which the parser does not.

    Raises:
        ConfigurationError: for the first such file.
    """
    for path in (Path(value) for flag, value in itertools.pairwise(args) if flag in ("-c", "--config")):
        try:
            yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
        except OSError as error:
            raise ConfigurationError(f"--config: {path} cannot be read ({error.strerror})") from error


def _known_keys(parser: LightningArgumentParser) -> tuple[list[str], dict[str, list[str]]]:
    """All keys of a subcommand, and the names of the classes that some of them take."""
    keys = [key for key in parser.get_defaults(skip_validation=True).keys() if not key.startswith("explain.")]
    keys += known_keys()
    keys += [f"data.augment.{field.name}" for field in dataclasses.fields(Augmentation)]
    for source in _subclasses(ImageDataModule):
        keys += [f"data.{name}" for name in parameter_names(source)]
    for schedule in _subclasses(Schedule):
        keys += [f"model.schedule.{field.name}" for field in dataclasses.fields(schedule)]
    names = {"data": ImageDataModule, "model.schedule": Schedule}
    return keys, {key: sorted(cls.__name__ for cls in _subclasses(base)) for key, base in names.items()}


def _subclasses(base: type) -> list[type]:
    """The classes that can be built, of a base."""
    children: list[type] = base.__subclasses__()
    found = [cls for child in children for cls in (child, *_subclasses(child))]
    return [cls for cls in found if not inspect.isabstract(cls)]


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint written by `fit`: tensors and primitives, no code.

    Raises:
        CheckpointError: when it is missing, damaged, or something else.
    """
    checkpoint = read_file(path, "--ckpt_path")
    if not isinstance(checkpoint, dict) or not {"hyper_parameters", "data", "state_dict"} <= checkpoint.keys():
        raise CheckpointError(f"--ckpt_path: {path} was not written by `cifar-resnets fit`")
    return checkpoint


def _loggers(run_dir: Path) -> list[Any]:
    return [
        TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False),
        CSVLogger(run_dir, name="", version=""),
    ]


def _seed(seed_everything: bool | int) -> int:
    if isinstance(seed_everything, bool) or seed_everything < 0:
        raise ConfigurationError(f"seed_everything: {seed_everything} is not allowed, give a number from 0")
    return seed_everything

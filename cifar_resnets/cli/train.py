"""`fit`, `validate`, `test` and `predict` by LightningCLI."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from cifar_resnets.callbacks.best_checkpoint import best_of
from cifar_resnets.callbacks.run_record import RunRecord
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.cli import checkpoint_args, recipes
from cifar_resnets.cli.callback_checks import leave_training
from cifar_resnets.cli.class_names import network_classes
from cifar_resnets.cli.config_checks import check_recipes, check_strategy, check_values, make_paths_local
from cifar_resnets.cli.console import errors_of_threads, set_up_messages
from cifar_resnets.cli.default_callbacks import claim_checkpoint_folders, open_run_dir, trainer_arguments
from cifar_resnets.cli.keys import add_keys
from cifar_resnets.cli.outcome import print_accuracies, print_paths
from cifar_resnets.cli.parse_errors import explain, user_error
from cifar_resnets.data import cifar, digits, image_folder  # noqa: F401  a recipe can name their classes alone
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.distributed.scheduler import is_restarted
from cifar_resnets.distributed.signals import SIGNALS_OF_PROCESS
from cifar_resnets.errors import ConfigurationError, DivergenceError, SearchError, UserError, memory_error
from cifar_resnets.runs import resume
from cifar_resnets.runs.checkpoint_io import KEY, AtomicCheckpointIO
from cifar_resnets.runs.log_files import event_files
from cifar_resnets.runs.run_dir import CHECKPOINTS, missing_folders, name_of_run, remove_unused
from cifar_resnets.support.former_names import current_names
from cifar_resnets.support.text import printable

# without a summary of the model: our own lines say what is trained
TRAINER_DEFAULTS = {"default_root_dir": "logs", "max_epochs": 10, "enable_model_summary": False}
# which a user can have caused
PYTHON_ERRORS = (ValueError, TypeError, RuntimeError, ImportError, LookupError, AttributeError)
PARSER_DEFAULTS = {"exit_on_error": False, "allow_abbrev": False}


def run(args: list[str], cli_class: type[CLI] | None = None) -> None:
    """Runs a subcommand of the CLI, or of another class.

    Raises:
        UserError: for a mistake of the user.
        Stopped: when a signal stops the run.
    """
    set_up_messages(evaluates=args[0] in checkpoint_args.NEED_CHECKPOINT)
    set_loader("yaml", checkpoint_args.load_recipe, (yaml.YAMLError,))
    # defaults of Lightning's callbacks, such as that of Timer, which config.yaml holds
    yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, each: dumper.represent_data(each.value))
    cli_class = cli_class or CLI
    try:
        cli_class(
            ImageClassifier,
            ImageDataModule,
            save_config_callback=RunRecord,
            trainer_class=cli_class.trainer_class,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={**PARSER_DEFAULTS, args[0]: dict(PARSER_DEFAULTS)},
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
        if errors_of_threads:
            raise errors_of_threads[0]
    except (*PYTHON_ERRORS, argparse.ArgumentError, MisconfigurationException) as error:
        if (line := user_error(error)) is None:
            raise
        raise checkpoint_args.blame(line, args) from error


class CLI(LightningCLI):
    """LightningCLI with a folder for each run, default callbacks, and evaluations that need only a checkpoint."""

    trainer_class: type[pl.Trainer] = pl.Trainer
    arguments: list[str]
    start: resume.Start
    run_dir: Path | None = None  # none for a run that writes no files
    _new: tuple[Path, list[Path]] | None = None  # a folder that this process has made for the run, and those above it
    _copies: Sequence[Path] = ()  # files of another run in it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        command = kwargs["args"][0]  # whose parser alone is built: those of all would take 0.2 s
        self.subcommands = lambda: {command: type(self).subcommands()[command]}  # type: ignore[method-assign]
        try:
            super().__init__(*args, **kwargs)
        except BaseException as error:
            if self._new is not None and not isinstance(error, (DivergenceError, SearchError)):
                remove_unused(*self._new, self._copies)
            raise

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the Trainer's methods that can be run, each with the arguments that have no key."""
        # checkpoints are always loaded with weights_only=True
        return {name: {*skipped, "weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the project's own keys."""
        add_keys(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments; those of an evaluation override what the checkpoint says."""
        assert isinstance(args, list)
        current = current_names(args)
        given = check_recipes(current)
        pipes = {old: new for old, new in zip(current, given, strict=True) if old != new}
        sys.argv = [pipes.get(arg, arg) for arg in sys.argv]  # Lightning starts other ranks by it, run.json holds it
        self.arguments, self.start = [pipes.get(arg, arg) for arg in args], checkpoint_args.given_checkpoint(given)
        given, checkpoint = recipes.with_paths(given), self.start.content
        try:
            self.config = parser.parse_args(
                given if checkpoint is None else checkpoint_args.on_top_of(checkpoint, given)
            )
        except argparse.ArgumentError as error:
            if user_error(error):
                raise
            keys = self._parser(args[0]).get_defaults(skip_validation=True).keys()
            raise ConfigurationError(explain(error.message, keys)) from error
        make_paths_local(self.config[args[0]])
        if self.start.checkpoint is not None:
            self.config[args[0]].ckpt_path = str(self.start.checkpoint)  # a recipe that follows may have another one
        check_values(args[0], self.config[args[0]].as_dict())
        best = self.config[args[0]].checkpoint
        best.mode = best_of("checkpoint.mode", best.monitor, best.mode)  # which config.yaml then says
        checkpoint_args.check_evaluated(args[0], checkpoint, self.config[args[0]].model.weights)

    def _parse_ckpt_path(self) -> None:
        # Lightning's method lets the checkpoint override what the user typed; `parse_arguments` does the opposite.
        # Private in lightning 2.6, with no public switch: a test in tests/cli/test_train.py fails if it is not called.
        pass

    # Where a fit goes on.

    @property
    def _resumes(self) -> bool:
        """Whether this is a fit that may resume an earlier one; the same on all ranks."""
        return self.subcommand == "fit" and bool(self.config.fit.ckpt_path or is_restarted())

    def before_instantiate_classes(self) -> None:
        """Finds where a fit goes on, on rank 0, and reads the checkpoint."""
        rank, config = int(rank_zero_only.rank), self.config[self.subcommand]  # type: ignore[attr-defined]  # of Lightning
        if self._resumes and rank == 0:
            self._find_start(config)
        if self.start.checkpoint or (self._resumes and rank):
            checkpoint_args.forget_weights(config.model)  # those of the checkpoint, or of rank 0; the file may be gone
        elif self.subcommand in checkpoint_args.NEED_CHECKPOINT:
            config.model.weights_strict = True  # a head that starts anew has nothing to evaluate

    def _find_start(self, config: Namespace) -> None:
        root, name = Path(config.trainer.default_root_dir), self._name(config, config.model.network)
        elsewhere = config.last_checkpoint.dirpath and Path(config.last_checkpoint.dirpath)
        self.start = resume.find_start(config.ckpt_path or "auto", root, name, self.arguments, elsewhere)
        resume.pass_to_children(self.start.checkpoint)
        notes = [f"warning: {warning}" for warning in self.start.warnings] + [self.start.note] * bool(self.start.note)
        for line in notes:
            print(printable(line), flush=True)
        if self.start.content is not None:
            checkpoint_args.check_classes(self.start.content, [config.as_dict()])

    def before_fit(self) -> None:
        """Sets the path of the checkpoint on all ranks."""
        if self._resumes:
            self.config_init.fit.ckpt_path = resume.agreed_checkpoint(self.start.checkpoint, self.trainer.strategy)

    def instantiate_classes(self) -> None:
        """Instantiates the data first: they, or the checkpoint, name the classes of the network."""
        command = str(self.subcommand)
        config, parser = self.config[command], self._parser(command)
        alone = Namespace(data=config.data)  # type: ignore[no-untyped-call]  # of jsonargparse
        data, given = parser.instantiate(alone, instantiate_groups=False).data, config.model.class_names
        config.model.class_names = network_classes(command, data, given, self.start.content)
        super().instantiate_classes()
        config.model.class_names, self.datamodule = given, data  # as given, for config.yaml

    def check_run(self) -> None:
        """Raises ConfigurationError if the run is too short for its schedule, or has too few images for a batch."""
        trainer = self.config[self.subcommand].trainer
        if isinstance(self.datamodule, ImageDataModule):
            self.datamodule.check_batch_size()
        if (trainer.max_epochs or 0) > 0 and trainer.max_steps < 0 and not trainer.fast_dev_run:
            self.model.schedule.check_length(trainer.max_epochs)
            self.model.freezing.check_length(trainer.max_epochs)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Builds the Trainer with the run's folder, loggers and callbacks."""
        config = self.config_init[self.subcommand]
        if self.subcommand == "fit":
            self.check_run()
        events = None if config.trainer.fast_dev_run else self._set_run_dir(config)
        try:
            trainer = super().instantiate_trainer(**trainer_arguments(config, self.run_dir, events), **kwargs)
            check_strategy(trainer)
            # Lightning's `checkpoint_callback`, whose best path alone `ddp_fork` hands back, is the first of them
            trainer.callbacks.sort(key=lambda each: isinstance(each, Checkpoint) and each is not config.checkpoint)  # type: ignore[attr-defined]  # of Lightning
        except (ValueError, TypeError, RuntimeError) as error:  # the last one is of SLURM's variables
            known = isinstance(error, UserError) or memory_error(error)
            raise error if known else ConfigurationError(f"trainer: {error}") from error
        launcher = trainer.strategy.launcher
        # not for forks, which it stops
        if trainer.world_size > 1 and launcher and not launcher.is_interactive_compatible:
            SIGNALS_OF_PROCESS.end_process()
        return trainer

    def _set_run_dir(self, config: Namespace) -> dict[str, int] | None:
        """Opens the run's folder; returns the files of events in it if an earlier process has begun the run."""
        root, name = Path(config.trainer.default_root_dir), self._name(config, self.model.hparams["network"])
        parents = missing_folders(root / name)
        record = {"subcommand": self.subcommand, "seed": config.seed_everything, **resume.identity(self.arguments)}
        record |= checkpoint_args.weights_record(self.model.weights)
        if self.subcommand == "fit" and self.start.run_dir is None:
            rank_zero_only(claim_checkpoint_folders)(config)
        # the other ranks write nothing
        run_dir, self._lock = rank_zero_only(open_run_dir, (root / name, None))(root, name, self.start, record)
        if self._lock is not None and self.start.run_dir is None:
            self._new = run_dir, parents
        self.run_dir, self.save_config_kwargs = run_dir, {"run_dir": run_dir}
        for checkpoint in (config.checkpoint, config.last_checkpoint):
            checkpoint.dirpath = checkpoint.dirpath or str(run_dir / CHECKPOINTS)
        return event_files(run_dir) if run_dir == self.start.run_dir else None

    def _name(self, config: Namespace, network: str) -> str:
        """Returns the name of the run: as given, of the run whose checkpoint is evaluated, or the network's."""
        path, content = self.start.checkpoint, self.start.content
        known = name_of_run(path, content.get(KEY)) if self.subcommand != "fit" and path and content else None
        return config.name or known or network.replace(":", ".")

    def after_instantiate_classes(self) -> None:
        """Checks that the checkpoint fits the network, and hands it to the Trainer."""
        path, content = self.start.checkpoint, self.start.content
        if path is None or content is None:
            checkpoint_args.show_weights(str(self.subcommand), self.model.weights, self.datamodule)
            return
        if self.subcommand != "fit" and not checkpoint_args.names_root(self.arguments):
            self.datamodule.may_download = False
        checkpoint_args.check_fits(content, self.model, self.model.hparams)
        if self.subcommand == "fit" and self.start.run_dir is None and self.run_dir is not None:
            resume.branch_off(path, content, self.run_dir)
            self._copies = [each for each in self.run_dir.rglob("*") if each.is_file()]
        self._preload(path, content)
        self.start = dataclasses.replace(self.start, content=None)  # the Trainer frees it

    def _preload(self, path: Path, content: dict[str, Any]) -> None:
        plugin = self.trainer.strategy.checkpoint_io
        assert isinstance(plugin, AtomicCheckpointIO)
        plugin.preload(path, content)

    def before_validate(self) -> None:
        """Turns off Lightning's table of metrics: `PerClassReport` prints one."""
        self.config_init[self.subcommand].verbose = False

    before_test = before_validate

    def after_fit(self) -> None:
        """Tests the checkpoint that was best on the validation images, once; the last where nothing was validated."""
        config = self.config_init.fit
        # that of `--checkpoint`, whatever others a recipe has
        which, path = "best" if config.checkpoint.monitor else "newest", config.checkpoint.best_model_path
        if not path and config.last_checkpoint.path.is_file():
            which, path = "last", str(config.last_checkpoint.path)
        path = self.trainer.strategy.broadcast(path)  # only rank 0 knows the run's folder
        if not path or config.trainer.fast_dev_run:
            return
        has_test, validation = self.datamodule.has_test_images, None
        if self.trainer.is_global_zero:
            content = checkpoint_args.read_evaluable(Path(path))
            # not from the module, which trained in other processes under `ddp_fork`
            validation = content.get("val_acc")
            if has_test:
                self._preload(Path(path), content)
        if has_test:
            leave_training(self.trainer)
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False, weights_only=True)
        else:
            rank_zero_only(print)("not tested: there are no test images")
        rank_zero_only(print)(f"{which} checkpoint: {path}")
        root = self.config.fit.trainer.default_root_dir
        print_accuracies(self.trainer, validation, root, config.trainer.limit_test_batches)
        self.after_test()

    def after_test(self) -> None:
        """Prints the paths of what was written."""
        print_paths(self.trainer)

    after_predict = after_test

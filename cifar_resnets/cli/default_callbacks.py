"""The folder, callbacks, loggers and plugins that every run has by default.

A callback is switched on in one of two ways: it is in the list of `default_callbacks`, or in `trainer.callbacks` of a
recipe, where it replaces the default one of its class. One key switches off each default callback that a run can do
without: `--explain null` all figures and the report, `--explain.misclassified null`, `--explain.confusion null` and
`--explain.report false` one of them, `--trainer.enable_progress_bar false` the bar.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.utilities import rank_zero_only

from cifar_resnets.callbacks.confusion import Confusion, EvaluationWriter
from cifar_resnets.callbacks.dashboard import Dashboard
from cifar_resnets.callbacks.exact_resume import Continuation
from cifar_resnets.callbacks.look_ahead import LookAhead  # noqa: F401  a recipe can name it
from cifar_resnets.callbacks.lr_finder import LRFinder  # noqa: F401  a recipe can name it
from cifar_resnets.callbacks.misclassified import Misclassified
from cifar_resnets.callbacks.nonfinite_guard import NonfiniteGuard
from cifar_resnets.callbacks.per_class import PerClassReport
from cifar_resnets.callbacks.predictions import PredictionWriter
from cifar_resnets.callbacks.progress import EpochBar, EpochLines
from cifar_resnets.callbacks.receptive_field import ReceptiveField  # noqa: F401  a recipe can name it
from cifar_resnets.callbacks.report_writer import ReportWriter
from cifar_resnets.callbacks.run_record import write_record
from cifar_resnets.callbacks.sync_buffers import AgreeingBuffers
from cifar_resnets.callbacks.writable_folders import WritableFolders
from cifar_resnets.distributed.sync_batchnorm import BatchNormSync
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs.checkpoint_io import AtomicCheckpointIO
from cifar_resnets.runs.log_files import MetricsFile
from cifar_resnets.runs.resume import Start
from cifar_resnets.runs.run_dir import CHECKPOINTS, claim_checkpoints, claim_run_dir, lock_run_dir, remove_links
from cifar_resnets.support.atomic_file import remove_unfinished

# whose reports are files in the run's folder; those of others are printed
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
# The default of `--explain`. As plain values: of an instance, the parser would take all attributes for arguments.
ALL: dict[str, Any] = {
    "misclassified": {"class_path": f"{Misclassified.__module__}.{Misclassified.__name__}"},
    "confusion": {"class_path": f"{Confusion.__module__}.{Confusion.__name__}"},
    "report": True,
}


@dataclass
class Explanations:
    """What a run shows of its network's mistakes, in TensorBoard and beside the logs.

    Args:
        misclassified: galleries of misclassified images with heatmaps; none if null.
        confusion: figures of which classes are mixed up, and how far probabilities can be trusted; none if null.
        report: write `report.html` after each test.
    """

    misclassified: Misclassified | None = None
    confusion: Confusion | None = None
    report: bool = True

    def callbacks(self, run_dir: Path) -> list[pl.Callback]:
        """Returns the callbacks that are switched on."""
        report = ReportWriter(run_dir) if self.report else None
        return [each for each in (self.misclassified, self.confusion, report) if each is not None]


def open_run_dir(root: Path, name: str, start: Start, record: Mapping[str, Any]) -> tuple[Path, int | None]:
    """Makes the run's folder, or takes that of the run that is resumed, and writes how the run was started.

    Args:
        root: folder of all runs.
        name: of the run.
        start: where the run goes on.
        record: what is written beside time and versions.

    Returns:
        The folder, and its lock: until this process ends, no other one can resume this run.
    """
    run_dir, lock = start.run_dir, start.lock
    if run_dir is None:
        run_dir = claim_run_dir(root, name)
        lock = lock_run_dir(run_dir)
    remove_unfinished(run_dir)
    remove_links(run_dir)
    write_record(run_dir, record, start.checkpoint)
    return run_dir, lock


def claim_checkpoint_folders(config: Namespace) -> None:
    """Raises ConfigurationError if a folder that the user gave for a new run's checkpoints holds those of another run.

    Args:
        config: of the subcommand, with callbacks instantiated.
    """
    sections = [("checkpoint", config.checkpoint), ("last_checkpoint", config.last_checkpoint)]
    sections += [("trainer.callbacks", each) for each in _as_list(config.trainer.callbacks)]
    given = [(getattr(each, "dirpath", None), name) for name, each in sections if isinstance(each, Checkpoint)]
    folders = {os.path.realpath(folder): name for folder, name in given if folder}  # each once
    for folder, name in folders.items():
        claim_checkpoints(Path(folder), f"{name}.dirpath")


def trainer_arguments(config: Namespace, run_dir: Path | None, events: dict[str, int] | None) -> dict[str, Any]:
    """Returns the arguments of the Trainer that differ from what the user gave.

    Args:
        config: of the subcommand, with callbacks and plugins instantiated.
        run_dir: folder of the run; None for a run that writes no files.
        events: see `Continuation`.
    """
    trainer = config.trainer
    sync = [BatchNormSync()] if trainer.sync_batchnorm else []
    plugins = [AtomicCheckpointIO(), *_as_list(trainer.plugins), *sync]
    arguments: dict[str, Any] = {"plugins": plugins, "callbacks": callbacks(config, run_dir, events)}
    if trainer.enable_progress_bar is None:
        arguments["enable_progress_bar"] = sys.stdout.isatty()
    if run_dir is not None:
        # not the common root of all runs: Lightning would resume from a checkpoint there of any SLURM job
        arguments["default_root_dir"] = run_dir / CHECKPOINTS
        if trainer.logger is not False:
            tensorboard = TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False)
            added = [] if trainer.logger is True else _as_list(trainer.logger)
            # the first one's folder is the Trainer's `log_dir`
            arguments["logger"] = [tensorboard, MetricsFile(run_dir), *added]
        if profiler := PROFILERS.get(str(trainer.profiler).lower()):
            arguments["profiler"] = profiler(run_dir, "profile")  # fit-profile.txt, test-profile.txt
    return arguments


def callbacks(config: Namespace, run_dir: Path | None, events: dict[str, int] | None) -> list[pl.Callback]:
    """Returns the recipe's callbacks, then the default ones that the recipe does not replace.

    Raises:
        ConfigurationError: when the recipe names a default callback twice.
    """
    named, defaults = _without_hidden_bars(config.trainer), default_callbacks(config, run_dir, events)
    defaults = [each for each in defaults if not _is_named(each, named)]
    for each in named:
        if isinstance(each, Checkpoint) and each.state_key == config.checkpoint.state_key:
            name, remedy = type(each).__name__, "give its arguments there, such as --checkpoint.save_top_k 3"
            raise ConfigurationError(f"trainer.callbacks: {name} is `checkpoint`, which is there by default: {remedy}")
    for each in (*named, *defaults):
        if isinstance(each, (Misclassified, EvaluationWriter)):
            each.run_dir = run_dir
    return [AgreeingBuffers(), *named, *defaults]  # first the buffers: other callbacks may call the network


def default_callbacks(config: Namespace, run_dir: Path | None, events: dict[str, int] | None) -> list[pl.Callback]:
    """Builds the default callbacks in the order in which they are called."""
    found: list[pl.Callback] = [EpochLines(), Continuation(run_dir, events, config.on_changed_data)]
    if run_dir is not None:
        found += [WritableFolders(run_dir), Dashboard(), PerClassReport(run_dir), PredictionWriter(run_dir)]
        shown = [] if config.explain is None else config.explain.callbacks(run_dir)
        found += [*([] if any(isinstance(each, EvaluationWriter) for each in shown) else [EvaluationWriter()]), *shown]
    found.append(NonfiniteGuard(config.on_nonfinite, config.max_skipped_steps))
    if config.trainer.enable_progress_bar is None and sys.stdout.isatty():
        found.append(EpochBar())
    return found


def _without_hidden_bars(trainer: Namespace) -> list[pl.Callback]:
    """Returns the recipe's callbacks, without progress bars where no terminal shows them."""
    named = _as_list(trainer.callbacks)
    if trainer.enable_progress_bar is not None or sys.stdout.isatty():
        return named
    for each in named:
        if isinstance(each, ProgressBar):
            remedy = "--trainer.enable_progress_bar true shows it"
            rank_zero_only(print)(f"{type(each).__name__} is left out, there is no terminal: {remedy}")
    return [each for each in named if not isinstance(each, ProgressBar)]


def _is_named(default: pl.Callback, named: Sequence[pl.Callback]) -> bool:
    number = sum(isinstance(each, ProgressBar if isinstance(default, ProgressBar) else type(default)) for each in named)
    if number > 1:
        raise ConfigurationError(f"trainer.callbacks: {type(default).__name__} is there twice")
    return number == 1


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]

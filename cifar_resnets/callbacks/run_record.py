"""Records how to repeat a run: config.yaml, run.json and the hparams tab of TensorBoard."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_resnets import __version__
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import ConfigurationError, one_line
from cifar_resnets.runs.run_dir import RECORD, read_start
from cifar_resnets.support.atomic_file import replacing

PACKAGES = "lightning torch torchvision torchmetrics timm tensorboard jsonargparse numpy pillow".split()
# TensorBoard takes the columns of any one run for all, so they are the same for `fit`, `validate` and `test`.
# `val/acc_best` is of `callbacks/dashboard.py`; `val/acc` is all that `validate` has.
COMPARED = ("val/acc_best", "test/acc", "val/loss", "test/loss", "val/acc")
# TensorBoard shows five parameters at first: those that are marked as differing, by name, then the others
FIRST = ("lr", "max_epochs", "network", "schedule", "seed")


class RunRecord(SaveConfigCallback):
    """Writes `config.yaml` with all keys and their values, and logs the hyperparameters at the start of a run.

    TensorBoard's hparams tab then shows the run from its start, with its newest figures.

    Args:
        run_dir: folder of the run.
        args: see `lightning.pytorch.cli.SaveConfigCallback`.
        kwargs: see there.
    """

    def __init__(self, *args: Any, run_dir: Path, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})
        self.run_dir = run_dir

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the file; Lightning calls this once, on rank 0, after the data were read."""
        if stage != "fit" or not (self.run_dir / self.config_filename).exists():
            self._save()  # later for a run that is resumed: it may be refused
        if stage != "fit":
            self._show(trainer, pl_module, stage)

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file and logs the hyperparameters with the rates that LRFinder, called before, may have found."""
        assert isinstance(pl_module, ImageClassifier)
        self.config.model.lr = pl_module.hparams["lr"]
        self.config.model.schedule = pl_module.hparams["schedule"]
        self._save()
        self._show(trainer, pl_module, "fit")

    def _save(self) -> None:
        # not by `parser.save`: it changes the working folder, while TensorBoard's thread writes to a relative path
        with replacing(self.run_dir / self.config_filename) as file:
            file.write(self.parser.dump(self.config, skip_unset=False).encode())

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, ImageClassifier)
        parameters = flat_parameters(trainer, pl_module)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _show_in_hparams_tab(logger, parameters)
            elif not isinstance(logger, CSVLogger):  # which would only write config.yaml once more
                _log_in_tracker(logger, {**parameters, "run_dir": str(self.run_dir)})


def write_record(run_dir: Path, more: Mapping[str, Any], checkpoint: Path | None) -> None:
    """Writes `run.json`: how a run was started, with `more` in primitives, and from which checkpoint it was resumed."""
    record = {**run_record(), **more}
    if first := read_start(run_dir):
        again = {"checkpoint": None if checkpoint is None else str(checkpoint), **run_record()}
        before = first.get("resumed", [])
        record = {**first, "resumed": [*(before if isinstance(before, list) else []), again]}
    with replacing(run_dir / RECORD) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())


def run_record() -> dict[str, Any]:
    """Returns command, time, versions and git state, in primitives."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cifar_resnets": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).parent),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Returns commit and changed files of the repository that tracks a folder; None if there is none."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(folder), *args]
        return subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=10
        ).stdout

    try:
        # a folder of installed packages may lie inside another repository, which does not track it
        git("ls-files", "--error-unmatch", ".")
        changed = git("status", "--porcelain").split("\n")[:-1]
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None


def flat_parameters(trainer: pl.Trainer, module: ImageClassifier) -> dict[str, bool | int | float | str]:
    """Returns the hyperparameters of a run as a flat dict of primitives."""
    values = {key: value for key, value in module.hparams.items() if key != "class_names"}
    values |= {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps, "precision": trainer.precision}
    if isinstance(data := getattr(trainer, "datamodule", None), ImageDataModule):
        values |= {"data": data.describe(), "seed": data.seed}
    return _flat(values)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            # a class and its arguments: schedule = OneCycle, schedule.peak_epoch = 5
            if "class_path" in value:
                flat[prefix + key] = value["class_path"].rpartition(".")[2]
                value = value["init_args"]
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _log_in_tracker(logger: Logger, parameters: dict[str, Any]) -> None:
    """Logs the hyperparameters; raises ConfigurationError if the tracker, which begins its run now, cannot."""
    try:
        logger.log_hyperparams(parameters)
    except Exception as error:  # a package of others may raise anything: no account, no network, a damaged database
        raise ConfigurationError(f"trainer.logger: {type(logger).__name__}: {one_line(error)}") from error


def _show_in_hparams_tab(logger: TensorBoardLogger, parameters: dict[str, Any]) -> None:
    from torch.utils.tensorboard.summary import hparams  # a hundred modules, which `--help` does without

    # TensorBoardLogger.log_hyperparams would log an invented value of each metric at step 0
    logger.hparams.update(parameters)  # the logger writes them to hparams.yaml
    # private in torch; TensorBoardLogger.log_hyperparams uses it, too;
    # tests/callbacks/test_run_record.py reads the tab
    writer = logger.experiment._get_file_writer()
    summaries = hparams(parameters, dict.fromkeys(COMPARED, 0.0))  # type: ignore[no-untyped-call]  # of torch
    _put_first(summaries[0].value[0].metadata.plugin_data, FIRST)
    for summary in summaries:
        writer.add_summary(summary)


def _put_first(plugin_data: Any, names: Sequence[str]) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData.FromString(plugin_data.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in names
    plugin_data.content = data.SerializeToString()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Makes a resumed run bit-identical to one without an interruption."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.data.digests import changed_images
from cifar_resnets.errors import DataError
from cifar_resnets.runs.changed_settings import (
    EPOCH_END,
    OPTIMIZER,
    Change,
    changed_settings,
    check_resumable,
    data_settings,
    is_same_source,
    model_settings,
    put_settings,
    trainer_settings,
)
from cifar_resnets.runs.checkpoint_file import KEY
from cifar_resnets.runs.log_files import go_back, logged_so_far
from cifar_resnets.runs.loop_state import enter, settle
from cifar_resnets.runs.optimizer_state import check_states
from cifar_resnets.support.text import printable
from cifar_resnets.training.run_length import run_length

OnChangedData = Literal["refuse", "accept"]
OLDER = (
    "the checkpoint is of an older version, without seed, settings of the Trainer and digests of the images: "
    "whether they have changed is not known, and images that were trained on may be validated on"
)


class Continuation(pl.Callback):
    """Adds to each checkpoint what Lightning leaves out, and restores it, so that a resumed run gives the same bits.

    A checkpoint then holds the sums of the current epoch's training figures, on each rank; the newest figures; the row
    that is still to be logged; how much has been logged; the configured settings, so that a setting that the user
    changes overrides the checkpoint's; and digests of the images.

    Args:
        run_dir: folder of the run; logs are not changed without one.
        written: event files in that folder from before this process, see `runs.log_files.event_files`; None for a run
            in a new folder.
        on_changed_data: whether a run is resumed on other images than those of its checkpoint (`accept`) or not.
    """

    def __init__(
        self,
        run_dir: Path | None = None,
        written: dict[str, int] | None = None,
        on_changed_data: OnChangedData = "refuse",
    ) -> None:
        self.run_dir = run_dir
        self.written = written
        self.on_changed_data = on_changed_data
        self._state: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Discards the state of a former run, and converts the network to its precision."""
        self._state = None
        # Lightning converts it after it has restored the weights: those in float64 would be rounded to float32
        trainer.precision_plugin.convert_module(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the state of the fit; nothing after a fit."""
        if not trainer.training and not trainer.validating:
            return
        assert isinstance(pl_module, ImageClassifier)
        place = settle(trainer, checkpoint["loops"]["fit_loop"])
        total_steps, epoch_steps = run_length(trainer)
        data = _data(trainer)
        checkpoint[KEY] = {
            "place": place,
            "should_stop": trainer.should_stop,
            "metrics": {name: value.cpu() for name, value in trainer.callback_metrics.items()},
            "row": _row(trainer) if place == "epoch" else None,
            "training": pl_module.train_metrics.states(),
            "rates": pl_module.step_rates,
            "configured": {name: pl_module.hparams_initial[name] for name in ("lr", "schedule")},
            "settings": _more_settings(trainer),
            "images": None if data is None else data.digests,
            "total_steps": total_steps,
            "epoch_steps": epoch_steps,
            "run_dir": None if self.run_dir is None else str(self.run_dir),
            "logged": logged_so_far(trainer, self.run_dir) if self.run_dir and trainer.is_global_zero else None,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the module, and changes the states that Lightning restores after this hook."""
        if KEY in checkpoint and trainer.state.fn == "validate":
            _check_validated(trainer, checkpoint)
        if trainer.state.fn != "fit" or KEY not in checkpoint:
            return
        assert isinstance(pl_module, ImageClassifier)
        changes = changed_settings(_settings_of(checkpoint), _settings(trainer, pl_module))
        check_resumable(changes, within_epoch=checkpoint[KEY]["place"] != "epoch")
        self._check_images(trainer, checkpoint[KEY])
        run_dir = trainer.strategy.broadcast(self.run_dir)  # of rank 0, the only one that knows it
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and (state := checkpoint["callbacks"].get(callback.state_key)):
                callback.current_score = state["current_score"]  # Lightning does not restore it
                if run_dir is not None and callback.dirpath is not None:
                    _relocate_checkpoints(state, str(callback.dirpath), callback.mode)
        state = self._state = checkpoint[KEY]
        pl_module.val_acc, pl_module.val_step = checkpoint.get("val_acc"), checkpoint["global_step"]
        pl_module.step_rates = dict(state["rates"])
        pl_module.train_metrics.load_states(state["training"], trainer.global_rank, trainer.world_size)
        _print(trainer, f"going on after step {checkpoint['global_step']} of {run_length(trainer)[0]}")
        texts = [change.text for change in changes] + _adopt_settings(trainer, pl_module, checkpoint, changes)
        if texts:
            _print(trainer, f"resumed with other settings: {', '.join(texts)}")
        fresh: Any = pl_module.configure_optimizers()
        check_states(checkpoint, fresh["optimizer"], fresh["lr_scheduler"]["scheduler"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the state of the Trainer, and the logs."""
        if (state := self._state) is not None:
            enter(trainer, state["place"])
            is_timed = any(isinstance(each, Timer) for each in trainer.callbacks)  # type: ignore[attr-defined]
            # a Timer knows itself whether its time, which may be longer now, is over
            trainer.should_stop = trainer.should_stop or (state["should_stop"] and not is_timed)
            trainer.callback_metrics.update(state["metrics"])
        self._restore_logs(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the logs of a run that was complete: its training does not start, nor is `on_train_start` called."""
        if self._state is not None:
            _print(trainer, "nothing is left to train")
            self._restore_logs(trainer)

    def _check_images(self, trainer: pl.Trainer, state: dict[str, Any]) -> None:
        """Raises DataError if the images are not those of the checkpoint, unless the user accepts it."""
        data, then = _data(trainer), state.get("images")
        if "settings" not in state:
            _print(trainer, OLDER)
        elif data and then and (changed := changed_images(then, data.digests)):
            if self.on_changed_data == "refuse":
                remedy = "restore them, or give --on_changed_data accept"
                raise DataError(f"--ckpt_path: {changed} since the checkpoint was written: {remedy}")
            _print(trainer, f"{changed} since the checkpoint was written")

    def _restore_logs(self, trainer: pl.Trainer) -> None:
        state, self._state = self._state, None
        logged = state["logged"] if state else {"events": {}, "rows": 0}
        if self.run_dir and self.written is not None and logged and trainer.is_global_zero:
            go_back(self.run_dir, self.written, logged)
        if state and (row := state["row"]):
            for logger in trainer.loggers:
                logger.log_metrics(dict(row["metrics"]), step=row["step"])
                logger.save()


def _row(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the row that Lightning will log at the end of the epoch, after the hook that writes the checkpoint."""
    # Private in lightning 2.6: `trainer.logged_metrics` holds the rows of earlier hooks, too, and no public name has
    # the step of a row. tests/callbacks/test_exact_resume.py compares all logs of resumed runs.
    metrics = trainer._logger_connector.metrics["log"]
    figures = {name: float(value) for name, value in metrics.items()}
    step = trainer.fit_loop.epoch_loop._batches_that_stepped - 1
    return {"metrics": {**figures, "epoch": trainer.current_epoch}, "step": step}


def _relocate_checkpoints(state: dict[str, Any], folder: str, mode: str) -> None:
    """Replaces the paths of a ModelCheckpoint's state by files of those names in a folder, if they exist.

    The callback deletes files at these paths, and the checkpoint may come from a stranger: no path leads elsewhere.

    Args:
        state: of the ModelCheckpoint.
        folder: of its checkpoints in this run.
        mode: `min` or `max`, of the figure by which it chooses.
    """

    def relocate(path: str) -> str:
        here = os.path.join(folder, os.path.basename(path))
        return here if os.path.isfile(here) else ""

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = relocate(state[name])
    paths = {relocate(path): score for path, score in state["best_k_models"].items()}
    paths.pop("", None)
    state |= {"dirpath": folder, "best_k_models": paths}
    if state["kth_best_model_path"] not in paths:
        state["kth_best_model_path"] = (max if mode == "min" else min)(paths, key=paths.__getitem__, default="")
    if not state["best_model_path"]:
        state |= {"best_model_score": None}


def _data(trainer: pl.Trainer) -> ImageDataModule | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, ImageDataModule) else None


def _check_validated(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Prints a line if the images of the run have changed, or if that is not known; not for those of another source."""
    then, data = checkpoint[KEY].get("images"), _data(trainer)
    if data is None or not is_same_source(data_settings(checkpoint.get("data")), data_settings(data.describe())):
        return
    changed = changed_images(then, data.digests) if then else "the checkpoint holds no digests of its images"
    if changed:
        since = " since the checkpoint was written" if then else ""
        _print(trainer, f"{changed}{since}: some of the validation images may have been trained on")


def _more_settings(trainer: pl.Trainer) -> dict[str, bool | int | float | str | None]:
    """Returns the settings that the checkpoint holds nowhere else."""
    data = _data(trainer)
    return {**trainer_settings(trainer), **({} if data is None else {"seed_everything": data.seed})}


def _settings(trainer: pl.Trainer, module: ImageClassifier) -> dict[str, Any]:
    """Returns the settings of this run by their dotted keys."""
    data = _data(trainer)
    described = None if data is None else data.describe()
    return {**model_settings(module.hparams_initial), **data_settings(described), **_more_settings(trainer)}


def _settings_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a checkpoint's run by their dotted keys; the rates as they were configured."""
    state = checkpoint[KEY]
    model = {**checkpoint["hyper_parameters"], **state["configured"]}
    return {**model_settings(model), **data_settings(checkpoint.get("data")), **state.get("settings", {})}


def _adopt_settings(
    trainer: pl.Trainer, module: ImageClassifier, checkpoint: dict[str, Any], changes: Sequence[Change]
) -> list[str]:
    """Restores the checkpoint's rates, found or given, and applies the settings that were changed since.

    Returns:
        A text of the length of the run, for the console, if it is another one.
    """
    hparams, state = checkpoint["hyper_parameters"], checkpoint[KEY]
    names = {change.setting for change in changes}
    lr = module.hparams_initial["lr"] if "model.lr" in names else hparams["lr"]
    module.set_rates(float(lr), hparams["schedule"]["init_args"].get("lr_min"))
    now, epoch_steps = run_length(trainer)
    then = state["total_steps"]
    if now != then or any(change.kind in (OPTIMIZER, EPOCH_END) for change in changes):
        fresh: Any = module.configure_optimizers()
        step = _schedule_step(trainer, checkpoint, epoch_steps)
        put_settings(checkpoint, changes, fresh["optimizer"], fresh["lr_scheduler"]["scheduler"], step)
    return [f"the run's length {then} -> {now} steps"] if now != then else []


def _schedule_step(trainer: pl.Trainer, checkpoint: dict[str, Any], epoch_steps: int) -> int:
    """Returns the step of the schedule at a checkpoint: after as many epochs, and as many steps of the current one."""
    step: int = checkpoint["lr_schedulers"][0]["last_epoch"]
    former: int = checkpoint[KEY].get("epoch_steps", epoch_steps)
    if former == epoch_steps or run_length(trainer)[0] == trainer.max_steps:  # which ends at a step, in any epoch
        return step
    epochs: int = checkpoint["epoch"] + (checkpoint[KEY]["place"] == "epoch")
    return epochs * epoch_steps + min(max(step - epochs * former, 0), epoch_steps)


def _print(trainer: pl.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        print(printable(line), flush=True)

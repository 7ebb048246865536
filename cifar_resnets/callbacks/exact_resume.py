"""Makes a resumed run bit-identical to one without an interruption."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.runs.changed_settings import changed_settings, put_settings
from cifar_resnets.runs.checkpoint_file import KEY
from cifar_resnets.runs.log_files import go_back, logged_so_far
from cifar_resnets.runs.loop_state import enter, settle
from cifar_resnets.training.run_length import run_length


class Continuation(pl.Callback):
    """Adds to each checkpoint what Lightning leaves out, and restores it, so that a resumed run gives the same bits.

    A checkpoint then holds the sums of the current epoch's training figures, on each rank; the newest figures; the row
    that is still to be logged; how much has been logged; and the configured settings, so that a setting that the user
    changes overrides the checkpoint's.

    Args:
        run_dir: folder of the run; logs are not changed without one.
        written: event files in that folder from before this process, see `runs.log_files.event_files`; None for a run
            in a new folder.
    """

    def __init__(self, run_dir: Path | None = None, written: dict[str, int] | None = None) -> None:
        self.run_dir = run_dir
        self.written = written
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
        checkpoint[KEY] = {
            "place": place,
            "should_stop": trainer.should_stop,
            "metrics": {name: value.cpu() for name, value in trainer.callback_metrics.items()},
            "row": _row(trainer) if place == "epoch" else None,
            "training": pl_module.train_metrics.states(),
            "rates": pl_module.step_rates,
            "configured": {name: pl_module.hparams_initial[name] for name in ("lr", "schedule")},
            "total_steps": run_length(trainer)[0],
            "run_dir": None if self.run_dir is None else str(self.run_dir),
            "logged": logged_so_far(trainer, self.run_dir) if self.run_dir and trainer.is_global_zero else None,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the module, and changes the states that Lightning restores after this hook."""
        if trainer.state.fn != "fit" or KEY not in checkpoint:
            return
        assert isinstance(pl_module, ImageClassifier)
        run_dir = trainer.strategy.broadcast(self.run_dir)  # of rank 0, the only one that knows it
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and (state := checkpoint["callbacks"].get(callback.state_key)):
                callback.current_score = state["current_score"]  # Lightning does not restore it
                if run_dir is not None and (old := checkpoint[KEY]["run_dir"]) is not None:
                    _relocate_checkpoints(state, old, str(run_dir))
        state = self._state = checkpoint[KEY]
        pl_module.val_acc = checkpoint.get("val_acc")
        pl_module.step_rates = dict(state["rates"])
        pl_module.train_metrics.load_states(state["training"], trainer.global_rank, trainer.world_size)
        _print(trainer, f"going on after step {checkpoint['global_step']} of {run_length(trainer)[0]}")
        if changes := _adopt_settings(trainer, pl_module, checkpoint):
            _print(trainer, f"resumed with other settings: {', '.join(changes)}")

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


def _relocate_checkpoints(state: dict[str, Any], old: str, new: str) -> None:
    """Replaces the run's folder in the paths of a ModelCheckpoint's state, and drops files that do not exist.

    Args:
        state: of the ModelCheckpoint; left alone if its folder is not below that of the run.
        old: folder of the run when the checkpoint was written.
        new: folder of this run.
    """
    if not str(state["dirpath"]).startswith(old):
        return

    def relocate(path: str) -> str:
        return new + path.removeprefix(old) if path.startswith(old) else path

    for name in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = relocate(state[name])
    paths = {relocate(path): score for path, score in state["best_k_models"].items()}
    state["best_k_models"] = {path: score for path, score in paths.items() if Path(path).is_file()}
    if not Path(state["best_model_path"]).is_file():
        state |= {"best_model_path": "", "best_model_score": None, "kth_best_model_path": ""}


def _adopt_settings(trainer: pl.Trainer, module: ImageClassifier, checkpoint: dict[str, Any]) -> list[str]:
    """Restores the checkpoint's rates, found or given, and applies the settings that were changed since.

    Returns:
        A text of each change, for the console.
    """
    hparams, state = checkpoint["hyper_parameters"], checkpoint[KEY]
    then, now = {**hparams, **state["configured"]}, module.hparams_initial
    changed = changed_settings(then, now, (state["total_steps"], run_length(trainer)[0]))
    lr = now["lr"] if "lr" in changed else hparams["lr"]
    module.set_rates(float(lr), hparams["schedule"]["init_args"].get("lr_min"))
    if changed:
        fresh: Any = module.configure_optimizers()
        put_settings(checkpoint, changed, fresh["optimizer"], fresh["lr_scheduler"]["scheduler"])
    return list(changed.values())


def _print(trainer: pl.Trainer, line: str) -> None:
    if trainer.is_global_zero:
        print(line, flush=True)

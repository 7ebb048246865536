"""Lightning's epoch loop; hooks without a listener are not called.

Lightning 2.6 calls six hooks of each callback in each step, each within a context of the profiler, and reads anew what
stays the same for an epoch. `FastEpochLoop` calls only hooks that a callback or the module implements, in Lightning's
order, and skips the bookkeeping of logged values and of validation in steps that have neither. Counters, schedules,
checkpoints, clipping and resumed runs are the same.

Lightning's loops are private: `lightning<2.7`, and tests/training/test_fast_loop.py compares every hook, counter,
logged value and weight with those of the ordinary loop.
"""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

# of callbacks and of the module, within a step
HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
# methods with which a module, or a data module, changes what a step is
OWN_STEPS = ("optimizer_step", "optimizer_zero_grad", "backward", "lr_scheduler_step")
TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def use_loop(trainer: pl.Trainer, fast: bool) -> None:
    """Gives a Trainer the fast loop or Lightning's, before it restores a checkpoint into it."""
    loop = trainer.fit_loop.epoch_loop
    if isinstance(loop, FastEpochLoop) != fast:
        cls = FastEpochLoop if fast else _TrainingEpochLoop
        trainer.fit_loop.epoch_loop = cls(trainer, loop.min_steps, loop.max_steps)
        trainer.fit_loop.epoch_loop.val_loop = loop.val_loop  # which has its data already
    if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]  # of Lightning
        trainer.profiler = NoProfiler()  # type: ignore[attr-defined]


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, without a new context for each hook of each callback."""

    _context = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]  # no generator
        """Returns a context that does nothing."""
        return self._context


class FastEpochLoop(_TrainingEpochLoop):
    """Trains an epoch. A step that is more than forward, backward and one optimizer step is left to Lightning."""

    _listeners: dict[str, list[Callable[..., Any]]]
    _train: Callable[..., Any]
    _attributes: dict[str, Any]  # of the module, whose `__setattr__` takes a microsecond
    _is_plain = False  # whether steps of this epoch can be taken here
    _clips = False  # whether the module clips gradients itself
    _val_interval: float = 1  # batches after which Lightning is asked whether to validate

    def on_run_start(self, data_fetcher: Any) -> None:
        """Collects what stays the same in this epoch."""
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        self._listeners = {hook: listeners(trainer, hook) for hook in HOOKS}
        self._attributes = vars(trainer.lightning_module)
        self._train = _training_step(trainer)
        self._is_plain = has_plain_steps(trainer) and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        self._clips = _overrides(trainer.lightning_module, "configure_gradient_clipping")
        self._val_interval = _val_interval(trainer)

    @property
    def global_step(self) -> int:
        """Returns the number of optimizer steps."""
        return self.automatic_optimization.optim_progress.optimizer_steps if self._is_plain else super().global_step

    def advance(self, data_fetcher: Any) -> None:
        """Trains on a batch. The first one of a resumed run is Lightning's, which adjusts its counters there."""
        if self.restarting or not self._is_plain:
            super().advance(data_fetcher)
            return
        if self.trainer.world_size > 1:
            self._broadcast_sigterm_tensor()
        batch = self._on_device(_next_batch(data_fetcher))
        batch_idx = self.batch_idx + 1
        self.batch_progress.is_last_batch = data_fetcher.done
        self.batch_progress.increment_ready()
        self._start_logging(batch)
        outputs = {}
        if ends_epoch := self._call("on_train_batch_start", batch, batch_idx) == -1:
            self.batch_progress.increment_by(0, is_last_batch=True)
        else:
            self.batch_progress.increment_started()
            outputs = self._step(batch, batch_idx)
        self.batch_progress.increment_processed()
        self._update_schedules(batch_idx)
        if ends_epoch:
            raise StopIteration
        self._call("on_train_batch_end", outputs, batch, batch_idx)
        self._end_logging()

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Leaves a step to Lightning after which the run may validate or stop."""
        trainer = self.trainer
        is_due = data_fetcher.done or not (self.batch_idx + 1) % self._val_interval
        if is_due or self.restarting or not self._is_plain or trainer.should_stop or trainer.received_sigterm:
            super().on_advance_end(data_fetcher)
        else:
            self._batches_that_stepped += 1

    def _on_device(self, batch: Any) -> Any:
        strategy = self.trainer.strategy
        batch, device = self.trainer.precision_plugin.convert_input(batch), strategy.root_device
        is_there = all(getattr(part, "device", None) == device for part in batch)
        return batch if is_there else strategy.batch_to_device(batch, dataloader_idx=0)

    def _step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        optimizer = self.trainer.optimizers[0]
        progress = self.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        loss, outputs = self._training_step(batch, batch_idx)
        progress.zero_grad.increment_ready()
        self._call("on_before_zero_grad", optimizer)
        progress.zero_grad.increment_started()
        _zero_grad(optimizer)
        progress.zero_grad.increment_completed()
        if loss is not None:
            self._call("on_before_backward", loss)
            loss.backward()  # type: ignore[no-untyped-call]  # of torch
            self._call("on_after_backward")
        self._call("on_before_optimizer_step", optimizer)
        self._clip(optimizer)
        optimizer.step()
        progress.step.increment_completed()
        return outputs

    def _training_step(self, batch: Any, batch_idx: int) -> tuple[Tensor | None, dict[str, Any]]:
        self._attributes["_current_fx_name"] = "training_step"
        output = self._train(batch, batch_idx)
        self._attributes["_current_fx_name"] = None
        if isinstance(output, Tensor):
            return output, {"loss": output.detach()}
        if output is None and self.trainer.world_size > 1:
            raise RuntimeError("training_step returned None, which is not supported with more than one rank")
        result = ClosureResult.from_training_step_output(output)
        return result.closure_loss, {} if result.loss is None else result.asdict()

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        trainer = self.trainer
        if trainer.gradient_clip_val is not None or self._clips:
            trainer.lightning_module.configure_gradient_clipping(
                optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            )

    def _update_schedules(self, batch_idx: int) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == "step" and not config.reduce_on_plateau and (batch_idx + 1) % config.frequency == 0:
                self.scheduler_progress.increment_ready()
                config.scheduler.step()
                self.scheduler_progress.increment_completed()
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)

    # What Lightning's logger connector does in a step; it is for values that are logged within it.

    def _start_logging(self, batch: Any) -> None:
        connector, results = self.trainer._logger_connector, self._results
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None

    def _end_logging(self) -> None:
        results, connector = self._results, self.trainer._logger_connector
        has_logged = any(not value.has_reset for value in results.values())
        if has_logged:
            connector.on_batch_end()
        results.batch = results.batch_size = None
        self.batch_progress.increment_completed()
        if has_logged:
            connector.update_train_step_metrics()

    def _call(self, hook: str, *args: Any) -> Any:
        """Calls a hook's listeners; returns the answer of the last one, the module's if it is one."""
        response = None
        if found := self._listeners[hook]:
            self._attributes["_current_fx_name"] = hook  # for `self.log`
            for listener in found:
                response = listener(*args)
            self._attributes["_current_fx_name"] = None
        return response


def _training_step(trainer: pl.Trainer) -> Callable[..., Any]:
    """Returns the strategy's training step, or the module's where the strategy adds nothing to it."""
    is_alone = type(trainer.strategy) is SingleDeviceStrategy and type(trainer.precision_plugin) is Precision
    return trainer.lightning_module.training_step if is_alone else trainer.strategy.training_step


def listeners(trainer: pl.Trainer, hook: str) -> list[Callable[..., Any]]:
    """Returns the hook of each callback that implements it, and of the module, in the order of their calls."""
    module = trainer.lightning_module
    callbacks = [each for each in trainer.callbacks if _overrides(each, hook) and not _is_idle(each, hook)]  # type: ignore[attr-defined]  # of Lightning
    found: list[Callable[..., Any]] = [functools.partial(getattr(each, hook), trainer, module) for each in callbacks]
    return [*found, getattr(module, hook)] if _overrides(module, hook) else found


def _is_idle(callback: pl.Callback, hook: str) -> bool:
    """Returns whether this is a ModelCheckpoint that saves nothing within an epoch; it takes 11 microseconds for it."""
    return (
        isinstance(callback, ModelCheckpoint)
        and hook == "on_train_batch_end"
        and type(callback).on_train_batch_end is ModelCheckpoint.on_train_batch_end
        and callback._every_n_train_steps < 1
        and callback._train_time_interval is None
    )


def _next_batch(fetcher: Any) -> Any:
    """Returns the next batch of a single loader without Lightning's pytree of one loader."""
    loaders = fetcher.combined_loader
    if fetcher.length is None or loaders.iterables is not loaders.flattened[0]:
        return next(fetcher)[0]
    batch = next(fetcher.iterator._iterator)[0][0]
    fetcher.fetched += 1
    fetcher.done = fetcher.fetched >= fetcher.length
    return batch


def _zero_grad(optimizer: torch.optim.Optimizer) -> None:
    """Sets all gradients to None, as `Optimizer.zero_grad` does within a context of torch's profiler."""
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def has_plain_steps(trainer: pl.Trainer) -> bool:
    """Returns whether a step is forward, backward, clipping and one of the optimizer, on a whole network per rank."""
    module, data = trainer.lightning_module, getattr(trainer, "datamodule", None)
    return (
        isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]  # of Lightning
        and type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(trainer.precision_plugin, "scaler", None) is None
        and trainer.accumulate_grad_batches == 1
        and module.automatic_optimization
        and not isinstance(trainer.optimizers[0], torch.optim.LBFGS)  # which evaluates a batch several times
        and not any(_overrides(module, name) for name in (*OWN_STEPS, *TRANSFERS))
        and (data is None or not any(_overrides(data, name) for name in TRANSFERS))
    )


def _val_interval(trainer: pl.Trainer) -> float:
    """Returns the batches between validations, or 1 if they depend on the clock or on more than this epoch."""
    has_plateau = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
    interval = trainer.val_check_batch
    if has_plateau or trainer.check_val_every_n_epoch is None or interval is None or interval == math.inf:
        return 1
    return interval


def _overrides(owner: Any, name: str) -> bool:
    """Returns whether a method is not Lightning's own, but of a subclass or of the object itself."""
    bases = {pl.Callback: pl.Callback, pl.LightningModule: pl.LightningModule, pl.LightningDataModule: DataHooks}
    base = next(plain for cls, plain in bases.items() if isinstance(owner, cls))
    method = getattr(owner, name)
    return getattr(method, "__func__", method) is not getattr(base, name)

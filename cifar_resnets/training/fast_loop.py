"""A training loop that costs a step little: Lightning's own, without what nobody listens to.

Lightning 2.6 calls six hooks of each callback in each step, whether the callback has them or not, and wraps each call
into a profiler's context; so it does with the hooks of module and strategy. Beside steps of a millisecond that is dear.
Here a step calls the hooks that something implements, in Lightning's order, and nothing else. Batches are counted as
they always are: schedules, checkpoints, clipping and resumed runs cannot tell the difference.

Lightning's loops are private. tests/training/test_fast_loop.py compares every hook, counter and weight with the
ordinary loop, and so notices if Lightning should change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

# of callbacks and of the module, within a step
HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
# methods of a module that, overridden, have a say in what a step is
OWN_STEPS = ("optimizer_step", "optimizer_zero_grad", "backward", "lr_scheduler_step")
TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def use_loop(trainer: pl.Trainer, lean: bool) -> None:
    """Gives a Trainer the lean loop or Lightning's, before it restores anything into it."""
    loop = trainer.fit_loop.epoch_loop
    if isinstance(loop, LeanEpochLoop) != lean:
        cls = LeanEpochLoop if lean else _TrainingEpochLoop
        trainer.fit_loop.epoch_loop = cls(trainer, loop.min_steps, loop.max_steps)
        trainer.fit_loop.epoch_loop.val_loop = loop.val_loop  # which knows its data


class LeanEpochLoop(_TrainingEpochLoop):
    """Trains an epoch; a step that is more than forward, backward and one optimizer step is left to Lightning."""

    _listeners: dict[str, list[Callable[..., Any]]]
    _is_plain = False

    def on_run_start(self, data_fetcher: Any) -> None:
        """Notes who listens to a step of this epoch."""
        super().on_run_start(data_fetcher)
        self._listeners = {hook: listeners(self.trainer, hook) for hook in HOOKS}
        self._is_plain = has_plain_steps(self.trainer) and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)

    def advance(self, data_fetcher: Any) -> None:
        """Trains on a batch. The first one of a resumed run is Lightning's, which puts its counters in order by it."""
        if self.restarting or not self._is_plain:
            super().advance(data_fetcher)
            return
        if self.trainer.world_size > 1:
            self._broadcast_sigterm_tensor()
        batch = self._on_device(next(data_fetcher)[0])
        batch_idx = self.batch_idx + 1
        self.batch_progress.is_last_batch = data_fetcher.done
        self.batch_progress.increment_ready()
        self.trainer._logger_connector.on_batch_start(batch)
        outputs = {}
        if ends_epoch := self._call("on_train_batch_start", batch, batch_idx) == -1:
            self.batch_progress.increment_by(0, is_last_batch=True)
        else:
            self.batch_progress.increment_started()
            outputs = self._step(batch, batch_idx)
        self.batch_progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if ends_epoch:
            raise StopIteration
        self._call("on_train_batch_end", outputs, batch, batch_idx)
        self.trainer._logger_connector.on_batch_end()
        self.batch_progress.increment_completed()
        self.trainer._logger_connector.update_train_step_metrics()

    def _on_device(self, batch: Any) -> Any:
        strategy = self.trainer.strategy
        batch = self.trainer.precision_plugin.convert_input(batch)
        if all(part.device == strategy.root_device for part in batch):
            return batch
        return strategy.batch_to_device(batch, dataloader_idx=0)

    def _step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        optimizer = self.trainer.optimizers[0]
        progress = self.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        with torch.enable_grad():
            result = self.automatic_optimization._training_step(OrderedDict(batch=batch, batch_idx=batch_idx))
            progress.zero_grad.increment_ready()
            self._call("on_before_zero_grad", optimizer)
            progress.zero_grad.increment_started()
            optimizer.zero_grad()
            progress.zero_grad.increment_completed()
            if result.closure_loss is not None:
                self._call("on_before_backward", result.closure_loss)
                result.closure_loss.backward()  # type: ignore[no-untyped-call]  # of torch
                self._call("on_after_backward")
        self._call("on_before_optimizer_step", optimizer)
        self._clip(optimizer)
        optimizer.step()
        progress.step.increment_completed()
        return {} if result.loss is None else result.asdict()

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        trainer, module = self.trainer, self.trainer.lightning_module
        if trainer.gradient_clip_val is not None or _overrides(module, "configure_gradient_clipping"):
            module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)

    def _call(self, hook: str, *args: Any) -> Any:
        """What the last listener says, which is the module if it is one."""
        response = None
        if self._listeners[hook]:
            module = self.trainer.lightning_module
            module._current_fx_name = hook  # `self.log` asks where it is called
            for listener in self._listeners[hook]:
                response = listener(*args)
            module._current_fx_name = None
        return response


def listeners(trainer: pl.Trainer, hook: str) -> list[Callable[..., Any]]:
    """The hook of each callback that has one, and of the module, in the order of their calls."""
    module = trainer.lightning_module
    ours = [_bound(getattr(each, hook), trainer, module) for each in trainer.callbacks if _overrides(each, hook)]  # type: ignore[attr-defined]  # of Lightning
    return [*ours, getattr(module, hook)] if _overrides(module, hook) else ours


def _bound(hook: Callable[..., Any], *first: Any) -> Callable[..., None]:
    def call(*args: Any) -> None:
        hook(*first, *args)

    return call


def has_plain_steps(trainer: pl.Trainer) -> bool:
    """Whether a step is forward, backward, clipping and one of the optimizer, on ranks that each hold a network."""
    module, data = trainer.lightning_module, getattr(trainer, "datamodule", None)
    return (
        isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]  # of Lightning
        and type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(trainer.precision_plugin, "scaler", None) is None
        and trainer.accumulate_grad_batches == 1
        and module.automatic_optimization
        and not isinstance(trainer.optimizers[0], torch.optim.LBFGS)  # which takes several looks at a batch
        and not any(_overrides(module, name) for name in (*OWN_STEPS, *TRANSFERS))
        and (data is None or not any(_overrides(data, name) for name in TRANSFERS))
    )


def _overrides(owner: Any, name: str) -> bool:
    """Whether a method is another than Lightning's, in the class or put into the object."""
    bases = {pl.Callback: pl.Callback, pl.LightningModule: pl.LightningModule, pl.LightningDataModule: DataHooks}
    base = next(plain for cls, plain in bases.items() if isinstance(owner, cls))
    method = getattr(owner, name)
    return getattr(method, "__func__", method) is not getattr(base, name)

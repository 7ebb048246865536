"""Finds the learning rate by a range test before the first step, and gives it to the schedule."""

from __future__ import annotations

import csv
import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from rich.progress import Progress

from cifar_resnets.callbacks.lr_range_test import range_test
from cifar_resnets.callbacks.progress import print_line
from cifar_resnets.callbacks.publish import publish
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.errors import ConfigurationError, SearchError, require
from cifar_resnets.figures.lr_range_test import Plan, plot_search
from cifar_resnets.training.lr_curve import Spacing, spaced_rates
from cifar_resnets.training.lr_search import COLUMNS, Method, Search
from cifar_resnets.training.run_length import run_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OnFailure = Literal["keep", "error"]
_require = functools.partial(require, "LRFinder")


@dataclass(eq=False)
class LRFinder(pl.Callback):
    """Runs a learning-rate range test before a new fit; the schedule then peaks at the rate that was found.

    Everything else is as if the rate had been given: weights, random numbers and the order of the data. A resumed fit
    goes on with the rate of its checkpoint; nothing is searched in a `fast_dev_run`.

    The curve is the figure `lr_finder` in TensorBoard, and `lr_finder.csv` beside the logs.

    Args:
        method: which point of the curve is suggested: `valley`, `steep`, `minimum` (a tenth of its rate) or `slide`.
        min_lr: rate of the first step.
        max_lr: rate of the last step.
        num_steps: steps of a test, as many images as in training each; more than an epoch where the data are few.
        spacing: how the rates rise, `exponential` or `linear`.
        num_runs: tests on different batches; the geometric mean of their suggestions is taken.
        scale: what the suggestion is multiplied by.
        divergence: a test ends where the smoothed loss is so many times its smallest value.
        on_failure: whether a curve without a suggestion leaves the configured rate (`keep`) or ends the run (`error`).

    Raises:
        ConfigurationError: for a value out of range, or a strategy that splits the network over ranks.
        SearchError: at the start of a fit, when nothing was found and `on_failure` is `error`.
    """

    method: Method = "valley"
    min_lr: float = 1e-4
    max_lr: float = 10.0
    num_steps: int = 100
    spacing: Spacing = "exponential"
    num_runs: int = 1
    scale: float = 1.0
    divergence: float = 4.0
    on_failure: OnFailure = "keep"

    def __post_init__(self) -> None:
        rates = (self.min_lr, self.max_lr)
        _require(
            0 < self.min_lr < self.max_lr < math.inf, "min_lr, max_lr", rates, "two rates above 0, the smaller first"
        )
        _require(self.num_steps >= 20, "num_steps", self.num_steps, "20 or more")
        _require(self.num_runs >= 1, "num_runs", self.num_runs, "1 or more")
        _require(0 < self.scale < math.inf, "scale", self.scale, "a number above 0")
        _require(self.divergence > 1, "divergence", self.divergence, "a number above 1")
        for name, allowed in (("method", Method), ("spacing", Spacing), ("on_failure", OnFailure)):
            value, names = getattr(self, name), get_args(allowed)
            _require(value in names, name, value, f"one of {', '.join(names)}")
        self._resumed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses what the test cannot run on."""
        self._resumed = False
        finder_among(trainer.callbacks)  # type: ignore[attr-defined]  # of Lightning
        if stage == "fit" and not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            name = type(trainer.strategy).__name__
            raise ConfigurationError(f"trainer.strategy: LRFinder does not work with {name}, give auto or ddp")

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A resumed fit keeps the rates of its checkpoint."""
        if trainer.state.fn == "fit":
            self._resumed = True
            assert isinstance(pl_module, ImageClassifier)
            hparams = checkpoint["hyper_parameters"]
            pl_module.set_rates(hparams["lr"], hparams["schedule"]["init_args"].get("lr_min"))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Searches, and builds optimizer and schedule once more with what was found."""
        has_begun = self._resumed or trainer.global_step > 0
        if has_begun or trainer.fast_dev_run:  # type: ignore[attr-defined]  # of Lightning
            return
        assert isinstance(pl_module, ImageClassifier)
        search = self.search(trainer, pl_module)
        problem = search.problem(self.method)
        if problem is None:
            self.apply(pl_module, search)
        elif self.on_failure == "error":
            raise SearchError(f"LRFinder: {problem}")
        else:
            pl_module.set_rates(pl_module.hparams["lr"])
        trainer.strategy.setup_optimizers(trainer)
        print_line(trainer, self._line(pl_module, search, problem))
        self._log(trainer, pl_module, search)

    def apply(self, module: ImageClassifier, search: Search) -> None:
        """Gives the module what was found."""
        lr = float(f"{search.suggestion(self.method).value * self.scale:.6g}")  # as the console shows it
        module.set_rates(lr, min(search.start, lr))

    def search(self, trainer: pl.Trainer, module: ImageClassifier) -> Search:
        """Runs the tests; the same answer on all ranks."""
        rates = spaced_rates(self.min_lr, self.max_lr, self.num_steps, self.spacing)
        with _progress(trainer, self.num_runs * self.num_steps) as on_step:
            runs = range_test(trainer, module, rates, self.num_runs, self.divergence, on_step)
        search: Search = trainer.strategy.broadcast(Search(rates, runs))
        return search

    def figure(self, module: ImageClassifier, search: Search) -> Figure:
        """The curve of a search, and the schedule that the module would follow now."""
        return plot_search(search, self.method, _plan(module))

    def _line(self, module: ImageClassifier, search: Search, problem: str | None) -> str:
        lr = module.hparams["lr"]
        if problem is not None:
            return f"learning rate: {lr:g} as configured, the range test found none: {problem}"
        found = search.suggestion(self.method)
        times = "" if self.scale == 1 else f"{self.scale:g} x "
        spread = f", {found.low:.2g}-{found.high:.2g} over {self.num_runs} runs" if self.num_runs > 1 else ""
        start = getattr(module.schedule, "lr_min", None)
        rises = "" if start is None else f", from {_shown(start)}"
        return f"learning rate: {_shown(lr)} ({times}{self.method} of {self.num_steps} steps{spread}){rises}"

    def _log(self, trainer: pl.Trainer, module: ImageClassifier, search: Search) -> None:
        folder = trainer.log_dir if trainer.loggers else None  # a broadcast: for all ranks
        if not trainer.is_global_zero:
            return
        if folder is not None:
            write_csv(Path(folder) / "lr_finder.csv", search)
        if search.is_long_enough and any(isinstance(each, TensorBoardLogger) for each in trainer.loggers):
            publish(trainer, None, "lr_finder", self.figure(module, search), 0)


def finder_among(callbacks: Iterable[pl.Callback]) -> LRFinder | None:
    """The finder of a run, if it has one.

    Raises:
        ConfigurationError: when it has two, for example from the recipe and from the command line.
    """
    finders = [each for each in callbacks if isinstance(each, LRFinder)]
    if len(finders) > 1:
        raise ConfigurationError("trainer.callbacks: LRFinder is there twice")
    return finders[0] if finders else None


def write_csv(path: Path, search: Search) -> None:
    """Writes the numbers of a search, a row a step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(search.rows())


def _shown(rate: float) -> str:
    """A rate with three digits, or more where it has more."""
    return max(f"{rate:#.3g}", f"{rate:g}", key=len)


@contextmanager
def _progress(trainer: pl.Trainer, num_steps: int) -> Iterator[Callable[[], object]]:
    """Shows on a terminal how far the test is, and nothing afterwards."""
    visible = trainer.is_global_zero and sys.stdout.isatty()
    with Progress(transient=True, disable=not visible) as bar:
        task = bar.add_task("learning-rate range test", total=num_steps)
        yield lambda: bar.advance(task)


def _plan(module: ImageClassifier) -> Plan:
    """Rate and momentum of each step, from the scheduler itself."""
    configured: Any = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    total, per_epoch = run_length(module.trainer)
    group, rates, momenta = optimizer.param_groups[0], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer takes no steps
        for step in range(total):
            rates.append(group["lr"])
            momenta.append(group["momentum"] if "momentum" in group else group.get("betas", (None,))[0])
            if step < total - 1:
                scheduler.step()
    known = None if momenta[0] is None else np.array(momenta)
    return Plan(np.arange(total) / per_epoch, np.array(rates), known)

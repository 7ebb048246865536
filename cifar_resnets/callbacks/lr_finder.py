"""Finds the learning rate by a range test before the first step, and sets it in the schedule."""

from __future__ import annotations

import csv
import functools
import io
import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from rich.progress import Progress

from cifar_resnets.callbacks.exact_resume import Continuation
from cifar_resnets.callbacks.lr_range_test import range_test
from cifar_resnets.callbacks.progress import print_line
from cifar_resnets.callbacks.publish import has_pictures, output_dir, publish
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.errors import ConfigurationError, SearchError, require
from cifar_resnets.figures.lr_range_test import Plan, plot_search
from cifar_resnets.support.atomic_file import replacing
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

    All else is as if this rate had been given: weights, random numbers and the order of the data. A resumed fit goes
    on with the rate of its checkpoint; there is no test in a `fast_dev_run`.

    The curve is shown in TensorBoard as `lr_finder`, and written to `lr_finder.csv` beside the logs.

    Args:
        method: which point of the curve is suggested: `valley`, `steep`, `minimum` (a tenth of its rate) or `slide`.
        min_lr: rate of the first step.
        max_lr: rate of the last step.
        num_steps: steps of a test, with as many images each as in training; the data are repeated if they are few.
        spacing: of the rates, `exponential` or `linear`.
        num_runs: number of tests on different batches; the geometric mean of their suggestions is taken.
        scale: factor by which the suggestion is multiplied.
        divergence: a test ends when the smoothed loss is this many times its smallest value.
        on_failure: whether the configured rate is kept (`keep`) or the run ends (`error`) when nothing is found.

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
        ascend = 0 < self.min_lr < self.max_lr < math.inf
        _require(ascend, "min_lr, max_lr", rates, "two rates above 0, the smaller first")
        _require(self.num_steps >= 20, "num_steps", self.num_steps, "20 or more")
        _require(self.num_runs >= 1, "num_runs", self.num_runs, "1 or more")
        _require(0 < self.scale < math.inf, "scale", self.scale, "a number above 0")
        _require(self.divergence > 1, "divergence", self.divergence, "a number above 1")
        for name, allowed in (("method", Method), ("spacing", Spacing), ("on_failure", OnFailure)):
            value, names = getattr(self, name), get_args(allowed)
            _require(value in names, name, value, f"one of {', '.join(names)}")
        self._resumed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses a second finder, and strategies that the test cannot run with."""
        self._resumed = False
        finder_among(trainer.callbacks)  # type: ignore[attr-defined]  # of Lightning
        if stage == "fit" and not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            name = type(trainer.strategy).__name__
            raise ConfigurationError(f"trainer.strategy: LRFinder does not work with {name}, give auto or ddp")

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the rates of a fit that is resumed, unless `Continuation` does."""
        if trainer.state.fn != "fit":
            return
        self._resumed = True
        if not any(isinstance(each, Continuation) for each in trainer.callbacks):  # type: ignore[attr-defined]  # of Lightning
            assert isinstance(pl_module, ImageClassifier)
            hparams = checkpoint["hyper_parameters"]
            pl_module.set_rates(hparams["lr"], hparams["schedule"]["init_args"].get("lr_min"))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs the test, and builds optimizer and schedule again with the rate that was found."""
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
        """Sets the rates of the module to what was found."""
        lr = float(f"{search.suggestion(self.method).value * self.scale:.6g}")  # as the console shows it
        module.set_rates(lr, min(search.start, lr))

    def search(self, trainer: pl.Trainer, module: ImageClassifier) -> Search:
        """Runs the tests, and returns the same result on all ranks."""
        rates = spaced_rates(self.min_lr, self.max_lr, self.num_steps, self.spacing)
        visible = trainer.is_global_zero and sys.stdout.isatty()
        with Progress(transient=True, disable=not visible) as bar:
            task = bar.add_task("learning-rate range test", total=self.num_runs * self.num_steps)
            runs = range_test(trainer, module, rates, self.num_runs, self.divergence, lambda: bar.advance(task))
        search: Search = trainer.strategy.broadcast(Search(rates, runs))
        return search

    def figure(self, module: ImageClassifier, search: Search) -> Figure:
        """Draws the curve of a search, and the schedule that the module follows now."""
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
        folder = output_dir(trainer, None)
        if not trainer.is_global_zero:
            return
        if folder is not None:
            write_csv(folder / "lr_finder.csv", search)
        if search.is_long_enough and has_pictures(trainer):
            publish(trainer, None, "lr_finder", self.figure(module, search), 0)


def finder_among(callbacks: Iterable[pl.Callback]) -> LRFinder | None:
    """Returns the finder of a run, if it has one.

    Raises:
        ConfigurationError: when it has two, for example from the recipe and from the command line.
    """
    finders = [each for each in callbacks if isinstance(each, LRFinder)]
    if len(finders) > 1:
        raise ConfigurationError("trainer.callbacks: LRFinder is there twice")
    return finders[0] if finders else None


def write_csv(path: Path, search: Search) -> None:
    """Writes the numbers of a search, a row for each step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=COLUMNS)
    writer.writeheader()
    writer.writerows(search.rows())
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _shown(rate: float) -> str:
    """Formats a rate with three digits, or with more if it has more."""
    return max(f"{rate:#.3g}", f"{rate:g}", key=len)


def _plan(module: ImageClassifier) -> Plan:
    """Runs the scheduler once without training, and returns rate and momentum of each step."""
    configured: Any = module.configure_optimizers()
    group, scheduler = configured["optimizer"].param_groups[0], configured["lr_scheduler"]["scheduler"]
    num_steps, per_epoch = run_length(module.trainer)
    steps = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer takes no steps
        for _ in range(num_steps):
            steps.append((group["lr"], group["momentum"] if "momentum" in group else group.get("betas", [None])[0]))
            scheduler.step()
    rates, momenta = np.array(steps, float).T
    return Plan(np.arange(num_steps) / per_epoch, rates, None if np.isnan(momenta).any() else momenta)

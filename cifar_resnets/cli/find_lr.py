"""`cifar-resnets find-lr`: runs LRFinder's range test on the network and data of a recipe, without training."""

import dataclasses
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from cifar_resnets.callbacks.lr_finder import LRFinder, finder_among, write_csv
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.cli.parser import check_figure_path
from cifar_resnets.cli.train import CLI
from cifar_resnets.cli.train import run as run_cli
from cifar_resnets.errors import SearchError
from cifar_resnets.training.lr_curve import SUGGESTIONS
from cifar_resnets.training.lr_search import Search


def run(args: list[str]) -> None:
    """Runs the subcommand; raises UserError for a mistake of the user."""
    run_cli(["find_lr", *args[1:]], FindLR)


class SearchTrainer(pl.Trainer):
    """A Trainer with the subcommand `find_lr`, which ends a fit where the training would begin."""

    callbacks: list[pl.Callback]

    def find_lr(
        self,
        model: ImageClassifier,
        datamodule: pl.LightningDataModule,
        plot: Path | None = None,
        csv: Path | None = None,
        num_runs: int | None = None,
        num_steps: int | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
    ) -> None:
        """Run a learning-rate range test, and show what each method suggests; nothing is trained or written.

        Args:
            model: what would be trained.
            datamodule: what it would be trained on.
            plot: image file for the figure.
            csv: file for the numbers, a row a step.
            num_runs: tests on different batches; the recipe's, or 1.
            num_steps: steps of a test; the recipe's, or 100.
            min_lr: rate of the first step; the recipe's, or that of LRFinder.
            max_lr: rate of the last step; the recipe's, or that of LRFinder.
        """
        check_figure_path(plot)
        finder = finder_among(self.callbacks) or LRFinder()
        given: dict[str, Any] = {"num_runs": num_runs, "num_steps": num_steps, "min_lr": min_lr, "max_lr": max_lr}
        finder = dataclasses.replace(finder, **{name: value for name, value in given.items() if value is not None})
        self.callbacks = [SearchOnly(finder, plot, csv)]
        self.fit(model, datamodule=datamodule)


class SearchOnly(pl.Callback):
    """Runs a finder's test at the start of a fit, shows the result, writes figure and numbers, and ends the fit."""

    def __init__(self, finder: LRFinder, plot: Path | None = None, csv: Path | None = None) -> None:
        self.finder = finder
        self.plot = plot
        self.csv = csv

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks that the test can run with this Trainer and network."""
        self.finder.setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs the test; raises SearchError when nothing was found and the finder's `on_failure` is `error`."""
        assert isinstance(pl_module, ImageClassifier)
        search = self.finder.search(trainer, pl_module)
        problem = search.problem(self.finder.method)
        if problem is None:
            self.finder.apply(pl_module, search)
        self._show(pl_module, search)
        if problem is not None and self.finder.on_failure == "error":
            raise SearchError(f"LRFinder: {problem}")
        if problem is not None and trainer.is_global_zero:
            print(f"not to be trusted: {problem}", flush=True)
        trainer.fit_loop.max_epochs = 0  # ends the fit

    @rank_zero_only
    def _show(self, module: ImageClassifier, search: Search) -> None:
        if search.is_long_enough:
            Console().print(suggestion_table(search, self.finder.method))
        if self.csv is not None:
            write_csv(self.csv, search)
            print(f"written: {self.csv}")
        if self.plot is not None and search.is_long_enough:
            self.finder.figure(module, search).savefig(self.plot)
            print(f"written: {self.plot}")
        elif self.plot is not None:
            print(f"not written: {self.plot}, there is nothing to draw")


def suggestion_table(search: Search, method: str) -> Table:
    """Builds a table of the rate that each method suggests; bold is the method that a fit would use."""
    steps = max(len(losses) for losses in search.runs)
    table = Table(title=f"Range test of {steps} steps from {search.rates[0]:g}", title_justify="left")
    for heading in ("suggestion", "learning rate", "lowest run", "highest run"):
        table.add_column(heading, justify="left" if heading == "suggestion" else "right")
    for name in SUGGESTIONS:
        found = search.suggestion(name)
        cells = (f"{rate:#.3g}" for rate in (found.value, found.low, found.high))
        table.add_row(name, *cells, style="bold" if name == method else None)
    table.add_section()
    table.add_row("lr_min", f"{search.start:#.3g}")
    return table


class FindLR(CLI):
    """The command line with `find_lr` in place of `fit`."""

    trainer_class = SearchTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Returns the Trainer's methods that can be run, each with the arguments that have no key."""
        return {"find_lr": {"model", "datamodule"}}

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Builds a Trainer that writes no files."""
        self.save_config_callback = None
        self.check_run()
        nothing = {"logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0, "fast_dev_run": False}
        # without the run's folder and the default callbacks
        return LightningCLI.instantiate_trainer(self, **{**kwargs, **nothing})

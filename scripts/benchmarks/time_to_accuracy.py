"""How long a recipe trains until it reaches an accuracy on the test images: mean and interval over several seeds.

Each run is a `cifar-resnets fit` with all its callbacks, in this process. A short one before, which does not count,
warms up: it decodes the images into the cache, compiles, and lets the device choose its algorithms. The clock runs from
the first training batch on, over everything that a fit does, and stands still while the network is evaluated: after
each epoch, on all test images. Nothing is selected by these: no checkpoint, no epoch, no setting.

What follows `--` goes on to the command line of `fit`, for example `-- --trainer.max_epochs 5`.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fit import fit
from benchmarks.shared import fraction, item, not_negative, paragraph, percent, plural, positive, table
from benchmarks.training_clock import TrainingClock
from cifar_resnets.cli.train import CLI
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.results.seed_groups import mean_interval

WARM_UP = {"--trainer.max_steps": "10", "--trainer.limit_val_batches": "2"}
# after each epoch, on the test images; what is saved then is the newest state, and not the best
EVERY_EPOCH = {
    "--trainer.check_val_every_n_epoch": "1",
    "--trainer.val_check_interval": "1.0",
    "--checkpoint.monitor": "null",
    "--checkpoint.filename": "newest",
}
OWN = ("--seed_everything", "--trainer.default_root_dir", *EVERY_EPOCH)
COUNTED = ("accuracy_tta", "accuracy")  # the first of them that there is, is what must reach the target
MISSING = "-"
NOTE_ON_CURVE = (
    "The clock runs from the first training batch on. It stands still during evaluations, whose seconds, with all that "
    "is drawn of them, are beside it. Nothing is selected by the test images: no checkpoint, no epoch, no setting."
)
NOTE_ON_RUNS = (
    "Seconds: data is reading and decoding, set-up all else before the first batch, step 1 the first step, which is in "
    "the training; total has what follows the last epoch, too. The warm-up is a short run that counts in no mean."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    given = parser.add_argument
    given("-c", "--config", action="append", required=True, metavar="FILE", help="recipe or hardware, as `fit -c`")
    given("--images", metavar="DIR", help="DIR/train/<class>/*, DIR/test/<class>/* instead of the recipe's images")
    given("--target", type=fraction, default=0.94, metavar="ACC", help="accuracy to reach (default: %(default)s)")
    given("--runs", type=positive, default=5, metavar="N", help="runs, each with another seed (default: %(default)s)")
    given(
        "--seed", type=not_negative, default=0, help="of the first run; the next takes the next (default: %(default)s)"
    )
    given("--logs", metavar="DIR", help="keep the runs there, as `fit` does (default: they are deleted)")


# Running.


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the warm-up, then all seeds, one after the other."""
    check_overrides(args.overrides)
    warm_up, device = run(args, args.seed, WARM_UP, None)
    runs = [run(args, args.seed + number, {}, args.logs)[0] for number in range(args.runs)]
    for each in runs:
        each["seconds_to_target"] = seconds_to(each["curve"], args.target)
    return {"device": str(device), "warm_up": warm_up, "runs": runs, **summary(runs)}


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuses keys that the benchmark sets itself.

    Raises:
        ConfigurationError: for the first of these.
    """
    for word in overrides:
        if (key := word.partition("=")[0]) in OWN:
            own = "--seed" if key == "--seed_everything" else "--logs" if "root_dir" in key else "nothing"
            raise ConfigurationError(f"{key}: each run has its own, give {own} instead")


def run(
    args: argparse.Namespace, seed: int, more: dict[str, str], logs: str | None
) -> tuple[dict[str, Any], torch.device]:
    """Runs a fit with its messages on stderr; returns its figures and its device."""
    clocks: list[TrainingClock] = []

    def before(cli: CLI) -> None:
        clocks.append(TrainingClock(cli.datamodule))
        cli.trainer.callbacks += [clocks[0]]  # type: ignore[attr-defined]  # last: the hooks of all others count

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        fit(fit_arguments(args, seed, more, Path(logs or folder)), before)
        return figures_of(clocks[0], seed, start), clocks[0].device


def fit_arguments(args: argparse.Namespace, seed: int, more: dict[str, str], folder: Path) -> list[str]:
    """Returns the command line of a fit."""
    images = {"--data": "ImageFolder", "--data.root": args.images} if args.images else {}
    own = {**EVERY_EPOCH, "--seed_everything": str(seed), "--trainer.default_root_dir": str(folder), **more}
    configs = [word for path in args.config for word in ("-c", path)]
    return [*configs, *as_arguments(images), *args.overrides, *as_arguments(own)]


def as_arguments(options: dict[str, str]) -> list[str]:
    """Returns options as arguments of a command line."""
    return [word for option in options.items() for word in option]


def figures_of(clock: TrainingClock, seed: int, start: float) -> dict[str, Any]:
    """Returns the figures of a run.

    Raises:
        ConfigurationError: when it was never evaluated.
    """
    if not clock.curve:
        raise ConfigurationError("trainer: the network was never evaluated, leave limit_val_batches out")
    last = clock.curve[-1]
    return {
        "seed": seed,
        "num_images": clock.num_images,
        "curve": clock.curve,
        "data_seconds": clock.reading.seconds,
        "set_up_seconds": clock.first_batch_at - start - clock.reading.seconds,
        "first_step_seconds": clock.first_step,
        "training_seconds": last["training_seconds"],
        "evaluation_seconds": last["evaluation_seconds"],
        "total_seconds": time.perf_counter() - start,
    }


# Figures of all runs.


def counted(point: dict[str, Any]) -> float:
    """Returns the accuracy that counts: with test-time augmentation where the recipe has it."""
    return next(float(point[key]) for key in COUNTED if point[key] is not None)


def seconds_to(curve: Sequence[dict[str, Any]], target: float) -> float | None:
    """Returns the seconds of training to the end of the first epoch that reaches the target, or None."""
    return next((float(point["training_seconds"]) for point in curve if counted(point) >= target), None)


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns means over the runs: of the curve, of the final accuracies, of the time to the target."""
    finals = [each["curve"][-1] for each in runs]
    times = [each["seconds_to_target"] for each in runs if each["seconds_to_target"] is not None]
    return {
        "num_images": runs[0]["num_images"],
        "curve": mean_curve([each["curve"] for each in runs]),
        "final": {key: of_all([point[key] for point in finals]) for key in COUNTED},
        "to_target": of_all(times) if times else None,
        "num_reached": len(times),
    }


def mean_curve(curves: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns means, epoch by epoch, over the runs that have the epoch."""
    longest = max(curves, key=len)
    means = []
    for index, point in enumerate(longest):
        points = [curve[index] for curve in curves if index < len(curve)]
        keys = [key for key in point if key != "epoch" and point[key] is not None]
        means.append({"epoch": point["epoch"], **{key: statistics.fmean(p[key] for p in points) for key in keys}})
    return means


def of_all(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Returns the mean, with its 95 % interval by Student's t from two values on; None without values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    interval = list(mean_interval(known)) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "interval": interval, "n": len(known)}


# Report.


def markdown(report: dict[str, Any]) -> str:
    """Formats the mean curve, the runs, and the results."""
    given, runs = report["arguments"], report["runs"]
    recipe = ", ".join(given["config"])
    numbers = "{train:,} training images, evaluated on all {test:,} test images".format(**report["num_images"])
    seeds = f"seed {given['seed']}" if len(runs) == 1 else f"seeds {runs[0]['seed']} to {runs[-1]['seed']}, means"
    return "\n\n".join(
        [
            paragraph(f"{recipe}: {numbers} after each epoch; {seeds}:"),
            curve_table(report["curve"]),
            paragraph(NOTE_ON_CURVE),
            run_table(report),
            paragraph(NOTE_ON_RUNS),
            "\n".join(item(text) for text in results(report)),
        ]
    )


def curve_table(curve: Sequence[dict[str, Any]]) -> str:
    """Formats seconds and accuracies at the end of each epoch."""
    has_tta = "accuracy_tta" in curve[0]
    rows = []
    for point in curve:
        seconds = [f"{point[f'{kind}_seconds']:.2f}" for kind in ("training", "evaluation")]
        tta = [percent(point["accuracy_tta"])] if has_tta else []
        rows.append([str(point["epoch"]), *seconds, percent(point["accuracy"]), *tta])
    return table(["epoch", "training s", "evaluation s", "accuracy", *(["with TTA"] if has_tta else [])], rows)


def run_table(report: dict[str, Any]) -> str:
    """Formats the seconds of each run by kind."""
    target = f"to {report['arguments']['target']:.4g}"
    headings = ["seed", "data", "set-up", "step 1", "training", "testing", "total", target]
    rows = [["warm-up", *seconds_cells(report["warm_up"]), MISSING]]
    for each in report["runs"]:
        reached = each["seconds_to_target"]
        rows.append([str(each["seed"]), *seconds_cells(each), MISSING if reached is None else in_cell(reached)])
    return table(headings, rows)


def seconds_cells(figures: dict[str, Any]) -> list[str]:
    """Formats the seconds of a run by kind."""
    kinds = ("data", "set_up", "first_step", "training", "evaluation", "total")
    return [in_cell(figures[f"{kind}_seconds"]) for kind in kinds]


def in_cell(seconds: float) -> str:
    """Formats seconds, from 100 on without decimals."""
    return f"{seconds:.2f}" if seconds < 100 else f"{seconds:,.0f}"


def results(report: dict[str, Any]) -> list[str]:
    """Formats time to the target and final accuracies, a sentence each."""
    given, reached, num = report["arguments"], report["num_reached"], len(report["runs"])
    how = ", with test-time augmentation," if report["final"]["accuracy_tta"] else ""
    first = f"{percent(given['target'])}{how} was reached by {reached} of {plural(num, 'run')}"
    if reached:
        first += f", after {mean_text(report['to_target'], '{:.2f}', 's')} of training"
        first += " (the mean of those that reached it)" if reached < num else ""
    names = {"accuracy": "final accuracy", "accuracy_tta": "final accuracy with test-time augmentation"}
    scaled = {key: in_percent(report["final"][key]) for key in names if report["final"][key]}
    return [first, *(f"{names[key]}: {mean_text(value, '{:.2f}', '%')}" for key, value in scaled.items())]


def in_percent(value: dict[str, Any]) -> dict[str, Any]:
    """Returns a mean and its interval, times 100."""
    interval = value["interval"] and [100 * end for end in value["interval"]]
    return {**value, "mean": 100 * value["mean"], "interval": interval}


def mean_text(value: dict[str, Any], form: str, unit: str) -> str:
    """Formats the mean, with its 95 % interval if there is one."""
    mean = f"{form.format(value['mean'])} {unit}"
    if value["interval"] is None:
        return mean
    low, high = map(form.format, value["interval"])
    return f"{mean} on average (95 % interval {low} to {high} {unit}, n = {value['n']})"

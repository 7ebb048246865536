"""What a learning-rate range test costs: `LRFinder` before a fit, against as many training steps of that fit.

Both are timed within one `Trainer.fit` on synthetic images: the search with all that belongs to it (building loader and
optimizer, restoring everything, figure and CSV), and the steps that follow.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fit import WARM_UP, Clock, Noise, add_fit_arguments, quiet_fit, timed
from benchmarks.shared import device_of, plural, positive, table, target_note
from cifar_resnets.callbacks.dashboard import Stopwatch
from cifar_resnets.callbacks.lr_finder import LRFinder

FACTOR, CONSTANT = 1.15, 2.0  # the target: at most so many times the steps' time, plus so many seconds
NAMES = {"test": "range test", "steps": "training steps"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    add_fit_arguments(parser)
    add = parser.add_argument
    add("--steps", type=positive, default=100, help="steps of the test, and of the training (default: %(default)s)")
    add("--rounds", type=positive, default=3, help="after one that does not count (default: %(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds of the range test and of the steps, in each round and as medians."""
    rounds = [one_round(args) for _ in range(args.rounds + 1)][1:]
    seconds = {name: statistics.median(each[name] for each in rounds) for name in NAMES}
    return {
        "device": str(device_of(args.accelerator)),
        "seconds": seconds,
        "rounds": rounds,
        "ratio": seconds["test"] / seconds["steps"],
        "is_reached": seconds["test"] <= FACTOR * seconds["steps"] + CONSTANT,
    }


def one_round(args: argparse.Namespace) -> dict[str, float]:
    """Times a range test, and as many training steps."""
    # up to a rate at which a test does not diverge, which would end it early
    finder, watch, clock = LRFinder(num_steps=args.steps, max_lr=0.1), Stopwatch(), Clock()
    finder.on_fit_start = timed(finder.on_fit_start, watch)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        quiet_fit(args, Path(folder), Noise(args.steps + WARM_UP, args.batch_size), finder, clock)
    return {"test": watch.seconds, "steps": clock.seconds}


def markdown(report: dict[str, Any]) -> str:
    """Formats the seconds as a table, with their ratio."""
    rows = []
    for key, name in NAMES.items():
        values = [each[key] for each in report["rounds"]]
        rows.append([name, f"{report['seconds'][key]:.2f}", f"{min(values):.2f} to {max(values):.2f}"])
    note = target_note(report["is_reached"], f"{FACTOR:g} and {CONSTANT:g} s")
    steps = f"{plural(report['arguments']['steps'], 'step')} each, ratio {report['ratio']:.3f} ({note})"
    return "\n\n".join([table(["", "seconds", "lowest to highest"], rows), steps])

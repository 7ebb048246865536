"""What seeing the mistakes costs: the callbacks that draw by default, as a part of the epochs of their fit.

One fit with the callbacks of `cifar-resnets fit` that write the dashboard and explain mistakes; each of their hooks is
timed. A run of ten epochs draws after each of them, a longer one ten times: the first is the worst case.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fit import Epochs, Noise, add_fit_arguments, quiet_fit, time_hooks
from benchmarks.shared import device_of, milliseconds, percent, positive, table, target_note
from cifar_resnets.callbacks.confusion import Confusion
from cifar_resnets.callbacks.dashboard import Dashboard
from cifar_resnets.callbacks.misclassified import Misclassified
from cifar_resnets.callbacks.report_writer import ReportWriter

TARGET = 0.03  # of an epoch, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    add_fit_arguments(parser)
    add = parser.add_argument
    add("--batches", type=positive, default=351, help="steps an epoch (default: %(default)s, as of CIFAR-10)")
    add("--epochs", type=positive, default=2, help="epochs, after each of which figures are drawn (default: 2)")
    add("--num-val", type=positive, default=5000, metavar="N", help="validation images (default: %(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds of an epoch, and of the hooks of each callback within it."""
    epochs = Epochs()
    with tempfile.TemporaryDirectory() as folder:
        misclassified, confusion = Misclassified(), Confusion()
        misclassified.run_dir = confusion.run_dir = Path(folder)
        own = Dashboard(), misclassified, confusion, ReportWriter(Path(folder))
        watches = time_hooks(*own)
        data = Noise(args.batches, args.batch_size, args.num_val)
        quiet_fit(args, Path(folder), data, *own, epochs, max_epochs=args.epochs)
    spent = {name: watch.seconds / args.epochs for name, watch in watches.items()}
    seconds = epochs.seconds / args.epochs
    return {
        "device": str(device_of(args.accelerator)),
        "seconds": seconds,
        "hooks": spent,
        "ratio": sum(spent.values()) / seconds,
        "target": TARGET,
    }


def markdown(report: dict[str, Any]) -> str:
    """Formats the times as a table, with their part of an epoch."""
    hooks = report["hooks"].items()
    rows = [[name, milliseconds(seconds), percent(seconds / report["seconds"])] for name, seconds in hooks]
    note = target_note(report["ratio"] < report["target"], percent(report["target"], 0))
    total = f"together {percent(report['ratio'])} of the {report['seconds']:.1f} s of an epoch ({note})"
    return "\n\n".join([table(["", "ms an epoch", "of an epoch"], rows), total])

"""What surviving costs: checkpoints within an epoch and the check of each step, as a part of the training.

One fit with the callbacks of `cifar-resnets fit` that save and check; each of their hooks is timed, and within the
saves the serialisation, the checksum and the synchronisation with the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.fit import Epochs, Noise, add_fit_arguments, quiet_fit, time_hooks, timed
from benchmarks.shared import device_of, milliseconds, percent, plural, positive, table, target_note
from cifar_resnets.callbacks.dashboard import Stopwatch
from cifar_resnets.callbacks.exact_resume import Continuation
from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.callbacks.nonfinite_guard import NonfiniteGuard

TARGET = 0.02  # of the training, at most
PARTS = {"torch.save": (torch, "save"), "SHA-256": (hashlib, "sha256"), "fsync": (os, "fsync")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    add_fit_arguments(parser)
    parser.add_argument("--steps", type=positive, default=401, help="steps of the fit (default: %(default)s)")
    parser.add_argument(
        "--every-n-steps", type=positive, default=200, help="steps between checkpoints (default: %(default)s)"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds of the fit, of the hooks of each callback and of the parts of all saves."""
    parts = {name: Stopwatch() for name in PARTS}
    epochs = Epochs()
    with tempfile.TemporaryDirectory(dir=".") as folder, ExitStack() as patches:  # on a disk; /tmp may be in memory
        last = LastCheckpoint(args.every_n_steps, dirpath=str(Path(folder) / "checkpoints"))
        own = NonfiniteGuard(), last
        hooks = time_hooks(*own)
        for name, (owner, function) in PARTS.items():
            patched = timed(getattr(owner, function), parts[name])
            patches.enter_context(mock.patch.object(owner, function, patched))
        quiet_fit(args, Path(folder), Noise(args.steps, args.batch_size), Continuation(Path(folder)), *own, epochs)
        size = last.path.stat().st_size
    seconds = {name: watch.seconds for name, watch in hooks.items()}
    return {
        "device": str(device_of(args.accelerator)),
        "seconds": epochs.seconds,
        "hooks": seconds,
        "parts": {name: watch.seconds for name, watch in parts.items()},
        "num_checkpoints": args.steps // args.every_n_steps + 1,  # one at the epoch's end
        "checkpoint_bytes": size,
        "ratio": sum(seconds.values()) / epochs.seconds,
        "target": TARGET,
    }


def markdown(report: dict[str, Any]) -> str:
    """Formats the times as a table, with their part of the training."""
    known = {**report["hooks"], **{f"of which {name}": value for name, value in report["parts"].items()}}
    rows = [[name, milliseconds(seconds), percent(seconds / report["seconds"], 3)] for name, seconds in known.items()]
    saves = f"{plural(report['num_checkpoints'], 'checkpoint')} of {report['checkpoint_bytes'] / 2**20:.1f} MiB"
    what = f"{saves} in {plural(report['arguments']['steps'], 'step')}, {report['seconds']:.1f} s"
    note = target_note(report["ratio"] < report["target"], percent(report["target"], 0))
    return "\n\n".join(
        [what, table(["", "ms", "of the training"], rows), f"together {percent(report['ratio'])} ({note})"]
    )

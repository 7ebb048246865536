"""What surviving costs: checkpoints within an epoch and the guard of each step, against the training they protect.

One fit with the callbacks as `cifar-resnets fit` has them; each of their hooks is timed, and within the saves the
checksum and the synchronisation with the disk. Run it on an idle machine:

    python scripts/benchmark_checkpoints.py
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark_explanations import Epochs, timed
from benchmarks.fit import Noise, quiet_trainer
from benchmarks.shared import device_of, machine, positive

from cifar_resnets.callbacks.exact_resume import Continuation
from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.callbacks.nonfinite_guard import NonfiniteGuard
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.runs import checkpoint_file
from cifar_resnets.training.schedules import OneCycle

TARGET = 0.02
PARTS = {"torch.save": (torch, "save"), "SHA-256": (hashlib, "sha256"), "fsync": (os, "fsync")}


def time_part(owner: Any, name: str, label: str, seconds: dict[str, float]) -> Callable[[], None]:
    """Adds up the seconds that a function takes; returns what puts the function back."""
    original = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[label] += time.perf_counter() - start

    setattr(owner, name, run)
    return lambda: setattr(owner, name, original)


def measure(args: argparse.Namespace, folder: Path) -> tuple[float, dict[str, float], dict[str, float], int]:
    """Seconds of the fit, of the hooks of each callback, of the parts of all saves, and the bytes of a checkpoint."""
    hooks: dict[str, float] = defaultdict(float)
    parts: dict[str, float] = defaultdict(float)
    last = LastCheckpoint(args.every_n_steps, dirpath=str(folder / "checkpoints"))
    own = [timed(each, hooks) for each in (NonfiniteGuard(), last)]
    epochs = Epochs()
    trainer = quiet_trainer(folder, args.accelerator, Continuation(folder), *own, epochs)
    data = Noise(args.steps, args.batch_size)
    restore = [time_part(owner, name, label, parts) for label, (owner, name) in PARTS.items()]
    trainer.fit(ImageClassifier(data.class_names, args.network, schedule=OneCycle()), datamodule=data)
    for each in restore:
        each()
    return epochs.marks[-1] - epochs.marks[0], hooks, parts, last.path.stat().st_size


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--batch-size", type=positive, default=128, help="images a step")
    parser.add_argument("--steps", type=positive, default=401, help="steps of the fit")
    parser.add_argument("--every-n-steps", type=positive, default=200, help="steps from checkpoint to checkpoint")
    parser.add_argument("--network", default="cifar_resnet20", help="a name of timm's registry")
    parser.add_argument("--accelerator", default="cpu", help="as the Trainer takes it: cpu, gpu, auto")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # about a benchmark's short epochs and few workers
    with tempfile.TemporaryDirectory(dir=".") as folder:  # a disk, which the system's folder may not be
        total, hooks, parts, size = measure(args, Path(folder))
    saves = args.steps // args.every_n_steps + 1  # and that of the epoch's end
    print(f"{saves} checkpoints of {size / 2**20:.1f} MiB in {args.steps} steps, {total:.1f} s")
    for name, spent in [*hooks.items(), *((f"  of which {name}", seconds) for name, seconds in parts.items())]:
        print(f"{name:<24} {spent * 1000:9.1f} ms {spent / total:8.3%}")
    ratio = sum(hooks.values()) / total
    print(f"together {ratio:.2%} of the training (target {TARGET:.0%}: {'reached' if ratio < TARGET else 'missed'})")
    print("\n".join(machine(device_of(args.accelerator)).split("; ")))


if __name__ == "__main__":
    assert checkpoint_file.hashlib is hashlib  # whose functions are timed
    main()

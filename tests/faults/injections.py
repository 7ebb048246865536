"""Faults that are put into a process before its command line runs; `processes` finds them by their module."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from cifar_resnets.callbacks import lr_finder
from cifar_resnets.callbacks.lr_range_test import range_test
from cifar_resnets.classifier import ImageClassifier


def slow_range_test(reached: Path, num_steps: int) -> None:
    """Makes the range test stay for a minute after so many steps, where it creates a file."""
    count = 0

    def slow(trainer: Any, module: Any, rates: Any, num_runs: int, divergence: float, on_step: Any) -> Any:
        def on_slow_step() -> None:
            nonlocal count
            on_step()
            count += 1
            if count == num_steps:
                reached.touch()
                for _ in range(6000):  # a signal just before a long sleep would wait for its end
                    time.sleep(0.01)

        return range_test(trainer, module, rates, num_runs, divergence, on_slow_step)

    lr_finder.range_test = slow


def fill(disk: Path, left: int) -> None:
    """Leaves so many bytes of a file system."""
    free = os.statvfs(disk)
    (disk / "filling").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))


def poison_the_images(step: int, times: int = 1) -> None:
    """Makes the images of some training steps NaN, counted from 1."""
    original, steps = ImageClassifier.training_step, 0

    def training_step(self: ImageClassifier, batch: Any, batch_idx: int) -> Any:
        nonlocal steps
        steps += 1
        images, labels = batch
        return original(self, (images * float("nan"), labels) if step <= steps < step + times else batch, batch_idx)

    ImageClassifier.training_step = training_step

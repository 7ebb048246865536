"""What a training step costs beyond its arithmetic: microseconds a step of a network of one linear layer.

A bare loop (zero_grad, forward, loss, backward, optimizer step, schedule step) over the project's loader; Lightning's
Trainer without a callback or logger; `cifar-resnets fit` with the callbacks that it has by default; and the same with
`model.fast`: in turns within one process, on batches of 4 images of 8x8 pixels. What they take beyond the loop is the
same for a large network, and a small part of its step. Only one core and one thread give steady figures:

    taskset -c 1 python scripts/benchmark.py steps --threads 1
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import lightning.pytorch as pl
import torch
from timm.models import register_model
from torch import Tensor, nn

from benchmarks.fit import WARM_UP, Clock, Noise
from benchmarks.networks import batch_loss
from benchmarks.shared import NUM_CLASSES, paragraph, plural, positive, span, table, target_note
from benchmarks.trainer import optimizer_and_schedule, resident_loader, time_fit, time_loop

IMAGE_SIZE, BATCH_SIZE = 8, 4
WAYS = {
    "loop": "bare PyTorch loop",
    "trainer": "Lightning's Trainer alone",
    "fit": "`cifar-resnets fit`",
    "fast": "the same with `model.fast`",
}
TARGETS = {"fit": 250, "fast": 100}  # microseconds a step over the loop, at most


@register_model
def benchmark_linear(pretrained: bool = False, num_classes: int = NUM_CLASSES, **kwargs: Any) -> nn.Module:
    """Builds a network of one linear layer; in timm's registry, so that `fit` can name it."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE_SIZE**2, num_classes))


class Plain(pl.LightningModule):
    """Trains a network by what the bare loop does, and nothing more.

    Args:
        num_steps: length of the schedule.
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.network = benchmark_linear()
        self.num_steps = num_steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        return batch_loss(self.network, *batch)

    def configure_optimizers(self) -> Any:
        """Returns optimizer and schedule."""
        optimizer, schedule = optimizer_and_schedule(self.network, self.num_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    add = parser.add_argument
    add("--steps", type=positive, default=2000, help="timed steps a round (default: %(default)s)")
    add("--rounds", type=positive, default=7, help="of each, after one that does not count (default: %(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the microseconds a step of all three, in each round and as medians."""
    taken = [{way: microseconds(way, args.steps) for way in WAYS} for _ in range(args.rounds + 1)][1:]
    rounds = {way: [each[way] for each in taken] for way in WAYS}
    medians = {way: statistics.median(values) for way, values in rounds.items()}
    over = {way: median - medians["loop"] for way, median in medians.items() if way != "loop"}
    return {"device": "cpu", "microseconds": medians, "rounds": rounds, "over_loop": over, "targets": TARGETS}


def microseconds(way: str, steps: int) -> float:
    """Times so many steps."""
    args = argparse.Namespace(
        network=benchmark_linear.__name__,
        batch_size=BATCH_SIZE,
        image_size=IMAGE_SIZE,
        steps=steps,
        precision="32-true",
        compile=None,
        accelerator="cpu",
        fast=way == "fast",
    )
    if way == "loop":
        seconds = time_loop(args, torch.device("cpu"), False)
    else:
        seconds = time_trainer(args) if way == "trainer" else time_fit(args)[0].seconds
    return 1e6 * seconds / steps


def time_trainer(args: argparse.Namespace) -> float:
    """Times the steps of a Trainer whose only callback is the clock."""
    clock, data = Clock(), Noise(args.steps + WARM_UP, args.batch_size, image_size=args.image_size)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[clock], **dict.fromkeys(off, False))  # type: ignore[arg-type]
    trainer.fit(Plain(args.steps + WARM_UP), resident_loader(data, torch.device("cpu")))
    return clock.seconds


def markdown(report: dict[str, Any]) -> str:
    """Formats the figures as a table, with what was trained."""
    rows, notes = [], []
    for way, name in WAYS.items():
        over = report["over_loop"].get(way)
        row = [name, f"{report['microseconds'][way]:,.0f}", span(report["rounds"][way])]
        rows.append([*row, "-" if over is None else f"{over:,.0f}"])
        if target := report["targets"].get(way):
            notes.append(f"{name}: {over:,.0f} over the loop ({target_note(over <= target, str(target))})")
    given = report["arguments"]
    what = f"One linear layer, batches of {BATCH_SIZE} images of {IMAGE_SIZE}x{IMAGE_SIZE} pixels"
    turns = f"medians of {plural(given['rounds'], 'round')} of {plural(given['steps'], 'step')}, in turns"
    headings = ["microseconds a step", "median", "lowest to highest", "over the loop"]
    return "\n\n".join([table(headings, rows), "\n".join(notes), paragraph(f"{what}; {turns}.")])

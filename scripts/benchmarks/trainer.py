"""What Lightning costs: `cifar-resnets fit` against a bare PyTorch loop.

Both train the same network with the same loader, optimizer and schedule on the same synthetic images, in turns within
one process. Timed is what lies between the first and the last batch of a round, after a few steps that warm up, so that
neither start-up nor compilation nor validation counts, but each hook of each step does: of all callbacks that the
command has by default, since it is the command's own code that runs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import statistics
import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from benchmarks.fit import WARM_UP, Clock, Noise, add_fit_arguments, fit
from benchmarks.networks import batch_loss
from benchmarks.shared import (
    COMPILE_MODES,
    NUM_CLASSES,
    PRECISIONS,
    device_of,
    now,
    paragraph,
    peak_rss_mib,
    plural,
    positive,
    span,
    table,
    target_note,
)
from cifar_resnets.cli.train import CLI
from cifar_resnets.data.datamodule import DEFAULT_AUGMENTATION
from cifar_resnets.data.loaders import TrainLoader
from cifar_resnets.models.registry import create_network

NAMES = {"loop": "bare PyTorch loop", "fit": "`cifar-resnets fit`"}
# the least part of the loop's images per second
TARGET_CPU, TARGET_GPU, TARGET_FAST_GPU = 0.98, 0.97, 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    add_fit_arguments(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true", help="of both (default: %(default)s)")
    parser.add_argument("--compile", choices=COMPILE_MODES, help="torch.compile in this mode, of both")
    parser.add_argument("--fast", action="store_true", help="fit by `--model.fast true`")
    parser.set_defaults(image_size=32)
    parser.add_argument("--steps", type=positive, default=60, help="timed steps a round (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=positive, default=3, help="of each, after one that does not count (default: %(default)s)"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times both in turns, so that other load affects both; returns the images per second of each round."""
    device = device_of(args.accelerator)
    torch.backends.cudnn.benchmark = True  # as configs/hardware/gpu.yaml; the Trainer leaves it
    images = args.steps * args.batch_size
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(args.rounds + 1):
        clock, callbacks = time_fit(args)
        loop = time_loop(args, device, clock.is_fused)
        if number:  # the first round of each warms up allocator, caches and clock rates
            rates["fit"].append(images / clock.seconds)
            rates["loop"].append(images / loop)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "device": str(device),
        "images_per_second": medians,
        "rounds": rates,
        "ratio": medians["fit"] / medians["loop"],
        "target": target(device, args.fast),
        "callbacks": callbacks,
        "fused_optimizer": clock.is_fused,
        "peak_rss_mib": peak_rss_mib(),
    }


def target(device: torch.device, is_fast: bool) -> float:
    """Returns the lowest ratio that is good enough."""
    if device.type == "cpu":
        return TARGET_CPU
    return TARGET_FAST_GPU if is_fast else TARGET_GPU


def time_fit(args: argparse.Namespace) -> tuple[Clock, list[str]]:
    """Times `args.steps` steps of a fit; returns the clock, and the names of the other callbacks."""
    clock = Clock()
    names: list[str] = []

    def before(cli: CLI) -> None:
        callbacks: list[pl.Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]  # of Lightning
        names.extend(type(each).__name__ for each in callbacks)
        callbacks.append(clock)  # last: the hooks of all others count

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        fit(fit_arguments(args, folder), before)
    return clock, names


def fit_arguments(args: argparse.Namespace, folder: str) -> list[str]:
    """Returns the command line of the fit."""
    options = {
        "--model.network": args.network,
        "--model.schedule": "OneCycle",
        "--data": f"{Noise.__module__}.{Noise.__name__}",
        "--data.num_batches": args.steps + WARM_UP,
        "--data.batch_size": args.batch_size,
        "--data.image_size": args.image_size,
        "--trainer.accelerator": args.accelerator,
        "--trainer.devices": 1,
        "--trainer.precision": args.precision,
        "--trainer.max_epochs": 1,
        "--trainer.default_root_dir": folder,
    }
    options |= {"--model.compile": args.compile} if args.compile else {}
    options |= {"--model.fast": "true"} if args.fast else {}
    return [str(word) for option in options.items() for word in option]


def time_loop(args: argparse.Namespace, device: torch.device, is_fused: bool) -> float:
    """Times as many steps of a bare loop."""
    data = Noise(args.steps + WARM_UP, args.batch_size, image_size=args.image_size)
    loader = resident_loader(data, device)
    network = create_network(args.network, NUM_CLASSES).to(device).to(memory_format=torch.channels_last)
    optimizer, scheduler = optimizer_and_schedule(network, args.steps + WARM_UP, is_fused)
    is_mixed = args.precision == "bf16-mixed"
    precision = functools.partial(torch.autocast, device.type, torch.bfloat16) if is_mixed else contextlib.nullcontext
    loss_of: Any = functools.partial(batch_loss, network)
    if args.compile:
        loss_of = torch.compile(loss_of, mode=args.compile)
    start = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == WARM_UP:
            start = now(device)
        optimizer.zero_grad()
        with precision():
            loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
    return now(device) - start


def optimizer_and_schedule(
    network: nn.Module, num_steps: int, is_fused: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Builds SGD and one cycle as `fit` has them by default."""
    options: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    options |= {"fused": True} if is_fused else {}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, **options)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=num_steps)


def resident_loader(data: Noise, device: torch.device) -> TrainLoader:
    """Builds the loader that the data module gives to a Trainer."""
    images, labels = (torch.from_numpy(values)[: -data.num_val].to(device) for values in data.load("train"))
    return TrainLoader(
        images,
        labels,
        batch_size=data.batch_size,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        augmentation=DEFAULT_AUGMENTATION,
        seed=0,
        num_classes=NUM_CLASSES,
    )


def markdown(report: dict[str, Any]) -> str:
    """Formats the figures as a table, with the ratio and what was trained."""
    rows = [
        [name, f"{report['images_per_second'][key]:,.0f}", span(report["rounds"][key])] for key, name in NAMES.items()
    ]
    given, goal = report["arguments"], report["target"]
    figures = f"ratio {report['ratio']:.3f} ({target_note(report['ratio'] >= goal, f'{goal:g}')})"
    what = [f"{given['network']}, batches of {given['batch_size']}, precision {given['precision']}"]
    what += [f"compiled in mode {given['compile']}"] if given["compile"] else []
    what += ["model.fast"] if given["fast"] else []
    turns = f"medians of {plural(given['rounds'], 'round')} of {plural(given['steps'], 'step')}"
    what += [f"{turns}, in each of which both have their turn"]
    what += [f"{len(report['callbacks'])} callbacks", f"peak RSS {report['peak_rss_mib']:,.0f} MiB"]
    return "\n\n".join([table(["", "images/s", "lowest to highest"], rows), figures, paragraph(f"{'; '.join(what)}.")])

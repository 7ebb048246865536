"""How fast each network trains: forward, backward and optimizer step on images that lie on the device, normalised.

A bare loop without loader or Lightning, eager and compiled. How many steps are timed follows from a budget of seconds,
after the steps that warm up; even a network that takes longer than that for a step is timed with one.
"""

from __future__ import annotations

import argparse
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shared import (
    COMPILE_MODES,
    NUM_CLASSES,
    PRECISIONS,
    above_zero,
    add_accelerator,
    device_of,
    item,
    now,
    paragraph,
    positive,
    table,
)
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.registry import create_network
from cifar_resnets.support.text import did_you_mean

EPOCH = 50_000  # images
OFF = "off"
COMPILE_STEPS = 3  # within which a compiled step is compiled, and recorded where its mode does that
MISSING = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="of timm's registry (default: all cifar_*)")
    parser.add_argument(
        "--batch-sizes", type=positive, nargs="+", default=[128], metavar="N", help="images a step (default: 128)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="32-true", help="of the forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--channels-last", action=argparse.BooleanOptionalAction, default=True, help="memory format of the weights"
    )
    modes = f"of torch.compile, or {OFF} (default: {OFF} on the CPU, default on a GPU)"
    parser.add_argument("--compile", choices=(*COMPILE_MODES, OFF), help=modes)
    parser.add_argument(
        "--seconds", type=above_zero, default=5.0, help="of timed steps, about, for each figure (default: %(default)s)"
    )
    add_accelerator(parser)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times all networks, one after the other, with each batch size."""
    device = device_of(args.accelerator)
    torch.backends.cudnn.benchmark = True
    mode = args.compile or (OFF if device.type == "cpu" else "default")
    names = args.networks or timm.list_models("cifar_*")
    for name in names:
        require_known(name)
    make = functools.partial(make_row, device=device, mode=None if mode == OFF else mode, args=args)
    rows = [make(name, batch_size) for batch_size in args.batch_sizes for name in names]
    return {"device": str(device), "compile_mode": mode, "rows": rows}


def require_known(name: str) -> None:
    """Refuses a name before anything is measured.

    Raises:
        ConfigurationError: for a name that timm does not know.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models("cifar_*"))
        raise ConfigurationError(f"--networks: {name!r} is not in timm's registry{hint}")


def make_row(name: str, batch_size: int, device: torch.device, mode: str | None, args: argparse.Namespace) -> Any:
    """Returns the figures of a network, or its error."""
    with torch.device("meta"):
        parameters = sum(each.numel() for each in create_network(name, NUM_CLASSES).parameters())
    row: dict[str, Any] = {"network": name, "batch_size": batch_size, "parameters": parameters}
    make = functools.partial(make_step, name, batch_size, device, args.precision, args.channels_last)
    row["eager"] = attempt(lambda: figures(make(), batch_size, device, args.seconds, 1), device)
    row["compiled"] = row["ratio"] = None
    if mode is not None:
        compiled = attempt(lambda: figures(make(mode), batch_size, device, args.seconds, COMPILE_STEPS), device)
        if "warm_up_seconds" in compiled:
            compiled["compile_seconds"] = compiled.pop("warm_up_seconds")
        row["compiled"] = compiled
        rates = [row[way].get("images_per_second") for way in ("compiled", "eager")]
        row["ratio"] = rates[0] / rates[1] if all(rates) else None
    return row


def attempt(measurement: Callable[[], dict[str, float]], device: torch.device) -> dict[str, Any]:
    """Returns the figures, or the first line of the error, so that one network does not end the run."""
    try:
        return measurement()
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            return {"error": "out of memory"}
        return {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
    finally:
        torch.compiler.reset()  # the next network is compiled anew, and this one's memory is free
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def make_step(
    name: str, batch_size: int, device: torch.device, precision: str, channels_last: bool, mode: str | None = None
) -> Callable[[], None]:
    """Builds a training step on one batch of noise, compiled if there is a mode."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = create_network(name, NUM_CLASSES).to(device).to(memory_format=layout)
    images = torch.randn(batch_size, 3, 32, 32, device=device).contiguous(memory_format=layout)
    labels = torch.arange(batch_size, device=device) % NUM_CLASSES
    # a small rate: figures that overflow would take another time on a CPU
    options: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    options |= {"fused": True} if device.type == "cuda" else {}  # as `fit` has it
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, **options)
    loss_of: Any = functools.partial(batch_loss, network)
    if mode is not None:
        loss_of = torch.compile(loss_of, mode=mode)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()

    return step


def batch_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Computes the mean cross-entropy."""
    return F.cross_entropy(network(images), labels)


def figures(
    step: Callable[[], None], batch_size: int, device: torch.device, budget: float, warm_up: int
) -> dict[str, float]:
    """Returns the rates of a step, and the seconds of the warm-up."""
    before = seconds_of(step, warm_up, device)
    seconds = seconds_per_step(step, device, budget)
    rate = batch_size / seconds
    return {"images_per_second": rate, "seconds_per_epoch": EPOCH / rate, "warm_up_seconds": before}


def seconds_per_step(step: Callable[[], None], device: torch.device, budget: float) -> float:
    """Returns the mean over as many steps as fit into the budget, at least one."""
    single = seconds_of(step, 1, device)
    num = int(budget / single)
    return seconds_of(step, num, device) / num if num > 1 else single


def seconds_of(step: Callable[[], None], num: int, device: torch.device) -> float:
    """Times so many steps, until the device has done them."""
    start = now(device)
    for _ in range(num):
        step()
    return now(device) - start


def markdown(report: dict[str, Any]) -> str:
    """Formats a table for each batch size, then the errors."""
    given, mode = report["arguments"], report["compile_mode"]
    parts = [part for size in given["batch_sizes"] for part in (f"Batches of {size}:", size_table(report, size))]
    layout = "channels_last" if given["channels_last"] else "contiguous"
    text = f"Training, images on the device; precision {given['precision']}, {layout}; an epoch is {EPOCH:,} images."
    if mode != OFF:
        text += (
            f" Compiled: torch.compile in mode {mode}; ratio: images/s compiled to eager; compile: seconds of the first"
            f" {COMPILE_STEPS} steps, which are not in the others."
        )
    failures = [item(text) for text in errors(report["rows"])]
    return "\n\n".join([*parts, paragraph(text), *(["\n".join(failures)] if failures else [])])


def size_table(report: dict[str, Any], batch_size: int) -> str:
    """Formats the rows of a batch size."""
    rows = [row for row in report["rows"] if row["batch_size"] == batch_size]
    headings = ["network", "params", "images/s", "s/epoch"]
    if report["compile_mode"] == OFF:
        return table(headings, [eager_cells(row) for row in rows])
    return table([*headings, "compiled", "ratio", "compile"], [eager_cells(row) + compiled_cells(row) for row in rows])


def eager_cells(row: dict[str, Any]) -> list[str]:
    """Formats name, parameters in millions and eager figures."""
    eager = row["eager"]
    cells = [row["network"], f"{row['parameters'] / 1e6:.2f} M"]
    if "error" in eager:
        return [*cells, short(eager["error"]), MISSING]
    return [*cells, f"{eager['images_per_second']:,.0f}", f"{eager['seconds_per_epoch']:,.1f}"]


def compiled_cells(row: dict[str, Any]) -> list[str]:
    """Formats seconds an epoch, ratio and seconds of compilation."""
    compiled, ratio = row["compiled"], row["ratio"]
    if "error" in compiled:
        return [short(compiled["error"]), MISSING, MISSING]
    cells = [f"{compiled['seconds_per_epoch']:,.1f}", MISSING if ratio is None else f"{ratio:.2f}"]
    return [*cells, f"{compiled['compile_seconds']:.1f}"]


def short(error: str) -> str:
    """Shortens an error for a cell; the whole line is below the table."""
    return "no memory" if error == "out of memory" else "failed"


def errors(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the errors, network by network."""
    for row in rows:
        for way in ("eager", "compiled"):
            if row[way] is not None and "error" in row[way]:
                yield f"{row['network']}, batches of {row['batch_size']}, {way}: {row[way]['error']}"

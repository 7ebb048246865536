"""What the benchmarks share: types of arguments, a description of the machine, a clock, Markdown."""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from cifar_resnets.errors import ConfigurationError

NUM_CLASSES = 10
WIDTH = 80
PRECISIONS = ("32-true", "bf16-mixed")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
PACKAGES = ("torch", "torchvision", "lightning", "timm")

# Arguments.


def positive(text: str) -> int:
    """Parses a whole number from 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed, give 1 or more")
    return number


def not_negative(text: str) -> int:
    """Parses a whole number from 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not allowed, give 0 or more")
    return number


def above_zero(text: str) -> float:
    """Parses a number above 0."""
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not allowed, give a number above 0")
    return number


def fraction(text: str) -> float:
    """Parses a number above 0 and at most 1."""
    if not 0 < (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed, give a number above 0, at most 1")
    return number


def add_accelerator(parser: argparse.ArgumentParser) -> None:
    """Adds the option that `device_of` takes."""
    text = "as the Trainer takes it: cpu, gpu, auto (default: %(default)s)"
    parser.add_argument("--accelerator", default="cpu", help=text)


# The machine.


def device_of(accelerator: str) -> torch.device:
    """Returns the device that the Trainer takes.

    Raises:
        ConfigurationError: when the machine has none of this kind.
    """
    try:
        return pl.Trainer(accelerator=accelerator, devices=1, logger=False).strategy.root_device
    except MisconfigurationException as error:
        raise ConfigurationError(f"--accelerator: there is no {accelerator} on this machine, give cpu") from error


def now(device: torch.device) -> float:
    """Returns the seconds of a monotonic clock after the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def describe(device: torch.device) -> dict[str, Any]:
    """Returns hardware and versions, on which figures depend."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "gpu": gpu,
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    """Returns the processor's model on Linux, elsewhere its family."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_rss_mib() -> float:
    """Returns the peak memory of this process; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def machine_paragraph(known: dict[str, Any]) -> str:
    """Formats what `describe` returns, and the load of the CPUs before the first measurement as `load`."""
    cpus = f"{known['processor']}, {known['cpus']} CPUs, threads: {known['threads']}, load {known['load']:.2f}"
    versions = ", ".join(f"{name} {known[name]}" for name in ("python", *PACKAGES))
    return paragraph(f"{known['gpu']}; " * bool(known["gpu"]) + f"{cpus}; {versions}")


# Markdown.


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a table, its first column aligned left, the others right."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (width + 1)}{':' if number else '-'}" for number, width in enumerate(widths)]
    return "\n".join([line(lines[0]), f"|{'|'.join(rule)}|", *map(line, lines[1:])])


def paragraph(text: str) -> str:
    """Wraps text for a terminal."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def item(text: str) -> str:
    """Wraps an item of a list."""
    return textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def target_note(is_reached: bool, target: str) -> str:
    """Formats a target, and whether it was reached."""
    return f"target {target}: {'reached' if is_reached else 'missed'}"


def percent(part: float, digits: int = 2) -> str:
    """Formats a part of 1 as a percentage."""
    return f"{part:.{digits}%}".replace("%", " %")


def span(rates: Sequence[float]) -> str:
    """Formats the lowest and the highest of some figures."""
    return f"{min(rates):,.0f} to {max(rates):,.0f}"


def milliseconds(seconds: float) -> str:
    """Formats a time in milliseconds."""
    return f"{1000 * seconds:,.1f}"


def plural(number: int, what: str) -> str:
    """Formats a number of things: 1 run, 2 runs."""
    return f"{number:,} {what}{'s' if number != 1 else ''}"

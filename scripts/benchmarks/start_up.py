"""What starting costs: imports, `fit --help`, and the way to the first training step of the quickstart.

Every measurement is a fresh process, in turns, after a round that does not count and leaves compiled files behind; the
command line is compared with the bare import of the libraries that it is built on.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.shared import positive, table

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = "import torch, lightning.pytorch, torchvision, timm, torchmetrics"
BARE = "import of all libraries"
MODULES = "\nimport sys; print('modules', len(sys.modules))"
# as `python -m cifar_resnets` does; a fit ends before its first training step, and so must the process, at once
CLI = f"""
import contextlib, io, os, sys
import lightning.pytorch as pl
class FirstStep(pl.Callback):
    def on_train_batch_start(self, *args):
        print("modules", len(sys.modules), flush=True)
        os._exit(0)
from cifar_resnets.cli.train import CLI
def add_callback(self, **kwargs):
    trainer = build(self, **kwargs)
    trainer.callbacks.insert(0, FirstStep())
    return trainer
build, CLI.instantiate_trainer = CLI.instantiate_trainer, add_callback
from cifar_resnets.__main__ import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:]){MODULES}
"""
RECIPE = str(ROOT / "configs" / "recipes" / "quickstart.yaml")
COMMANDS: dict[str, list[str]] = {
    "import torch": [f"import torch{MODULES}"],
    "import lightning.pytorch": [f"import lightning.pytorch{MODULES}"],
    BARE: [LIBRARIES + MODULES],
    "`fit --help`": [CLI, "fit", "--help"],
    "quickstart to its first step": [CLI, "fit", "-c", RECIPE, "--trainer.accelerator", "cpu"],
}
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)")


class Cost(NamedTuple):
    """The cost of a process: seconds on the clock and of the processor, and the number of imported modules."""

    seconds: float
    cpu_seconds: float
    modules: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    text = "processes of each command, after one that does not count (default: %(default)s)"
    parser.add_argument("--rounds", type=positive, default=5, help=text)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the cost of each command, and the slowest imports of those of the command line."""
    costs = medians(args.rounds)
    return {
        "device": "cpu",
        "costs": {name: cost._asdict() for name, cost in costs.items()},
        "imports_ms": {name: expensive_imports(name) for name, command in COMMANDS.items() if command[0] == CLI},
    }


def python(args: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in an empty folder, with this repository's package and compiled files as a user has them."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, *options, "-c", *args]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True)


def cost_of(args: Sequence[str]) -> Cost:
    """Runs a command and waits for its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = python(args).stdout
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu, int(re.findall(r"^modules (\d+)$", output, re.MULTILINE)[-1]))


def medians(rounds: int) -> dict[str, Cost]:
    """Returns the medians of each command, whose processes take turns."""
    taken = [{name: cost_of(args) for name, args in COMMANDS.items()} for _ in range(rounds + 1)][1:]
    return {name: Cost(*map(statistics.median, zip(*(each[name] for each in taken), strict=True))) for name in COMMANDS}


def expensive_imports(name: str, number: int = 10) -> dict[str, float]:
    """Returns the milliseconds of the slowest imports of a command beyond the libraries, package by package."""
    code, *args = COMMANDS[name]
    lines = python([LIBRARIES + "\nimport cifar_resnets\n" + code, *args], "-X", "importtime").stderr.splitlines()
    found = [match.groups() for line in lines if (match := IMPORT.match(line))]
    begin = [module for _, _, module in found].index("cifar_resnets")
    spent: dict[str, float] = {}
    for own, _, module in found[begin:]:
        package = module.partition(".")[0]
        spent[package] = spent.get(package, 0.0) + int(own) / 1000
    return dict(sorted(spent.items(), key=lambda item: -item[1])[:number])


def markdown(report: dict[str, Any]) -> str:
    """Formats both results as tables."""
    costs = {name: Cost(**each) for name, each in report["costs"].items()}
    rows = [
        [
            name,
            f"{c.seconds:.2f}",
            f"{c.cpu_seconds:.2f}",
            f"{c.modules:,.0f}",
            f"{c.seconds / costs[BARE].seconds:.2f}",
        ]
        for name, c in costs.items()
    ]
    parts = [table(["process", "seconds", "CPU seconds", "modules", "to libraries"], rows)]
    for name, spent in report["imports_ms"].items():
        parts.append(f"Imports of {name} beyond the libraries:")
        parts.append(table(["package", "ms"], [[package, f"{ms:.0f}"] for package, ms in spent.items()]))
    return "\n\n".join(parts)

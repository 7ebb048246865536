"""What starting costs: imports, `fit --help`, and the way to the first training step of the quickstart.

Every measurement is a fresh process, in turns, after a round that does not count and leaves compiled files behind; the
command line is compared with the bare import of the libraries that it is built on. Run it on an idle machine:

    python scripts/benchmark_start_up.py
"""

from __future__ import annotations

import argparse
import json
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
from typing import NamedTuple

import torch
from benchmarks.shared import machine, positive, table

ROOT = Path(__file__).resolve().parents[1]
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
    """What a process took: seconds on the clock and of the processor, and the modules that it imported."""

    seconds: float
    cpu_seconds: float
    modules: int


def python(args: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in an empty folder, with this repository's package and compiled files as a user has them."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, *options, "-c", *args]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True)


def measure(args: Sequence[str]) -> Cost:
    """Runs a command, and waits for its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = python(args).stdout
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu, int(re.findall(r"^modules (\d+)$", output, re.MULTILINE)[-1]))


def medians(rounds: int) -> dict[str, Cost]:
    """The median of each figure of each command, whose processes take turns."""
    taken = [{name: measure(args) for name, args in COMMANDS.items()} for _ in range(rounds + 1)][1:]
    return {name: Cost(*map(statistics.median, zip(*(each[name] for each in taken), strict=True))) for name in COMMANDS}


def expensive_imports(name: str, number: int = 10) -> dict[str, float]:
    """Milliseconds of the slowest imports of a command beyond the libraries; a package's own parts count with it."""
    code, *args = COMMANDS[name]
    lines = python([LIBRARIES + "\nimport cifar_resnets\n" + code, *args], "-X", "importtime").stderr.splitlines()
    found = [match.groups() for line in lines if (match := IMPORT.match(line))]
    begin = [module for _, _, module in found].index("cifar_resnets")
    spent: dict[str, float] = {}
    for own, _, module in found[begin:]:
        package = module.partition(".")[0]
        spent[package] = spent.get(package, 0.0) + int(own) / 1000
    return dict(sorted(spent.items(), key=lambda item: -item[1])[:number])


def markdown(costs: dict[str, Cost], imports: dict[str, dict[str, float]]) -> str:
    """Both results as tables."""
    rows = [
        [name, f"{c.seconds:.2f}", f"{c.cpu_seconds:.2f}", f"{c.modules:.0f}", f"{c.seconds / costs[BARE].seconds:.2f}"]
        for name, c in costs.items()
    ]
    parts = [table(["process", "seconds", "CPU seconds", "modules", "to libraries"], rows)]
    for name, spent in imports.items():
        parts.append(f"Imports of {name} beyond the libraries, by package:")
        parts.append(table(["package", "ms"], [[package, f"{ms:.0f}"] for package, ms in spent.items()]))
    return "\n\n".join(parts)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=positive, default=5, help="after one that does not count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures, too")
    args = parser.parse_args()
    costs = medians(args.rounds)
    imports = {name: expensive_imports(name) for name, command in COMMANDS.items() if command[0] == CLI}
    where = machine(torch.device("cpu"))
    print(markdown(costs, imports), "", *where.split("; "), sep="\n")
    if args.json is not None:
        figures = {
            "machine": where,
            "costs": {name: cost._asdict() for name, cost in costs.items()},
            "imports_ms": imports,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

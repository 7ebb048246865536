"""Measures the project on this machine; each part prints a report in Markdown.

From the repository's folder, on a machine that does nothing else:

    python scripts/benchmark.py data
    python scripts/benchmark.py trainer --network cifar_resnet18 --accelerator gpu --precision bf16-mixed
    taskset -c 1 python scripts/benchmark.py steps --threads 1
    python scripts/benchmark.py networks --batch-sizes 128 1024
    python scripts/benchmark.py memory | checkpoints | explanations | heatmaps | lr_finder | predictions | start_up
    python scripts/benchmark.py time_to_accuracy -c configs/recipes/speed94.yaml -c configs/hardware/gpu.yaml
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from benchmarks import (
    checkpoints,
    data,
    explanations,
    heatmaps,
    lr_finder,
    memory,
    networks,
    predictions,
    start_up,
    steps,
    time_to_accuracy,
    trainer,
)
from benchmarks.shared import describe, machine_paragraph, positive

from cifar_resnets.distributed.signals import Stopped
from cifar_resnets.errors import ConfigurationError, UserError, output_error
from cifar_resnets.support.malloc import keep_freed_memory

PARTS: dict[str, ModuleType] = {
    "data": data,
    "trainer": trainer,
    "steps": steps,
    "networks": networks,
    "memory": memory,
    "checkpoints": checkpoints,
    "explanations": explanations,
    "heatmaps": heatmaps,
    "lr_finder": lr_finder,
    "predictions": predictions,
    "start_up": start_up,
    "time_to_accuracy": time_to_accuracy,
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser() -> Parser:
    """Builds the command line: a subcommand for each part."""
    parser = Parser(description=first_line(__doc__), allow_abbrev=False)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="PART")
    for name, part in PARTS.items():
        command = commands.add_parser(
            name,
            help=first_line(part.__doc__),
            description=part.__doc__,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        part.add_arguments(command)
        command.add_argument("--threads", type=positive, metavar="N", help="of torch in this process")
        command.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
        command.add_argument("--markdown", type=Path, metavar="FILE", help="write what is printed there, too")
    return parser


def first_line(text: str | None) -> str:
    """Returns the first line of a docstring."""
    return (text or "").partition("\n")[0]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; what follows `--` is in `overrides`."""
    end = argv.index("--") if "--" in argv else len(argv)
    parser = make_parser()
    args = parser.parse_args(argv[:end])
    args.overrides = list(argv[end + 1 :])
    if args.overrides and args.benchmark != "time_to_accuracy":
        parser.error(f"{args.benchmark} takes nothing after --")
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs a part; returns its figures with arguments and machine."""
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every command does
    load = os.getloadavg()[0]  # before the first measurement
    figures = PARTS[args.benchmark].measure(args)
    given = {name: value for name, value in vars(args).items() if name not in ("benchmark", "json", "markdown")}
    machine = {**describe(torch.device(figures["device"])), "load": load}
    return {"benchmark": args.benchmark, "arguments": given, "machine": machine, **figures}


def check_places(*paths: Path | None) -> None:
    """Refuses a file that cannot be written before hours of work, not after.

    Raises:
        ConfigurationError: then.
    """
    for path in paths:
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            raise ConfigurationError(f"{path}: cannot be written, give a file in a folder that is there")


def run(args: argparse.Namespace) -> None:
    """Measures, prints, writes."""
    check_places(args.json, args.markdown)
    report = measure(args)
    text = f"{PARTS[args.benchmark].markdown(report)}\n\n{machine_paragraph(report['machine'])}"
    print(text)
    if args.markdown:
        args.markdown.write_text(f"{text}\n", encoding="utf-8")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        SystemExit: with the exit status of an error, see `cifar_resnets.errors`; 128 + n after signal n.
    """
    args = parse(sys.argv[1:] if argv is None else argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # about a benchmark's short epochs and few workers
    try:
        run(args)
    except Stopped as stop:
        raise SystemExit(128 + stop.signum) from None
    except (UserError, OSError) as error:
        culprit = error if isinstance(error, UserError) else output_error(error)
        if culprit is None:
            raise
        print(f"benchmark.py {args.benchmark}: {culprit}", file=sys.stderr)
        raise SystemExit(culprit.exit_status) from None


if __name__ == "__main__":
    main()

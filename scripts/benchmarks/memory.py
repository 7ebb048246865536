"""What it costs to give freed memory back to the operating system after each training step on a CPU.

The step of `networks`, in processes of its own that take turns: in one, glibc gives large blocks back when they are
freed, as it does by default; in the other it keeps them for the next step, as every command of the project does. Page
faults tell how much memory the kernel had to find and to clear.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.networks import make_step, require_known, seconds_of
from benchmarks.shared import above_zero, paragraph, peak_rss_mib, plural, positive, span, table
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.support.malloc import keep_freed_memory

NETWORKS = ["cifar_resnet20", "cifar_resnet56", "cifar_resnet18", "cifar_custom_resnet"]
WAYS = {"given back": False, "kept": True}
WARM_UP = 2  # steps, in which the allocator's thresholds adapt
CPU = torch.device("cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this part."""
    given = parser.add_argument
    given("--networks", nargs="+", metavar="NAME", default=NETWORKS, help=f"default: {' '.join(NETWORKS)}")
    given("--batch-size", type=positive, default=128, metavar="N", help="images a step (default: %(default)s)")
    given("--rounds", type=positive, default=3, help="processes of each, whose median counts (default: %(default)s)")
    given("--seconds", type=above_zero, default=5.0, help="of timed steps, about, in each (default: %(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times both ways in turns, network by network.

    Raises:
        ConfigurationError: when a network is not known, or memory cannot be kept.
    """
    for name in args.networks:
        require_known(name)
    if not keep_freed_memory():  # of this process, in which nothing is timed
        raise ConfigurationError("memory: takes glibc, without MALLOC_... or glibc.malloc in the environment")
    return {"device": "cpu", "rows": [row for name in args.networks for row in make_rows(name, args)]}


def make_rows(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a network's medians, and the images per second of each round."""
    rounds = [{way: in_own_process(name, keeps, args) for way, keeps in WAYS.items()} for _ in range(args.rounds)]
    rows = []
    for way in WAYS:
        figures = [each[way] for each in rounds]
        medians = {key: statistics.median(each[key] for each in figures) for key in figures[0]}
        rows.append({"network": name, "memory": way, **medians, "rounds": [f["images_per_second"] for f in figures]})
    for row in rows:
        row["ratio"] = row["images_per_second"] / rows[0]["images_per_second"]
    return rows


def in_own_process(name: str, keeps: bool, args: argparse.Namespace) -> dict[str, float]:
    """Returns `figures` of a process of its own, since an allocator's setting cannot be taken back.

    It is no fork of this one, which keeps its memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        threads = torch.get_num_threads()
        return pool.submit(figures, name, keeps, args.batch_size, args.seconds, threads).result()


def figures(name: str, keeps: bool, batch_size: int, budget: float, threads: int) -> dict[str, float]:
    """Returns rate, page faults a step and peak memory."""
    if keeps:
        keep_freed_memory()
    torch.set_num_threads(threads)
    step = make_step(name, batch_size, CPU, "32-true", channels_last=True)
    seconds_of(step, WARM_UP, CPU)
    num = max(1, round(budget / seconds_of(step, 1, CPU)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = seconds_of(step, num, CPU)
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / num
    return {"images_per_second": num * batch_size / seconds, "faults_per_step": faults, "peak_rss_mib": peak_rss_mib()}


def markdown(report: dict[str, Any]) -> str:
    """Formats two rows for each network, and what was measured."""
    given = report["arguments"]
    what = f"training steps of {given['batch_size']} images; freed memory is given back, or kept for the next step"
    turns = f"medians of {plural(given['rounds'], 'round')}, in each of which both have their turn"
    return "\n\n".join(
        [
            table(["", "images/s", "range", "faults/step", "peak MiB", "ratio"], map(cells, report["rows"])),
            paragraph(f"{what}; {turns}."),
        ]
    )


def cells(row: dict[str, Any]) -> list[str]:
    """Formats a row."""
    figures = [f"{row['faults_per_step']:,.0f}", f"{row['peak_rss_mib']:,.0f}", f"{row['ratio']:.2f}"]
    name = "the same, kept" if WAYS[row["memory"]] else row["network"]
    return [name, f"{row['images_per_second']:,.0f}", span(row["rounds"]), *figures]

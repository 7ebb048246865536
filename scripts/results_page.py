#!/usr/bin/env python
"""Keeps the records of finished runs in docs/results, and writes the tables of docs/results.md from them.

scripts/results_page.py keep results    copies config.yaml, run.json, test.json and metrics.csv of each finished run
scripts/results_page.py write           puts the tables between the marks of docs/results.md
"""

import argparse
import json
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from cifar_resnets.cli.summary import summarize, training_pflop
from cifar_resnets.models.registry import create_network
from cifar_resnets.results.csv_files import read_rows
from cifar_resnets.results.json_files import read_config, read_json
from cifar_resnets.results.run_folder import natural_order
from cifar_resnets.results.seed_groups import Group, Spread, group_runs, spread
from cifar_resnets.results.trained_runs import TrainedRun, find_runs

ROOT = Path(__file__).parents[1]
KEPT, PAGE, SOURCES = ROOT / "docs/results", ROOT / "docs/results.md", ROOT / "docs/results/sources.json"
FILES = ("config.yaml", "run.json", "test.json", "metrics.csv")
HEADS = ("run", "network", "epochs", "seeds", "test, %", "95 % interval", "with views, %", "minutes", "hardware")
HEADS += ("PFLOP", "source, %", "difference")
CLASSES_OF = ("resnet18_onecycle", "resnet20_onecycle")  # rows with a table of their classes


def main() -> None:
    """Runs a subcommand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keep").add_argument("folders", nargs="+", type=Path)
    commands.add_parser("write")
    options = parser.parse_args()
    if options.command == "keep":
        keep(options.folders, KEPT)
    PAGE.write_text(with_tables(PAGE.read_text(), KEPT))


def keep(folders: Sequence[Path], target: Path) -> None:
    """Copies what a table needs of each finished run, without the paths of this machine."""
    for group in group_runs(find_runs(folders)):
        for run in group.runs:
            assert run.setup is not None
            folder = target / group.name / f"seed_{run.setup.seed}"
            if not folder.exists():
                _keep_run(run.folder, folder)


def _keep_run(run: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    config = read_config(run / "config.yaml")
    paths = {str(config["data"]["init_args"].get("root")): "IMAGES", str(run): "RUN"}
    paths |= {config["trainer"]["default_root_dir"]: "LOGS"}
    for name in FILES:
        text = (run / name).read_text()
        for path, short in paths.items():
            text = text.replace(path, short)
        (folder / name).write_text(text)
    record = json.loads((folder / "run.json").read_text())
    record["command"][0] = "cifar-resnets"
    for each in (record, *record.get("resumed", [])):
        each["platform"], each["hardware"] = platform.system(), hardware()
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")


def hardware() -> str:
    """Returns the name of the processor, or of the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"one core, {model[1]}" if model else "one core"


def with_tables(page: str, kept: Path) -> str:
    """Replaces the tables between the marks of the page."""
    groups = sorted(group_runs(find_runs([kept])), key=lambda group: natural_order(group.name))
    tables = {"results": _table([HEADS, *map(_row, groups)])}
    tables |= {f"classes {group.name}": _classes(group) for group in groups if group.name in CLASSES_OF}
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        if rest:
            page = before + start + table + end + rest.partition(end)[2]
    return page


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|---" * 2 + "|---:" * (len(rows[0]) - 2) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _row(group: Group) -> list[str]:
    """Returns the cells of a row, percentages with two decimals."""
    assert group.test is not None
    test, views = group.test, spread([each for run in group.runs if (each := _views(run)) is not None])
    interval = "" if test.interval is None else f"{100 * test.interval[0]:.2f} to {100 * test.interval[1]:.2f}"
    source = read_json(SOURCES).get(group.name, {})
    best = views.mean if views is not None and source.get("views") else test.mean
    figure = source.get("accuracy")
    difference = "" if figure is None else f"{100 * best - figure:+.2f}"
    costs = [_cost(run) for run in group.runs]
    epochs, minutes, pflop = (statistics.fmean(each) for each in zip(*costs, strict=True))
    return [
        *(group.name, group.network.removeprefix("cifar_"), f"{epochs:g}", str(len(group.runs))),
        *(_mean(test), interval, "" if views is None else _mean(views), f"{minutes:.0f}", _hardware(group.runs[0])),
        *(f"{pflop:.3g}", "" if figure is None else f"{figure:g}, {source['source']}", difference),
    ]


def _mean(spread: Spread) -> str:
    """Returns a mean accuracy in percent, with the standard deviation of several runs."""
    return f"{100 * spread.mean:.2f}" + ("" if spread.std is None else f" ± {100 * spread.std:.2f}")


def _views(run: TrainedRun) -> float | None:
    tta = read_json(run.folder / "test.json").get("tta")
    return None if tta is None else float(tta["accuracy"])


def _cost(run: TrainedRun) -> tuple[float, float, float]:
    """Returns epochs, minutes and PFLOP of a training: multiply-adds x 2 x 3 x images."""
    rows = read_rows(run.folder / "metrics.csv", [])
    seconds = [float(row["time/epoch_seconds"]) for row in rows if row["time/epoch_seconds"]]
    config = read_config(run.folder / "config.yaml")
    images = (max(int(row["step"]) for row in rows) + 1) * config["data"]["init_args"]["batch_size"]
    model, num_classes = config["model"], len(read_json(run.folder / "test.json")["classes"])
    network = create_network(model["network"], num_classes, model["network_args"])
    pflop = training_pflop(summarize(network, (3, 32, 32)).multiply_adds, images)
    return len(seconds), sum(seconds) / 60, pflop


def _hardware(run: TrainedRun) -> str:
    precision = read_config(run.folder / "config.yaml")["trainer"]["precision"]
    return f"{read_json(run.folder / 'run.json')['hardware']}, {precision}"


def _classes(group: Group) -> str:
    """Returns the table of the classes: mean over the seeds, beside the published accuracy where there is one."""
    tests = [read_json(run.folder / "test.json")["classes"] for run in group.runs]
    published = read_json(SOURCES).get(group.name, {}).get("classes", {})
    rows = [["class", "seeds", "test, %", "published, %"]]
    for of_class in zip(*tests, strict=True):
        name, mean = of_class[0]["name"], 100 * statistics.fmean(each["accuracy"] for each in of_class)
        rows.append([name, str(len(tests)), f"{mean:.1f}", str(published.get(name, ""))])
    return _table(rows)


if __name__ == "__main__":
    main()

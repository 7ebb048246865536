"""What each part of `scripts/benchmark.py` prints and writes, compared with what it was computed from."""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark
import numpy as np
import pytest
import scipy.stats
import torch
from benchmarks import data, heatmaps, memory, networks, predictions, start_up, steps, time_to_accuracy, trainer
from support import TINY, Result, needs_glibc, read_json

from cifar_resnets.callbacks import dashboard
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread", "as_before")]


@pytest.fixture
def as_before() -> Iterator[None]:
    """Takes back what the program sets for its process."""
    logger, choice = logging.getLogger("lightning.pytorch"), torch.backends.cudnn.benchmark
    level = logger.level
    yield
    logger.setLevel(level)
    torch.backends.cudnn.benchmark = choice


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the program in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Result:
        status = 0
        try:
            benchmark.main(args)
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def report(run: Callable[..., Result], tmp_path: Path) -> Callable[..., tuple[Any, str]]:
    """Runs a part; its figures and what it has printed."""

    def report(part: str, *args: str) -> tuple[Any, str]:
        result = run(part, "--json", "figures.json", "--markdown", "report.md", *args)
        assert result.status == 0, result.err
        assert (tmp_path / "report.md").read_text() == result.out
        figures = read_json(tmp_path / "figures.json")
        assert figures["benchmark"] == part
        assert {"processor", "cpus", "threads", "load", "torch", "lightning"} <= figures["machine"].keys()
        assert figures["machine"]["torch"] in result.out
        return figures, result.out

    return report


def cells(text: str, name: str) -> list[str]:
    """The row of a table that begins with a name."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (row,) = [row for row in rows if row[0] == name]
    return row[1:]


def flat(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


# Data.


def test_loaders_against_the_better_pil_row(report: Callable[..., tuple[Any, str]]) -> None:
    figures, text = report("data", "--num-images", "256", "--rounds", "3", "--seconds", "0.01", "--workers", "0")
    rows = {row["name"]: row for row in figures["rows"]}
    assert list(rows) == [*data.make_transforms(), "TrainLoader", "TrainLoader, cutout 8"]
    for name, row in rows.items():
        assert len(row["rounds"]) == 3
        assert row["images_per_second"] == statistics.median(row["rounds"])
        assert row["ratio"] == row["images_per_second"] / rows["PIL transforms"]["images_per_second"]
        assert cells(text, name)[1] == f"{row['images_per_second']:,.0f}"
        assert cells(text, name)[3] == f"{row['ratio']:.1f}"
    word = "reached" if rows["TrainLoader"]["ratio"] >= 25 else "missed"
    assert f"{rows['TrainLoader']['ratio']:.1f} times" in flat(text) and f"(target 25: {word})" in flat(text)
    assert widest(text) <= 80


def test_the_ratio_is_to_the_faster_number_of_workers() -> None:
    candidates = [data.Candidate("PIL transforms", 0, []), data.Candidate("PIL transforms", 8, [])]
    candidates += [data.Candidate("TrainLoader", 0, [])]
    rows = data.make_rows(candidates, [[10.0, 30.0, 20.0], [70.0, 40.0, 50.0], [1500.0, 1000.0, 2000.0]])
    assert [row["ratio"] for row in rows] == [20 / 50, 1.0, 1500 / 50]


def test_a_loader_on_the_device_against_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "GPU_BATCH_SIZE", 8)
    monkeypatch.setattr(data, "NETWORK", "cifar_resnet20")
    args = argparse.Namespace(rounds=3, seconds=0.01, images=None)
    figures = data.on_gpu(data.synthetic(40), torch.device("cpu"), args)
    seconds = {row["name"]: statistics.median(row["rounds"]) for row in figures["rows"]}
    for row in figures["rows"]:
        assert row["seconds_per_batch"] == seconds[row["name"]]
        assert row["share"] == seconds[row["name"]] / seconds["cifar_resnet20"]
        assert row["images_per_second"] == 8 / seconds[row["name"]]
    text = data.markdown({**figures, "num_images": 40, "batch_size": 8, "arguments": vars(args)})
    word = "reached" if figures["rows"][0]["share"] <= 0.02 else "missed"
    assert f"(target 2 %: {word})" in flat(text)
    assert cells(text, "cifar_resnet20")[2] == "100.00 %"
    assert widest(text) <= 80


# Trainer.


def test_fit_against_a_bare_loop(report: Callable[..., tuple[Any, str]], tmp_path: Path) -> None:
    figures, text = report("trainer", "--steps", "2", "--rounds", "2", "--batch-size", "4", "--precision", "bf16-mixed")
    medians = {name: statistics.median(rates) for name, rates in figures["rounds"].items()}
    assert all(len(rates) == 2 for rates in figures["rounds"].values())
    assert figures["images_per_second"] == medians
    assert figures["ratio"] == medians["fit"] / medians["loop"]
    assert cells(text, "`cifar-resnets fit`")[0] == f"{medians['fit']:,.0f}"
    assert f"ratio {figures['ratio']:.3f} (target 0.98: " in flat(text)
    explaining = {"Dashboard", "Misclassified", "Confusion", "PerClassReport", "PredictionWriter", "ReportWriter"}
    surviving = {"NonfiniteGuard", "Continuation", "LastCheckpoint", "BestCheckpoint", "AgreeingBuffers", "RunRecord"}
    assert explaining | surviving | {"EpochLines", "WritableFolders"} <= set(figures["callbacks"])
    assert {path.name for path in tmp_path.iterdir()} == {"figures.json", "report.md"}  # the runs are gone
    assert widest(text) <= 80


@pytest.mark.parametrize(
    ("device", "is_fast", "target"), [("cpu", True, 0.98), ("cuda", False, 0.97), ("cuda", True, 0.95)]
)
def test_targets(device: str, is_fast: bool, target: float) -> None:
    assert trainer.target(torch.device(device), is_fast) == target


def test_both_are_compiled_alike_and_only_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, mode: modes.append(mode) or function)
    for options, words in ([], []), (["--compile", "max-autotune", "--fast"], ["max-autotune", "true"]):
        args = benchmark.parse(["trainer", "--steps", "1", "--batch-size", "2", *options])
        given = trainer.fit_arguments(args, "folder")
        assert [given[given.index(key) + 1] for key in ("--model.compile", "--model.fast") if key in given] == words
        trainer.time_loop(args, torch.device("cpu"), False)
    assert modes == ["max-autotune"]


# Steps.


def test_a_step_of_fit_and_of_the_fast_loop_against_a_bare_one(report: Callable[..., tuple[Any, str]]) -> None:
    figures, text = report("steps", "--steps", "3", "--rounds", "1")
    assert list(figures["microseconds"]) == ["loop", "trainer", "fit", "fast"]
    loop = figures["microseconds"]["loop"]
    for way, name in steps.WAYS.items():
        assert figures["rounds"][way] == [figures["microseconds"][way]]
        assert cells(text, name)[0] == f"{figures['microseconds'][way]:,.0f}"
        if way != "loop":
            assert figures["over_loop"][way] == figures["microseconds"][way] - loop
    for way, target in (("fit", 250), ("fast", 100)):
        word = "reached" if figures["over_loop"][way] <= target else "missed"
        assert f"(target {target}: {word})" in next(
            line for line in text.splitlines() if line.startswith(steps.WAYS[way])
        )
    assert widest(text) <= 80


def test_only_the_fast_way_takes_the_fast_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(
        steps, "time_fit", lambda args: (taken.append(("fit", args.fast)), (SimpleNamespace(seconds=1), 0))[1]
    )
    monkeypatch.setattr(steps, "time_loop", lambda args, *_: taken.append("loop") or 2)
    monkeypatch.setattr(steps, "time_trainer", lambda args: taken.append("trainer") or 3)
    assert [steps.microseconds(way, 10) for way in steps.WAYS] == [2e5, 3e5, 1e5, 1e5]
    assert taken == ["loop", "trainer", ("fit", False), ("fit", True)]


# Networks.


def test_rates_of_networks(report: Callable[..., tuple[Any, str]]) -> None:
    names = ["cifar_resnet20", "cifar_speednet"]
    figures, text = report("networks", "--networks", *names, "--batch-sizes", "2", "4", "--seconds", "0.01")
    with (ROOT / "tests/reference/architectures.csv").open() as file:
        published = {row["name"]: int(row["parameters"]) for row in csv.DictReader(file)}
    assert [(row["batch_size"], row["network"]) for row in figures["rows"]] == list(itertools.product((2, 4), names))
    for row in figures["rows"]:
        assert row["parameters"] == published.get(row["network"], row["parameters"])
        eager = row["eager"]
        assert eager["seconds_per_epoch"] == pytest.approx(50_000 / eager["images_per_second"])
        assert f"{eager['images_per_second']:,.0f} | {eager['seconds_per_epoch']:>8,.1f} |".replace(" ", "") in re.sub(
            r" +", "", text
        )
    assert "compiled" not in text
    assert widest(text) <= 80


def test_a_network_that_fails_does_not_end_the_run(
    report: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, modes = networks.batch_loss, []

    def fails(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(images) == 3:
            raise torch.OutOfMemoryError("a tensor\nof some size")
        return whole(network, images, labels)

    def compile_(function: Any, mode: str) -> Any:
        modes.append(mode)
        if len(modes) == 2:
            raise RuntimeError("no compiler\nwas found")
        return function

    monkeypatch.setattr(networks, "batch_loss", fails)
    monkeypatch.setattr(torch, "compile", compile_)
    args = ["--networks", "cifar_resnet20", "--batch-sizes", "2", "3", "4", "--seconds", "0.01"]
    figures, text = report("networks", *args, "--compile", "reduce-overhead")
    good, too_large, last = figures["rows"]
    assert modes == ["reduce-overhead"] * 3
    ratio = good["compiled"]["images_per_second"] / good["eager"]["images_per_second"]
    assert good["ratio"] == ratio and good["compiled"]["compile_seconds"] > 0
    assert too_large["eager"] == {"error": "out of memory"} and too_large["ratio"] is None
    assert too_large["compiled"] == {"error": "no compiler"}
    assert "error" not in last["eager"] and last["ratio"] is not None
    assert "- cifar_resnet20, batches of 3, eager: out of memory\n" in text
    assert "- cifar_resnet20, batches of 3, compiled: no compiler\n" in text
    assert widest(text) <= 80


def test_the_budget_decides_how_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, steps = [0.0], []
    monkeypatch.setattr(networks, "now", lambda device: clock[0])

    def step() -> None:
        steps.append(1)
        clock[0] += 2.0

    cpu = torch.device("cpu")
    assert networks.figures(step, 8, cpu, 0.5, 1)["images_per_second"] == 4.0  # less than a step takes
    assert len(steps) == 2
    assert networks.figures(step, 8, cpu, 20.0, 3) == {
        "images_per_second": 4.0,
        "seconds_per_epoch": 12_500.0,
        "warm_up_seconds": 6.0,
    }
    assert len(steps) == 2 + 3 + 1 + 10


# Memory.


def test_medians_of_both_ways_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def measured(name: str, keeps: bool, args: argparse.Namespace) -> dict[str, float]:
        asked.append(keeps)
        rate = (30.0, 20.0, 10.0)[len(asked) // 2 % 3] * (3 if keeps else 1)
        return {"images_per_second": rate, "faults_per_step": 5.0 - keeps, "peak_rss_mib": 100.0 + keeps}

    monkeypatch.setattr(memory, "in_own_process", measured)
    by_default, kept = memory.make_rows("cifar_resnet20", argparse.Namespace(rounds=3))
    assert asked == [False, True] * 3
    assert sorted(by_default["rounds"]) == [10.0, 20.0, 30.0] and by_default["images_per_second"] == 20.0
    assert (by_default["ratio"], kept["ratio"]) == (1.0, kept["images_per_second"] / 20.0)
    assert (by_default["faults_per_step"], kept["faults_per_step"], kept["peak_rss_mib"]) == (5.0, 4.0, 101.0)


@needs_glibc
def test_steps_that_keep_their_memory_and_steps_that_do_not(report: Callable[..., tuple[Any, str]]) -> None:
    # activations of more than 32 MiB, the most that glibc's threshold rises to: each is given back, whatever was before
    args = ["--networks", "cifar_resnet20", "--batch-size", "576", "--rounds", "1", "--seconds", "0.01"]
    figures, text = report("memory", *args)
    by_default, kept = figures["rows"]
    assert kept["faults_per_step"] < 0.2 * by_default["faults_per_step"]
    assert cells(text, "cifar_resnet20")[2] == f"{by_default['faults_per_step']:,.0f}"
    assert cells(text, "the same, kept")[4] == f"{kept['images_per_second'] / by_default['images_per_second']:.2f}"
    assert widest(text) <= 80


def test_memory_that_is_not_to_be_kept(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1000")
    args = ["--networks", "cifar_resnet20", "--batch-size", "2", "--rounds", "1", "--seconds", "0.01"]
    result = run("memory", *args)
    assert (result.status, result.out) == (2, "")
    assert result.err == (
        "benchmark.py memory: memory: takes glibc, without MALLOC_... or glibc.malloc in the environment\n"
    )


# Callbacks.


def test_time_of_checkpoints_and_of_the_check_of_each_step(
    report: Callable[..., tuple[Any, str]], tmp_path: Path
) -> None:
    figures, text = report("checkpoints", "--steps", "4", "--every-n-steps", "2", "--batch-size", "4")
    assert figures["num_checkpoints"] == 3 and figures["checkpoint_bytes"] > 1_000_000
    assert list(figures["hooks"]) == ["NonfiniteGuard", "LastCheckpoint"]
    assert 0 < sum(figures["parts"].values()) < figures["hooks"]["LastCheckpoint"]
    assert all(figures["parts"].values())
    assert figures["ratio"] == pytest.approx(sum(figures["hooks"].values()) / figures["seconds"])
    assert cells(text, "LastCheckpoint")[0] == f"{1000 * figures['hooks']['LastCheckpoint']:,.1f}"
    assert cells(text, "of which fsync")[0] == f"{1000 * figures['parts']['fsync']:,.1f}"
    assert f"together {100 * figures['ratio']:.2f} % (target 2 %: " in text
    assert {path.name for path in tmp_path.iterdir()} == {"figures.json", "report.md"}
    assert widest(text) <= 80


def test_time_of_what_explains_mistakes(report: Callable[..., tuple[Any, str]]) -> None:
    args = ["--epochs", "1", "--batches", "2", "--batch-size", "4", "--num-val", "20"]
    figures, text = report("explanations", *args)
    assert list(figures["hooks"]) == ["Dashboard", "Misclassified", "Confusion", "ReportWriter"]
    assert figures["hooks"]["Misclassified"] > 0 and figures["hooks"]["Confusion"] > 0
    assert figures["ratio"] == pytest.approx(sum(figures["hooks"].values()) / figures["seconds"])
    assert cells(text, "Confusion")[0] == f"{1000 * figures['hooks']['Confusion']:,.1f}"
    assert f"together {100 * figures['ratio']:.2f} % of the " in text and "(target 3 %: " in text
    assert widest(text) <= 80


def test_time_of_a_range_test(report: Callable[..., tuple[Any, str]]) -> None:
    figures, text = report("lr_finder", "--steps", "20", "--rounds", "2", "--batch-size", "4")
    for name in ("test", "steps"):
        assert figures["seconds"][name] == statistics.median(each[name] for each in figures["rounds"])
    assert figures["is_reached"] == (figures["seconds"]["test"] <= 1.15 * figures["seconds"]["steps"] + 2)
    assert cells(text, "range test")[0] == f"{figures['seconds']['test']:.2f}"
    assert f"20 steps each, ratio {figures['ratio']:.3f} (target 1.15 and 2 s: " in text
    assert widest(text) <= 80


# Heatmaps.


def test_heatmaps_against_those_of_a_library(report: Callable[..., tuple[Any, str]]) -> None:
    figures, text = report("heatmaps", "--networks", "cifar_resnet20", "--images", "2", "--rounds", "2")
    (row,) = figures["rows"]
    for way, name in heatmaps.WAYS.items():
        assert row["images_per_second"][way] == statistics.median(row["rounds"][way])
        assert cells(text, f"cifar_resnet20, {name}")[0] == f"{row['images_per_second'][way]:,.1f}"
    word = "reached" if row["ratio"] >= 3 else "missed"
    assert f"cifar_resnet20: ratio {row['ratio']:.2f} (target 3: {word})" in text
    assert widest(text) <= 80


def test_heatmaps_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heatmaps, "heatmaps", lambda *args, **kwargs: torch.zeros(2, 2, 32, 32))
    with pytest.raises(RuntimeError, match="cifar_resnet20: the maps differ by"):
        heatmaps.make_row("cifar_resnet20", 2, 1, torch.device("cpu"))


# Predictions.


def test_predictions_against_a_loop(report: Callable[..., tuple[Any, str]]) -> None:
    figures, text = report("predictions", "--num-images", "12", "--rounds", "1", "--network", "cifar_resnet20")
    rates = figures["images_per_second"]
    assert figures["num_images"] == 12 and figures["ratio"] == rates["ours"] / rates["loop"]
    for way, name in predictions.WAYS.items():
        assert cells(text, name)[0] == f"{rates[way]:,.1f}"
    assert f"ratio {figures['ratio']:.2f} (target 5: {'reached' if figures['ratio'] >= 5 else 'missed'})" in text
    assert widest(text) <= 80


# Start-up.


def test_time_and_imports_of_processes(report: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    command_line = "import cifar_resnets.errors, sqlite3\nimport sys; print('modules', len(sys.modules))"
    monkeypatch.setattr(start_up, "LIBRARIES", "import json")
    monkeypatch.setattr(start_up, "CLI", command_line)
    commands = {start_up.BARE: [f"import json{start_up.MODULES}"], "`fit --help`": [command_line, "fit", "--help"]}
    monkeypatch.setattr(start_up, "COMMANDS", commands)
    figures, text = report("start_up", "--rounds", "1")
    bare, command = figures["costs"].values()
    assert command["modules"] > bare["modules"] > 10
    assert cells(text, "`fit --help`")[3] == f"{command['seconds'] / bare['seconds']:.2f}"
    spent = figures["imports_ms"]["`fit --help`"]
    assert {"cifar_resnets", "sqlite3"} <= spent.keys() and "json" not in spent
    assert cells(text, "sqlite3") == [f"{spent['sqlite3']:.0f}"]
    assert widest(text) <= 80


# Time to accuracy.


def accuracies(path: Path, tag: str) -> list[float]:
    """A column of a run's metrics, where it has values."""
    with path.open() as file:
        return [float(row[tag]) for row in csv.DictReader(file) if row.get(tag)]


def by_hand(checkpoint: Path) -> float:
    """Part of all test digits that a checkpoint classifies rightly."""
    state = torch.load(checkpoint, weights_only=True)
    network = ImageClassifier(**state["hyper_parameters"])
    network.load_state_dict(state["state_dict"])
    images, labels = Digits().load("test")
    mean, std = (np.array(state["data"]["init_args"][name]) for name in ("mean", "std"))
    normalised = torch.from_numpy((images / 255 - mean) / std).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        return (network.eval()(normalised).argmax(1).numpy() == labels).mean()


def test_curve_interval_and_time_of_two_runs(
    report: Callable[..., tuple[Any, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    seconds = [0.0]
    monkeypatch.setattr(dashboard, "time", SimpleNamespace(monotonic=lambda: seconds[0]))

    def lasting(cost: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            seconds[0] += cost
            return function(*args)

        return run

    monkeypatch.setattr(ImageClassifier, "training_step", lasting(1.0, ImageClassifier.training_step))
    monkeypatch.setattr(ImageClassifier, "validation_step", lasting(100.0, ImageClassifier.validation_step))
    monkeypatch.setattr(Digits, "load", lasting(1000.0, Digits.load))
    args = ["-c", "tiny.yaml", "--runs", "2", "--seed", "3", "--target", "0.05", "--logs", "logs"]
    overrides = ["--trainer.max_epochs", "2", "--model.tta", "[mirror]", "--explain", "null"]
    figures, text = report("time_to_accuracy", *args, "--", *overrides)
    # five steps of 40 images an epoch; all test digits are one batch, before which one is tried in the set-up
    for number, run in enumerate(figures["runs"]):
        folder = tmp_path / f"logs/tiny/version_{number}"
        assert run["seed"] == 3 + number
        assert [point["training_seconds"] for point in run["curve"]] == [5.0, 10.0]
        assert [point["evaluation_seconds"] for point in run["curve"]] == [100.0, 200.0]
        assert (run["data_seconds"], run["first_step_seconds"], run["seconds_to_target"]) == (2000.0, 1.0, 5.0)
        for key, tag in ("accuracy", "val/acc"), ("accuracy_tta", "val/acc_tta"):
            logged = accuracies(folder / "metrics.csv", tag)
            assert [point[key] for point in run["curve"]] == pytest.approx(logged, abs=1e-6)
        assert run["curve"][-1]["accuracy"] == by_hand(folder / "checkpoints/newest.ckpt")
        assert not (folder / "report.html").exists()
    check_summary(figures, text)
    assert figures["num_images"] == {"train": 200, "test": len(Digits().load("test")[0])}
    assert (figures["num_reached"], figures["to_target"]["mean"]) == (2, 5.0)
    assert figures["warm_up"]["training_seconds"] == 10.0
    set_up, total = (figures["runs"][0][f"{kind}_seconds"] for kind in ("set_up", "total"))
    assert cells(text, "3") == ["2,000", f"{set_up:.2f}", "1.00", "10.00", "200", f"{total:.2f}", "5.00"]
    assert "5.00 %, with test-time augmentation, was reached by 2 of 2 runs" in flat(text)
    assert "Nothing is selected by the test images" in flat(text)
    assert widest(text) <= 80


def check_summary(figures: Any, text: str) -> None:
    """Means of the curve, and the final accuracies with their intervals."""
    for index, point in enumerate(figures["curve"]):
        for key in ("accuracy", "accuracy_tta", "training_seconds"):
            assert point[key] == pytest.approx(np.mean([run["curve"][index][key] for run in figures["runs"]]))
        row = cells(text, str(point["epoch"]))
        assert row[2:] == [f"{100 * point[key]:.2f} %" for key in ("accuracy", "accuracy_tta")]
    for key, value in figures["final"].items():
        finals = [run["curve"][-1][key] for run in figures["runs"]]
        assert value["mean"] == pytest.approx(np.mean(finals)) and value["n"] == len(finals)
        if np.ptp(finals):
            expected = scipy.stats.t.interval(0.95, len(finals) - 1, np.mean(finals), scipy.stats.sem(finals))
            assert value["interval"] == pytest.approx(list(expected))
        assert f"{100 * value['mean']:.2f} % on average" in flat(text)


def made_up(*points: tuple[float, float, float | None]) -> dict[str, Any]:
    """A run whose epochs have seconds, accuracy and accuracy with augmentation."""
    keys = ("training_seconds", "accuracy", "accuracy_tta")
    curve = [{"epoch": number, **dict(zip(keys, point, strict=True))} for number, point in enumerate(points, 1)]
    return {"curve": curve, "num_images": {}, "seconds_to_target": time_to_accuracy.seconds_to(curve, 0.94)}


def test_runs_that_do_not_reach_the_target_are_counted_and_not_averaged() -> None:
    runs = [
        made_up((3.0, 0.95, 0.93), (6.0, 0.92, 0.94), (9.0, 0.93, 0.95)),
        made_up((4.0, 0.9, 0.91), (8.0, 0.9, 0.95), (12.0, 0.9, 0.9)),
        made_up((5.0, 0.9, 0.91), (9.0, 0.95, 0.93), (13.0, 0.9, 0.9)),
    ]
    summary = time_to_accuracy.summary(runs)
    low, high = scipy.stats.t.interval(0.95, 1, 7.0, scipy.stats.sem([6.0, 8.0]))
    assert summary["num_reached"] == 2
    assert summary["to_target"] == {"mean": 7.0, "interval": pytest.approx([low, high]), "n": 2}
    given = {"target": 0.94}
    first, *_ = time_to_accuracy.results({**summary, "runs": runs, "arguments": given})
    assert first.startswith("94.00 %, with test-time augmentation, was reached by 2 of 3 runs, after 7.00 s on average")
    assert first.endswith("(the mean of those that reached it)")


def test_a_single_run_has_no_interval_and_without_views_the_accuracy_counts() -> None:
    runs = [made_up((3.0, 0.5, None), (6.0, 0.94, None))]
    summary = time_to_accuracy.summary(runs)
    assert summary["to_target"] == {"mean": 6.0, "interval": None, "n": 1}
    assert summary["final"] == {"accuracy_tta": None, "accuracy": {"mean": 0.94, "interval": None, "n": 1}}
    lines = time_to_accuracy.results({**summary, "runs": runs, "arguments": {"target": 0.94}})
    assert lines == ["94.00 % was reached by 1 of 1 run, after 6.00 s of training", "final accuracy: 94.00 %"]
    never = time_to_accuracy.summary([made_up((3.0, 0.5, None))])
    assert (never["to_target"], never["num_reached"]) == (None, 0)


def test_images_of_a_folder_take_the_place_of_the_recipes(
    report: Callable[..., tuple[Any, str]], tmp_path: Path, image_folder: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.replace("batch_size: 40, num_train: 200", "batch_size: 16"))
    args = ["-c", "tiny.yaml", "--images", str(image_folder), "--runs", "1"]
    figures, text = report("time_to_accuracy", *args, "--", "--explain", "null", "--data.val_fraction", "0")
    assert figures["num_images"] == {"train": 3 * 24, "test": 3 * 9}
    assert figures["curve"][-1]["accuracy"] * 27 == pytest.approx(round(figures["curve"][-1]["accuracy"] * 27))
    assert "interval" not in text
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "figures.json", "report.md"}


# What a user can get wrong.


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("time_to_accuracy -c x.yaml --target 1.5", "--target: 1.5 is not allowed"),
        ("time_to_accuracy -c x.yaml --target 0", "--target: 0 is not allowed"),
        ("time_to_accuracy -c x.yaml --target high", "--target"),
        ("time_to_accuracy -c x.yaml --runs 0", "--runs: 0 is not allowed"),
        ("time_to_accuracy -c x.yaml --seed -1", "--seed: -1 is not allowed"),
        ("time_to_accuracy", "-c/--config"),
        ("time_to_accuracy -c nowhere.yaml", "nowhere.yaml cannot be read"),
        ("time_to_accuracy -c tiny.yaml -- --seed_everything 3", "give --seed instead"),
        ("time_to_accuracy -c tiny.yaml -- --checkpoint.monitor=val/acc", "--checkpoint.monitor"),
        ("time_to_accuracy -c tiny.yaml -- --model.width 3", "model.width"),
        ("time_to_accuracy -c tiny.yaml -- --trainer.devices 2", "trainer.devices"),
        ("networks --networks cifar_resnet21", "did you mean cifar_resnet"),
        ("networks --seconds 0", "--seconds: 0 is not allowed"),
        ("networks --compile slowly", "--compile"),
        ("trainer --network nothing", "'nothing' is not in timm's registry"),
        ("trainer --precision 8", "--precision"),
        ("trainer -- --model.lr 1", "takes nothing after --"),
        ("data --num-images 100", "give 128 or more"),
        ("data --images nowhere", "nowhere is no folder"),
        ("data --workers -1", "--workers: -1 is not allowed"),
        ("data --json nowhere/figures.json", "nowhere/figures.json: cannot be written"),
        ("speed", "speed"),
    ],
)
def test_one_line_for_what_is_wrong(run: Callable[..., Result], tmp_path: Path, args: str, words: str) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    result = run(*args.split())
    assert (result.out, result.err.count("\n")) == ("", 1)
    assert result.status == (3 if "no folder" in words else 2)
    assert words in result.err


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_there_is_one_line(run: Callable[..., Result]) -> None:
    result = run("data", "--accelerator", "gpu")
    assert (result.status, result.out) == (2, "")
    assert result.err == "benchmark.py data: --accelerator: there is no gpu on this machine, give cpu\n"

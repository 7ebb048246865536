"""A rate that was found: what a run says of itself, and how it is repeated, resumed, refused and killed."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from processes import Process
from support import PLAIN, Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from cifar_resnets.__main__ import main

Run = Callable[..., Result]
EPOCHS, STEPS = 2, 2  # 200 images in batches of 80, the rest is dropped
CYCLE = """
model: {schedule: {class_path: OneCycle, init_args: {lr_min: found}}}
data: {init_args: {batch_size: 80}}
trainer: {max_epochs: 2}
"""
FINDER = """
trainer: {callbacks: [{class_path: LRFinder, init_args: {num_steps: 50, min_lr: 0.001}}]}
"""
EACH_EPOCH = {"filename": "{epoch}", "save_top_k": "-1"}
BARE = "trainer: {callbacks: [LRFinder]}"
RECIPE = ("-c", "tiny.yaml", "-c", "cycle.yaml")
SEARCHED = (*RECIPE, "-c", "finder.yaml")
FLAT = ("--trainer.callbacks.min_lr", "1e-9", "--trainer.callbacks.max_lr", "1e-8")
LINE = re.compile(r"^learning rate: (\S+) \(valley of 50 steps\), from (\S+)$", re.MULTILINE)


def write_recipes(folder: Path) -> None:
    for name, text in (("tiny", PLAIN), ("cycle", CYCLE), ("finder", FINDER), ("bare", BARE)):
        (folder / f"{name}.yaml").write_text(text)


pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def recipes(tmp_path: Path) -> None:
    write_recipes(tmp_path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[float, float]]:
    """The folder of a run that searched, and the rates that its console showed: peak and start."""
    folder, out = tmp_path_factory.mktemp("fitted"), io.StringIO()
    write_recipes(folder)
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        main(["fit", *SEARCHED, *(f"--checkpoint.{key}={value}" for key, value in EACH_EPOCH.items())])
    shown = LINE.search(out.getvalue())
    assert shown, out.getvalue()
    return folder / "logs/tiny/version_0", (float(shown[1]), float(shown[2]))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def read_yaml(path: Path) -> dict:
    content: dict = yaml.safe_load(path.read_text())
    return content


def refused(result: Result, status: int, *words: str) -> None:
    assert (result.status, result.err.count("\n")) == (status, 1), result
    assert all(word in result.err for word in words), result.err


# What a run says of itself.


def test_config_yaml(fitted: tuple[Path, tuple[float, float]]) -> None:
    run, found = fitted
    model = read_yaml(run / "config.yaml")["model"]
    assert (model["lr"], model["schedule"]["init_args"]["lr_min"]) == found


def test_hparams_yaml(fitted: tuple[Path, tuple[float, float]]) -> None:
    run, found = fitted
    hparams = read_yaml(run / "hparams.yaml")
    assert (hparams["lr"], hparams["schedule.lr_min"]) == found


def test_the_hparams_tab(fitted: tuple[Path, tuple[float, float]]) -> None:
    run, found = fitted
    events = EventAccumulator(str(run))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert tuple(start.hparams[name].number_value for name in ("lr", "schedule.lr_min")) == found


def test_the_checkpoints(fitted: tuple[Path, tuple[float, float]]) -> None:
    run, found = fitted
    for name in ("epoch=0", "last"):
        hparams = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["hyper_parameters"]
        assert (hparams["lr"], hparams["schedule"]["init_args"]["lr_min"]) == found


def test_the_logged_rates_are_those_of_the_cycle(fitted: tuple[Path, tuple[float, float]]) -> None:
    run, (peak, start) = fitted
    with (run / "metrics.csv").open() as file:
        logged = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    # four steps: from the start to the peak in the first epoch, and down to a ten thousandth of the start in the second
    assert logged == pytest.approx([peak, start / 1e4], rel=1e-6)
    assert max(logged) <= np.float32(peak)  # logged in single precision


# How it is repeated and resumed.


def test_the_rates_typed_give_the_same_weights(
    cli: Run, fitted: tuple[Path, tuple[float, float]], tmp_path: Path
) -> None:
    run, (peak, start) = fitted
    typed = ("--model.lr", str(peak), "--model.schedule.lr_min", str(start))
    result = cli("fit", *RECIPE, *typed)
    assert result.status == 0, result.err
    assert "learning rate:" not in result.out
    last = "checkpoints/last.ckpt"
    assert same(tensors(run / last), tensors(tmp_path / "logs/tiny/version_0" / last))
    assert not (tmp_path / "logs/tiny/version_0/lr_finder.csv").exists()


def test_the_config_of_a_run_repeats_it(cli: Run, fitted: tuple[Path, tuple[float, float]], tmp_path: Path) -> None:
    run, found = fitted
    result = cli("fit", "-c", str(run / "config.yaml"))
    assert result.status == 0, result.err
    shown = LINE.search(result.out)
    assert shown and (float(shown[1]), float(shown[2])) == found
    last = "checkpoints/last.ckpt"
    assert same(tensors(run / last), tensors(tmp_path / "logs/tiny/version_0" / last))


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_a_resumed_run_does_not_search(
    cli: Run, fitted: tuple[Path, tuple[float, float]], monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    run, found = fitted
    monkeypatch.chdir(run.parents[2])  # a finished run tests its best checkpoint again, whose path is relative
    result = cli("fit", *SEARCHED, "--ckpt_path", str(run / f"checkpoints/epoch={epoch}.ckpt"), "--name", f"of_{epoch}")
    assert result.status == 0, result.err
    assert "learning rate:" not in result.out
    resumed = Path(f"logs/of_{epoch}/version_0")
    assert not (resumed / "lr_finder.csv").exists()
    model = read_yaml(resumed / "config.yaml")["model"]
    assert (model["lr"], model["schedule"]["init_args"]["lr_min"]) == found
    if epoch + 1 < EPOCHS:  # a finished run writes no checkpoint
        last = "checkpoints/last.ckpt"
        assert same(tensors(run / last), tensors(resumed / last))


def test_a_run_that_is_resumed_with_another_length_keeps_its_rates(
    cli: Run, fitted: tuple[Path, tuple[float, float]], tmp_path: Path
) -> None:
    run, found = fitted
    result = cli("fit", *SEARCHED, "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.max_epochs", "3")
    assert (result.status, result.err) == (0, "")
    assert f"resumed with other settings: the run's length {EPOCHS * STEPS} -> {3 * STEPS} steps\n" in result.out
    assert "learning rate:" not in result.out
    model = read_yaml(tmp_path / "logs/tiny/version_0/config.yaml")["model"]
    assert (model["lr"], model["schedule"]["init_args"]["lr_min"]) == found


def test_fast_dev_run_does_not_search(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", *SEARCHED, "--trainer.fast_dev_run", "true")
    assert result.status == 0, result.err
    assert "learning rate:" not in result.out
    assert not (tmp_path / "logs").exists()


# A finder in one word, and what goes wrong.


def test_a_finder_without_settings(cli: Run) -> None:
    result = cli("fit", *RECIPE, "-c", "bare.yaml", "--trainer.max_epochs", "1")
    assert result.status == 0, result.err
    assert re.search(r"^learning rate: \S+ \(valley of 100 steps\), from \S+$", result.out, re.MULTILINE)


def test_a_start_to_be_found_needs_a_finder(cli: Run) -> None:
    result = cli("fit", *RECIPE)
    refused(result, 2, "model.schedule.lr_min", "LRFinder")
    assert "epoch" not in result.out


def test_nothing_found_can_end_the_run(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", *SEARCHED, *FLAT, "--trainer.callbacks.on_failure", "error")
    refused(result, 5, "LRFinder: the loss is flat", "try")
    assert "epoch" not in result.out
    assert not list(tmp_path.rglob("*.ckpt"))


def test_nothing_found_leaves_the_configured_rate(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", *SEARCHED, *FLAT)
    assert (result.status, result.err) == (0, "")
    assert "learning rate: 0.05 as configured, the range test found none: the loss is flat" in result.out
    model = read_yaml(tmp_path / "logs/tiny/version_0/config.yaml")["model"]
    assert (model["lr"], model["schedule"]["init_args"]["lr_min"]) == (0.05, None)


@pytest.mark.process
def test_a_run_that_is_killed_while_it_searches_leaves_no_more_than_any_other(tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    process = Process("fit", *SEARCHED, "--trainer.callbacks.num_steps", "20000", cwd=tmp_path)
    output = {path.name for path in tmp_path.iterdir()} - before
    run = tmp_path / "logs/tiny/version_0"
    process.wait_for((run / "config.yaml").exists)
    time.sleep(2)  # the range test has begun by now
    assert process.is_alive
    process.signal(signal.SIGKILL)
    result = process.wait()
    assert (result.status, result.out) == (128 + signal.SIGKILL, "")
    assert {path.name for path in tmp_path.iterdir()} == before | output | {"logs"}
    assert [path.name for path in (tmp_path / "logs").rglob("version_*")] == ["version_0"]
    names = sorted(path.name.partition(".out.")[0] for path in run.rglob("*"))
    assert names == ["checkpoints", "config.yaml", "events", "run.json"]  # as a run has them before its first step

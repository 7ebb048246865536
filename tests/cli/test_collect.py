"""The table as a user gets it, of made-up runs and of real ones."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Process, run
from support import TINY, Result, read_json
from sweep_runs import FINDER, ONE_CYCLE, write_trained

from cifar_resnets.cli.collect import COLUMNS, short_keys
from cifar_resnets.results.trained_runs import read_trained

LIGHT = """
import sys
from cifar_resnets.__main__ import main
main(["collect", *sys.argv[1:]])
heavy = {"torch", "lightning", "timm", "torchvision", "scipy.stats", "sklearn"} & sys.modules.keys()
assert not heavy, heavy
"""
HOSTILE = ("猫 und Hündin", "a\nb\x1b[31m|c", "[bold]x[/bold]", "z" * 200)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Three groups and a half: three seeds, two seeds with another rate, one seed of another network, one of no end."""
    for seed, accuracy in enumerate((0.912, 0.915, 0.921)):
        write_trained(tmp_path / f"logs/resnet20/version_{seed}", seed, accuracy, accuracy + 0.01, name="resnet20")
    for seed, accuracy in enumerate((0.9, 0.93)):
        changes = {"name": "resnet20", "model.lr": 0.2, "model.schedule": ONE_CYCLE}
        write_trained(tmp_path / f"logs/resnet20/version_{seed + 3}", seed, accuracy, 0.9, **changes)
    changes = {"name": "deep", "model.network": "cifar_resnet110", "trainer.callbacks": [FINDER]}
    write_trained(tmp_path / "logs/deep/version_0", 0, 0.934, 0.94, **changes)
    write_trained(tmp_path / "logs/deep/version_1", 1, None, **changes)
    write_trained(tmp_path / "logs/wide/version_0", 0, None, name="wide")
    return tmp_path / "logs"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# The formats.


def test_csv(cli: Callable[..., Result], logs: Path) -> None:
    result = cli("collect", "--format", "csv")
    assert result.status == 0
    found = rows(result.out)
    assert list(found[0]) == list(COLUMNS)
    assert [(row["name"], row["network"], row["seeds"], row["seeds_without_result"]) for row in found] == [
        ("deep", "cifar_resnet110", "1", "1"),
        ("resnet20", "cifar_resnet20", "3", "0"),
        ("resnet20", "cifar_resnet20", "2", "0"),
        ("wide", "cifar_resnet20", "0", "1"),
    ]
    assert [row["settings"] for row in found] == [
        "",
        "model.lr 0.05; model.schedule Cosine",
        "model.lr 0.2; model.schedule OneCycle",
        "",
    ]
    values = np.array([0.912, 0.915, 0.921])
    expected = {"mean": values.mean(), "std": values.std(ddof=1), "min": 0.912, "max": 0.921}
    half = 4.302652729749464 * values.std(ddof=1) / math.sqrt(3)  # the table of Student's distribution, 2 degrees
    expected |= {"low": values.mean() - half, "high": values.mean() + half}
    for name, value in expected.items():
        assert float(found[1][f"test_{name}"]) == pytest.approx(value, abs=1e-6)
    assert float(found[1]["val_mean"]) == pytest.approx(values.mean() + 0.01, abs=1e-6)
    assert [found[0][f"test_{name}"] for name in ("mean", "std", "low", "high")] == ["0.934000", "", "", ""]
    assert set(list(found[3].values())[5:]) == {""}


def test_what_is_not_in_a_file_of_figures_is_on_stderr(cli: Callable[..., Result], logs: Path) -> None:
    for style in ("csv", "markdown"):
        lines = cli("collect", "--format", style).err.splitlines()
        assert lines[0] == "without a result: 2 of 8 folders"
        assert lines[1].startswith("  logs/deep/version_1: it has not finished: there is no test.json; last written 20")
        assert lines[2].startswith("  logs/wide/version_0: it has not finished")


def test_json(cli: Callable[..., Result], logs: Path) -> None:
    write_trained(
        logs / "deep/version_7",
        0,
        0.95,
        name="deep",
        **{"trainer.callbacks": [FINDER], "model.network": "cifar_resnet110"},
    )
    result = cli("collect", "--format", "json")
    assert result.err == ""
    document = json.loads(result.out)
    deep, first, second, wide = document["groups"]
    assert first["settings"] == {"model.lr": "0.05", "model.schedule": "Cosine"}
    assert [run["folder"] for run in first["runs"]] == [f"logs/resnet20/version_{number}" for number in range(3)]
    assert [run["test"] for run in first["runs"]] == [0.912, 0.915, 0.921]
    assert [run["seed"] for run in second["runs"]] == [0, 1]
    assert second["test_mean"] == pytest.approx(0.915)
    assert second["test_std"] == pytest.approx(math.sqrt(2) * 0.015)
    assert (deep["test_mean"], deep["test_std"], deep["seeds_without_result"]) == (0.95, None, 1)
    assert (wide["seeds"], wide["test_mean"], wide["runs"]) == (0, None, [])
    assert [each["folder"] for each in document["without_result"]] == ["logs/deep/version_1", "logs/wide/version_0"]
    [note] = document["notes"]
    assert note == "logs/deep/version_0 is left out: logs/deep/version_7 has the same seed, 0, and is newer"


def test_markdown(cli: Callable[..., Result], logs: Path) -> None:
    lines = cli("collect", "--format", "markdown").out.splitlines()
    assert len(lines) == 6
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert lines[3].startswith(
        "| resnet20 | cifar_resnet20 | model.lr 0.05; model.schedule Cosine | 3 | 0 | 0.916000 |"
    )


def test_table_in_a_pipe(cli: Callable[..., Result], logs: Path) -> None:
    result = cli("collect", "logs")
    assert (result.status, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[1] == "name network settings seeds mean std 95 % interval min max val.".split()
    assert "deep cifar_resnet110 1 of 2 93.40 - - 93.40 93.40 94.00".split() in lines
    assert "resnet20 cifar_resnet20 lr 0.05 3 91.60 0.46 90.46 - 92.74 91.20 92.10 92.60".split() in lines
    assert "resnet20 cifar_resnet20 lr 0.2 2 91.50 2.12 72.44 - 100.00 90.00 93.00 90.00".split() in lines
    assert "wide cifar_resnet20 0 of 1 - - - - - -".split() in lines
    assert ["schedule", "OneCycle"] in lines
    assert result.out.count("it has not finished") == 2


@pytest.mark.process
def test_table_of_80_columns(logs: Path) -> None:
    write_trained(logs / "x/version_0", name="z" * 60)
    write_trained(logs / "x/version_1", name="猫" * 30)
    write_trained(logs / "x/version_2", name="[bold]x[/bold]")
    # a terminal of its own, as wide as most are
    script = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    command = [sys.executable, "-c", script, sys.executable, "-m", "cifar_resnets", "collect"]
    env = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=logs.parent, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout
    table, _, _ = done.stdout.partition("without a result")
    assert max(map(len, table.splitlines())) <= 80
    lines = [line.split() for line in table.splitlines()]
    assert "resnet20 3 91.60 0.46 90.46 - 92.74 91.20 92.10 92.60".split() in lines
    assert "resnet20 2 91.50 2.12 72.44 - 100.00 90.00 93.00 90.00".split() in lines
    assert ["lr", "0.2"] in lines
    assert table.count("z") == 60
    assert table.count("猫") == 30
    assert "[bold]x[/bold]" in table


@pytest.mark.parametrize(
    ("key", "means"),
    [
        ("name", ["0.934000", "0.916000", "0.915000", ""]),
        ("test", ["0.934000", "0.916000", "0.915000", ""]),
        ("val", ["0.934000", "0.916000", "0.915000", ""]),
        ("std", ["0.916000", "0.915000", "0.934000", ""]),
        ("seeds", ["0.916000", "0.915000", "0.934000", ""]),
    ],
)
def test_sort(cli: Callable[..., Result], logs: Path, key: str, means: list[str]) -> None:
    found = rows(cli("collect", "--format", "csv", "--sort", key).out)
    assert [row["test_mean"] for row in found] == means


def test_names_and_settings_are_sorted_as_numbers(cli: Callable[..., Result], tmp_path: Path) -> None:
    several = [("a10", 1.0), ("a9", 10.0), ("a9", 1e-3), ("a9", 0.5), ("a9", 0.05)]
    for number, (name, lr) in enumerate(several):
        write_trained(tmp_path / f"logs/version_{number}", name=name, **{"model.lr": lr})
    found = [(row["name"], row["settings"]) for row in rows(cli("collect", "--format", "csv").out)]
    assert found == [*(("a9", f"model.lr {lr}") for lr in (0.001, 0.05, 0.5, 10.0)), ("a10", "")]


def test_short_keys_tell_keys_apart() -> None:
    keys = ["model.lr", "model.schedule", "model.schedule.lr", "trainer.callbacks.0.num_steps", "lr"]
    assert short_keys(keys) == {
        "model.lr": "model.lr",
        "model.schedule": "schedule",
        "model.schedule.lr": "schedule.lr",
        "trainer.callbacks.0.num_steps": "num_steps",
        "lr": "lr",
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_may_hold_anything(cli: Callable[..., Result], tmp_path: Path, name: str) -> None:
    write_trained(tmp_path / "logs" / name.replace("/", "_")[:100] / "version_0", name=name)
    write_trained(tmp_path / "logs" / name.replace("/", "_")[:100] / "version_1", 1, None, name=name)
    table = cli("collect").out
    assert "\x1b" not in table
    [row] = rows(cli("collect", "--format", "csv").out)
    assert row["name"] == name.replace("\n", "\\n").replace("\x1b", "\\x1b")
    markdown = cli("collect", "--format", "markdown").out.splitlines()
    assert len(markdown) == 3
    assert json.loads(cli("collect", "--format", "json").out)["groups"][0]["name"] == name


@pytest.mark.process
@pytest.mark.parametrize("style", ["table", "csv", "markdown", "json"])
def test_an_output_that_cannot_show_the_names(tmp_path: Path, style: str) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/logs/caf\xe9"))
    write_trained(folder / "version_0", name="猫")
    write_trained(folder / "version_1", 1, None, name="猫")
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "cifar_resnets", "collect", "--format", style]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert b"\\u732b" in done.stdout
    assert b"\\udce9" in done.stdout + done.stderr


# What is wrong.


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--format", "html"], 2, ("--format", "html")),
        (["--sort", "luck"], 2, ("--sort", "luck")),
        (["--forma", "csv"], 2, ("--forma",)),
        (["nowhere"], 3, ("there is no folder nowhere",)),
        (["logs", "nowhere"], 3, ("there is no folder nowhere",)),
        (["logs/resnet20/version_0/config.yaml"], 3, ("there is no folder",)),
        (["x" * 300], 3, ("there is no folder",)),
        (["empty"], 3, ("no run below empty", "version_N")),
    ],
)
def test_one_line_for_what_is_wrong(
    cli: Callable[..., Result], logs: Path, args: list[str], status: int, words: tuple[str, ...]
) -> None:
    (logs.parent / "empty/a").mkdir(parents=True)
    result = cli("collect", *args)
    assert (result.status, result.out, result.err.count("\n")) == (status, "", 1)
    assert all(word in result.err for word in words), result.err


@pytest.mark.process
def test_without_a_single_configuration_there_is_no_table(cli: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "logs/version_0").mkdir(parents=True)
    result = cli("collect")
    assert (result.status, result.err) == (0, "")
    assert result.out == (
        "without a result: 1 of 1 folders\n  logs/version_0: there is no config.yaml and no run.json\n"
    )


def test_it_imports_nothing_heavy(logs: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, str(logs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help(cli: Callable[..., Result]) -> None:
    result = cli("collect", "--help")
    assert result.status == 0
    assert "cifar-resnets collect logs" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


# Real runs.


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with two seeds, an evaluation of one, and a run with another rate that is killed in the middle."""
    root = tmp_path_factory.mktemp("real")
    (root / "tiny.yaml").write_text(TINY)
    for seed in ("0", "1"):
        assert run("fit", "-c", "tiny.yaml", "--seed_everything", seed, "--explain", "null", cwd=root).status == 0
    checkpoint = "logs/tiny/version_0/checkpoints/best.ckpt"
    assert run("test", "--ckpt_path", checkpoint, "--explain", "null", cwd=root).status == 0
    args = ["--model.lr", "0.1", "--trainer.max_epochs", "10000", "--explain", "null"]
    going = Process("fit", "-c", "tiny.yaml", *args, cwd=root)
    going.wait_for((root / "logs/tiny/version_3/checkpoints/last.ckpt").exists)
    assert "version_3: it has not finished" in run("collect", cwd=root).out
    going.kill_session()
    going.wait()
    return root


@pytest.mark.process
def test_real_runs(real: Path) -> None:
    accuracies = [read_json(real / f"logs/tiny/version_{number}/test.json")["accuracy"] for number in range(2)]
    document = json.loads(run("collect", "--format", "json", cwd=real).out)
    finished, killed = sorted(document["groups"], key=lambda group: -group["seeds"])
    assert (finished["name"], finished["network"], finished["seeds"]) == ("tiny", "cifar_resnet20", 2)
    assert finished["settings"] == {"trainer.max_epochs": "1", "model.lr": "0.05"}
    assert finished["test_mean"] == pytest.approx(np.mean(accuracies))
    assert finished["test_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert (finished["test_min"], finished["test_max"]) == (min(accuracies), max(accuracies))
    assert [(each["seed"], each["test"]) for each in finished["runs"]] == list(enumerate(accuracies))
    assert (killed["seeds"], killed["seeds_without_result"]) == (0, 1)
    assert killed["settings"] == {"trainer.max_epochs": "10000", "model.lr": "0.1"}
    reasons = {each["folder"]: each["reason"] for each in document["without_result"]}
    assert reasons.keys() == {"logs/tiny/version_2", "logs/tiny/version_3"}
    assert reasons["logs/tiny/version_2"] == "it was made by `test`, which trains nothing"
    assert "it has not finished" in reasons["logs/tiny/version_3"]


@pytest.mark.process
def test_the_validation_accuracy_is_that_which_chose_the_checkpoint(real: Path) -> None:
    found = read_trained(real / "logs/tiny/version_0")
    shown = run("validate", "--ckpt_path", "logs/tiny/version_0/checkpoints/best.ckpt", "--explain", "null", cwd=real)
    assert shown.status == 0
    [report] = real.glob("logs/tiny/version_*/val.json")
    assert read_json(report)["accuracy"] == pytest.approx(found.val_accuracy, abs=1e-6)


@pytest.mark.process
def test_a_real_configuration_that_was_cut_off_is_not_taken_for_another(real: Path, tmp_path: Path) -> None:
    source = real / "logs/tiny/version_0"
    expected, lines = read_trained(source).setup, (source / "config.yaml").read_text().splitlines(keepends=True)
    (tmp_path / "run.json").write_bytes((source / "run.json").read_bytes())
    found: list[Any] = []
    for end in range(0, len(lines) + 1):
        (tmp_path / "config.yaml").write_text("".join(lines[:end]))
        found.append(read_trained(tmp_path).setup)
    assert found[0] is None
    assert found[-1] == expected
    assert all(each in (None, expected) for each in found)

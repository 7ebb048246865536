"""Recipes and checkpoints of version 0.1.0, whose classes were in other modules: see tests/fixtures."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import WITHOUT_PICTURES, Result, read_json

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.results.comparison import differing_settings
from cifar_resnets.results.json_files import read_config
from cifar_resnets.results.trained_runs import read_setup
from cifar_resnets.runs.checkpoint_file import EVALUATE, RESUME, read_checkpoint_file
from cifar_resnets.support.former_names import NOW, current_names
from cifar_resnets.training.schedules import OneCycle

pytestmark = pytest.mark.long

Run = Callable[..., Result]
FORMER = Path(__file__).parents[1] / "fixtures/v0.1.0"
BEST, LAST = (str(FORMER / f"checkpoints/{name}.ckpt") for name in ("best", "last"))
ONE_CYCLE = "cifar_resnets.schedules.OneCycle"


@pytest.mark.parametrize("name", NOW.values())
def test_a_class_is_where_the_table_says(name: str) -> None:
    module, _, cls = name.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), cls), type)


def test_names_are_replaced_wherever_they_stand_and_nothing_else_is() -> None:
    now = NOW[ONE_CYCLE]
    value = {"a": [{"class_path": ONE_CYCLE, "init_args": {"x": 1.5, "y": None}}], "b": f"see {ONE_CYCLE}"}
    assert current_names(value) == {**value, "a": [{"class_path": now, "init_args": {"x": 1.5, "y": None}}]}
    args = ["fit", "--model.schedule", ONE_CYCLE, f"--model.schedule={ONE_CYCLE}", "--data.root=a=b", "="]
    assert current_names(args) == ["fit", "--model.schedule", now, f"--model.schedule={now}", "--data.root=a=b", "="]


def test_the_fixture_has_the_former_names() -> None:
    assert f"class_path: {ONE_CYCLE}" in (FORMER / "config.yaml").read_text()
    for path in (BEST, LAST):
        assert ONE_CYCLE.encode() in Path(path).read_bytes()


def test_a_checkpoint_is_tested_with_the_same_accuracy(cli: Run, one_thread: None) -> None:
    result = cli("test", "--ckpt_path", BEST, *WITHOUT_PICTURES)
    assert (result.status, result.err) == (0, "")
    [run] = Path("logs").glob("*/version_0")
    assert read_json(run / "test.json")["correct"] == 110
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["schedule"]["class_path"] == NOW[ONE_CYCLE]


def test_a_checkpoint_is_resumed_and_what_it_does_not_hold_is_said(cli: Run, tmp_path: Path) -> None:
    config = str(FORMER / "config.yaml")
    result = cli("fit", "-c", config, "--ckpt_path", LAST, "--trainer.max_epochs", "3", *WITHOUT_PICTURES)
    assert (result.status, result.err) == (0, "")
    assert "going on after step 128 of 192" in result.out
    assert "the run's length 128 -> 192 steps\n" in result.out
    assert "the checkpoint is of an older version, without seed, settings of the Trainer and digests" in result.out
    assert "epoch 3/3" in result.out and "epoch 2/3" not in result.out
    run = tmp_path / "logs/former/version_0"
    before, after = ((folder / "metrics.csv").read_text().splitlines() for folder in (FORMER, run))
    assert len(after) == len(before) + 2  # training and validation of one epoch, without the first run's test
    saved = read_checkpoint_file(run / "checkpoints/last.ckpt", RESUME)
    assert (saved["epoch"], saved["global_step"]) == (2, 192)


def test_a_recipe_is_trained_and_compared_as_equal(cli: Run, tmp_path: Path) -> None:
    former = FORMER / "config.yaml"
    result = cli("fit", "-c", str(former))
    assert (result.status, result.err) == (0, "")
    now = tmp_path / "logs/former/version_0/config.yaml"
    assert ONE_CYCLE not in now.read_text()
    assert read_setup(now) == read_setup(former)
    differing = differing_settings([read_config(former), read_config(now)])
    assert [key for key, (then, _) in differing.items() if then is not None] == []  # but for keys that were added since


@pytest.mark.parametrize(
    "typed",
    [
        ["--model.schedule", ONE_CYCLE],
        [f"--model.schedule={ONE_CYCLE}"],
        ["--model.schedule.class_path", ONE_CYCLE],
        ["--model.schedule", f"{{class_path: {ONE_CYCLE}}}"],
        ["--model", f"{{schedule: {{class_path: {ONE_CYCLE}}}}}"],
        ["-c", f'{{"model": {{"schedule": {{"class_path": "{ONE_CYCLE}"}}}}}}'],
    ],
)
def test_a_former_name_can_be_typed(typed: list[str], cli: Run) -> None:
    result = cli("fit", "--data", "Digits", *typed, "--print_config")
    assert (result.status, result.err) == (0, "")
    assert yaml.safe_load(result.out)["model"]["schedule"]["class_path"] == NOW[ONE_CYCLE]


def test_a_callback_can_be_named_as_before(cli: Run) -> None:
    named = "cifar_resnets.callbacks.console.EpochBar"
    result = cli("fit", "--data", "Digits", f"--trainer.callbacks+={named}", "--print_config")
    assert (result.status, result.err) == (0, "")
    assert yaml.safe_load(result.out)["trainer"]["callbacks"][0]["class_path"] == NOW[named]


def test_a_checkpoint_is_loaded_in_python(tmp_path: Path) -> None:
    module = ImageClassifier.load_from_checkpoint(BEST, weights_only=True)
    assert isinstance(module.schedule, OneCycle)
    content: dict[str, Any] = read_checkpoint_file(Path(BEST), EVALUATE)
    assert module.hparams["schedule"] == content["hyper_parameters"]["schedule"]

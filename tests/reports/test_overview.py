from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import write_run

from cifar_resnets.reports.formatting import Fact
from cifar_resnets.reports.overview import command, figures, headline, origin, recipe, subtitle, timing
from cifar_resnets.results.csv_files import Curve
from cifar_resnets.results.json_files import Record
from cifar_resnets.results.run_folder import Run, read_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write_run(tmp_path / "a", num_epochs=5), "a")


def plain(facts: list[Fact]) -> dict[str, str]:
    return {fact.name: fact.value.replace("\N{NO-BREAK SPACE}", " ") for fact in facts}


def test_the_headline_is_the_accuracy_of_the_test(run: Run) -> None:
    assert run.predictions is not None
    accuracy = (run.predictions.labels == run.predictions.predicted).mean()
    top = headline(run)
    assert top["accuracy"].replace("\N{NO-BREAK SPACE}", " ") == f"{accuracy:.2%}".replace("%", " %")
    assert top["caption"] == "test accuracy"
    assert top["images"].endswith("of 60 images")
    assert "–" in top["interval"]


def test_the_other_figures(run: Run) -> None:
    found = plain(figures(run))
    curve = run.history["val/acc"]
    assert found["best validation accuracy"] == f"{100 * curve.y.max():.2f} %"
    assert figures(run)[0].note == f"epoch {np.argmax(curve.y) + 1}"
    assert found["test loss"] == "0.250 nats"
    assert found["training time"] == "1 min 02 s"  # 5 epochs of 12.5 s
    assert found["throughput"] == "402 images/s"  # the median of 400 to 404
    assert "top-5 accuracy" not in found
    assert plain(timing(run))["time of an epoch"] == "12.5 s"


def test_a_validation_without_numbers_has_no_best_epoch(run: Run) -> None:
    run.history["val/acc"].y[:] = np.nan
    assert "best validation accuracy" not in plain(figures(run))
    run.history["val/acc"].y[2] = 0.5
    assert figures(run)[0].note == "epoch 3"


def test_what_was_trained(run: Run) -> None:
    found = plain(recipe(run))
    assert found["network"] == "cifar_resnet20"
    assert found["parameters"] == "634"
    assert found["data"] == "Digits, 400 images"
    assert found["length"] == "5 epochs"
    assert found["optimizer"] == "SGD, learning rate 0.1, weight decay 0.0005"
    assert found["schedule"] == "OneCycle"
    assert "precision" not in found  # not given
    assert subtitle(run) == "cifar_resnet20 · Digits · 2026-11-21"


def test_where_it_comes_from(run: Run) -> None:
    found = {fact.name: fact for fact in origin(run)}
    assert found["seed"].value == "0"
    assert found["commit"].note == "1 file was not as in the commit"
    assert found["versions"].value == "cifar_resnets 0.1.0, python 3.11.7, torch 2.15.0"


@pytest.mark.parametrize(
    "program", ["cifar-resnets", "/a b/bin/cifar-resnets", "/site-packages/cifar_resnets/__main__.py"]
)
def test_the_command_is_what_a_shell_takes(run: Run, program: str) -> None:
    arguments = ["fit", "-c", "my recipe.yaml", "--name", "$(rm -rf x)", "--model.network_args", "{depths: [1]}"]
    words = shlex.split(command(replace(run, record=Record(command=[program, *arguments]))))
    assert words[-len(arguments) :] == arguments
    assert words[: -len(arguments)] == (
        ["python", "-m", "cifar_resnets"] if program.endswith(".py") else ["cifar-resnets"]
    )


def test_an_empty_run_has_nothing_to_say() -> None:
    empty = Run(Path("a"), "a")
    assert command(empty) == subtitle(empty) == ""
    assert headline(empty) == {}
    assert figures(empty) == recipe(empty) == origin(empty) == timing(empty) == []


def test_a_configuration_of_another_shape(run: Run) -> None:
    strange = replace(run, config={"model": "x", "data": [1], "trainer": {"max_epochs": "many"}})
    assert plain(recipe(strange))["data"] == "[1]"


def test_a_loss_that_is_no_number_has_no_unit(run: Run) -> None:
    assert run.evaluation is not None
    unknown = replace(run, evaluations={"test": replace(run.evaluation, loss=float("nan"))})
    assert {fact.name: fact.value for fact in figures(unknown)}["test loss"] == "–"


def test_the_best_epoch_may_be_a_part_of_one(run: Run) -> None:
    halved = replace(run, history={"val/acc": Curve(np.array([1 / 3, 2 / 3]), np.array([0.1, 0.2]))})
    assert figures(halved)[0].note == "epoch 0.67"


def test_a_single_epoch_is_no_plural(run: Run) -> None:
    config = {**run.config, "trainer": {"max_epochs": 1, "max_steps": 1000}}
    history = {"time/epoch_seconds": Curve(np.array([1.0]), np.array([2.0]))}
    short = replace(run, config=config, history=history)
    assert timing(short)[0].note == "1 epoch"
    assert "1 epoch, 1,000 steps at most" in [fact.value for fact in recipe(short)]


def test_counts_that_are_no_counts_are_left_out(run: Run) -> None:
    assert "parameters" not in plain(recipe(replace(run, layers=[{"parameters": "9" * 5000}])))

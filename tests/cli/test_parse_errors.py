"""Messages of the real parser, made short; `test_cli.py` does the same from the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import EarlyStopping
from matplotlib.figure import Figure

from cifar_resnets.cli.parse_errors import explain, is_of_trainer, unknown_figure, unknown_key
from cifar_resnets.cli.parser import FIGURES, check_figure_path
from cifar_resnets.errors import ConfigurationError, OutputError

KEYS = ["trainer.max_epochs", "trainer.max_steps", "data.batch_size"]


def message(*args: str) -> str:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--trainer.max_epochs", type=int | None, default=None)
    parser.add_argument("--data.batch_size", type=int, default=1)
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(list(args))
    return error.value.message


def test_wrong_type_names_key_value_and_what_is_allowed() -> None:
    line = explain(message("--trainer.max_epochs", "many"), KEYS, {})
    assert line == "trainer.max_epochs: many is not allowed, give int or null"
    assert explain(message("--data.batch_size", "big"), KEYS, {}) == "data.batch_size: big is not allowed, give int"


def test_unknown_argument_gets_a_suggestion() -> None:
    line = explain(message("--trainer.max_epoch", "3"), KEYS, {})
    assert line.startswith("trainer.max_epoch: there is no such key, did you mean trainer.max_epochs")


def test_unknown_key_without_a_neighbour() -> None:
    assert unknown_key("zzz", KEYS) == "zzz: there is no such key"


def test_a_key_is_not_suggested_for_itself() -> None:
    assert "did you mean trainer.max_steps" in unknown_key(
        "trainer.max_epochs", ["trainer.max_epochs", "trainer.max_steps"]
    )


def test_what_is_not_understood_stays_whole_on_one_line() -> None:
    assert explain("something\n  else\n  happened", KEYS, {}) == "something else happened"


# Figures.


@pytest.mark.parametrize("ending", [*FIGURES, ".PNG"])
def test_a_figure_s_path_is_one_that_matplotlib_writes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"curve{ending}"
    check_figure_path(path)
    assert not path.exists()
    Figure(figsize=(1, 1)).savefig(path)
    assert path.stat().st_size > 0


def test_no_figure_is_no_error() -> None:
    check_figure_path(None)


def test_a_figure_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_figure_path(Path("curve.png"))


@pytest.mark.parametrize("name", ["curve.txt", "curve", ".png", "curve.png.gz", "nowhere/curve.doc"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        check_figure_path(tmp_path / name)
    assert str(error.value) == f"--plot: {tmp_path / name} is not allowed, end it with one of {', '.join(FIGURES)}"


@pytest.mark.parametrize("folder", ["nowhere", "file"])
def test_a_figure_without_a_folder_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=rf"^--plot: there is no folder {tmp_path / folder}$"):
        check_figure_path(tmp_path / folder / "curve.png")
    assert OutputError.exit_status == 6


# Messages that tell of types alone.


def explained(parser: ArgumentParser, *args: str, choices: dict[str, list[str]] | None = None) -> str:
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(list(args))
    line = explain(error.value.message, ["data.batch_size", "part.size", "part.name"], choices or {})
    assert "\n" not in line
    return line


@dataclass
class Part:
    """A class with keys."""

    size: int = 1
    name: str = "a"


class Shape:
    """A class with others below it."""

    def __init__(self, side: int = 1) -> None:
        self.side = side


class Square(Shape):
    """A class that needs something."""

    def __init__(self, corner: int, side: int = 1) -> None:
        super().__init__(side)


def nested() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--part", type=Part)
    parser.add_argument("--shape", type=Shape | None)
    return parser


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["recipe.yaml"], "recipe.yaml: there is no key before it, give -c recipe.yaml"),
        (["20"], "20: there is no key before it"),
        (["-part.size", "3"], "-part.size: a key begins with two hyphens, give --part.size"),
        (["\u2014part.size", "3"], "\u2014part.size: a key begins with two hyphens, give --part.size"),
        (["--part.siz", "3"], "part.siz: there is no such key, did you mean part.size?"),
        (["--part"], "--part: a value is missing after it, or after a key below it such as --part.size"),
        (["--part", "5"], "part: 5 is not allowed, give the keys below it such as --part.size"),
        (["--part.size", "x"], "part.size: x is not allowed, give int"),
        (["--part.size="], "part.size: an empty value is not allowed, give int"),
    ],
)
def test_keys_in_one_line(args: list[str], line: str) -> None:
    assert explained(nested(), *args) == line


def test_classes_in_one_line() -> None:
    name = f"{__name__}.Square"
    assert (
        explained(nested(), "--shape", name)
        == "shape.corner is missing: give --shape.corner, or a recipe with it by -c"
    )
    line = explained(nested(), "--shape", name, "--shape.cornre", "3")
    assert line.startswith("shape.cornre: there is no such key, did you mean shape.corner")
    few, many = {"shape": ["Circle", "Square"]}, {"shape": ["Square", *map(str, range(99))]}
    assert explained(nested(), "--shape", "Sqare") == (
        "shape: 'Sqare' is not known, give the name of a class, or its import path"
    )
    assert explained(nested(), "--shape", "Sqare", choices=few).endswith("is not known, give one of Circle, Square")
    assert explained(nested(), "--shape", "Sqare", choices=many).endswith("is not known, did you mean Square?")


def test_what_lightning_refuses() -> None:
    def error_of(call: Callable[[], object]) -> Exception:
        with pytest.raises(Exception) as error:
            call()
        return error.value

    assert is_of_trainer(error_of(lambda: pl.Trainer(strategy="none", accelerator="cpu")))
    assert not is_of_trainer(error_of(lambda: pl.LightningModule().trainer))  # a RuntimeError, of our own doing
    assert not is_of_trainer(error_of(lambda: int("x")))
    assert not is_of_trainer(ValueError("never raised"))


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ("val/accuracy", "monitor: there is no figure val/accuracy, give one such as val/acc"),
        ("val_loss", "monitor: there is no figure val_loss, give one such as val/loss"),
        ("f1", "monitor: there is no figure f1, give one such as val/loss, val/acc"),
    ],
)
def test_figures_that_callbacks_do_not_find(monitor: str, said: str) -> None:
    figures = {name: torch.tensor(0.5) for name in ("train/loss", "val/loss", "val/acc", "val_class_acc/cat")}
    with pytest.raises(RuntimeError) as stopping:
        EarlyStopping(monitor)._validate_condition_metric(figures)
    best = f"`ModelCheckpoint(monitor={monitor!r})` could not find the monitored key in the returned metrics: "
    for message in (str(stopping.value), f"{best}{list(figures)}. HINT: Did you call `log({monitor!r}, value)`?"):
        assert (unknown_figure(message) or "").startswith(said)
    assert unknown_figure("something else") is None

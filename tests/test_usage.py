"""Messages of the real parser, made short; `test_cli.py` does the same from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from matplotlib.figure import Figure

from cifar_resnets.errors import ConfigurationError, OutputError
from cifar_resnets.usage import FIGURES, check_figure_path, explain, unknown_key

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

"""The path of a figure is checked before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cifar_resnets.cli.parser import FIGURES, CommandParser, check_figure_path, local
from cifar_resnets.errors import ConfigurationError, OutputError


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


def test_paths_are_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser = CommandParser("report", "", "")
    parser.add_argument("--output", type=local)
    assert parser.parse_args(["--output=~/a.html"]).output == Path("/home/me/a.html")
    with pytest.raises(ConfigurationError, match="^report: argument --output: path: s3://a/b.html is an address"):
        parser.parse_args(["--output", "s3://a/b.html"])

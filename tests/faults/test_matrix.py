"""The harness itself: a fault that is lost must not look like one that was survived."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import matrix
from faults.matrix import Matrix, as_markdown, as_text, ends_well, files_in, leaves_nothing, one_line
from support import Result

pytestmark = pytest.mark.process

ROWS = """
import pytest
from faults.matrix import fault

GROUP = "Invented"

@pytest.fixture
def breaks():
    yield
    assert False

@pytest.fixture
def cannot():
    raise OSError

@fault("half of it")
@pytest.mark.parametrize("number", range(4))
def test_half(number):
    assert number % 2

@fault("several in one", tries=5)
def test_several(): pass

@pytest.mark.parametrize("number", [0, pytest.param(1, marks=fault("a row of its own"))])
@fault("of the function")
def test_own(number): pass

@fault("cleaned up badly")
def test_badly(breaks): pass

@fault("not set up")
def test_not_set_up(cannot): pass

@fault("not here")
def test_not_here(): pytest.skip("no such disk")

def test_no_row(): pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_row_counts_its_tries(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_invented_faults.py").write_text(ROWS)
    tests = Path(matrix.__file__).parents[1]
    command = [sys.executable, "-m", "pytest", str(tmp_path)]
    environment = {**os.environ, "CIFAR_RESNETS_FAULT_TABLE": str(tmp_path / "table.md")}
    options = ["-n", workers, "-p", "faults.table", "-p", "no:cacheprovider"]
    options += ["-c", str(tests.parent / "setup.cfg"), "-o", f"pythonpath={tests}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    expected = {
        "half of it": (4, 2, 2), "several in one": (5, 5, 0), "of the function": (1, 1, 0),
        "a row of its own": (1, 1, 0), "cleaned up badly": (1, 0, 1), "not set up": (1, 0, 1),
        "**all**": (13, 9, 4),
    }  # fmt: skip
    table = (tmp_path / "table.md").read_text()
    for what, figures in expected.items():
        assert f"| {what} | {' | '.join(map(str, figures))} |\n" in table
    assert "| **Invented** | | | |\n" in table
    assert "| not here | not tried here | | |\n" in table
    assert table.endswith("\nLOST: 4 of 13; rows not tried in full on this machine: 1\n")
    assert "\nInvented:\n  half of it " in done.stdout
    assert "test_no_row" not in table


def test_the_table_fits_a_terminal() -> None:
    rows = Matrix()
    rows.add("group", "a fault that is told in far more words than the table has room for in its first column", 3, True)
    rows.add("group", "short", 12, True)
    lines = as_text(rows)
    assert max(map(len, lines)) == 80
    assert lines[-1] == "15 tries, nothing lost"
    assert "in its first column | 3 | 3 | 0 |" in as_markdown(rows)


def test_one_line_refuses_all_else() -> None:
    good = "cifar-resnets: data.root: there is no folder x\n"
    assert one_line(Result(3, "", good), 3, "data.root", "x") == good.strip()
    for result in (
        Result(2, "", good),
        Result(3, "", ""),
        Result(3, "", good + "more\n"),
        Result(3, "", "Traceback\n"),
        Result(3, "", "cifar-resnets: something failed\n"),
        Result(3, "Traceback (most recent call last):\n", good),
    ):
        with pytest.raises(AssertionError):
            one_line(result, 3, "data.root")


def test_what_ends_well_says_nothing_on_stderr() -> None:
    ends_well(Result(0, "accuracy: 1\n", ""), "accuracy")
    for result in (Result(1, "accuracy", ""), Result(0, "accuracy", "warning\n"), Result(0, "", "")):
        with pytest.raises(AssertionError):
            ends_well(result, "accuracy")


@pytest.mark.parametrize("name", ["new", ".hidden", "logs/tiny/version_0/x", "data/new"])
def test_whatever_is_new_is_left_behind(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    before = files_in(tmp_path)
    leaves_nothing(tmp_path, before)
    (tmp_path / ".err-0").touch()
    leaves_nothing(tmp_path, before)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(AssertionError, match="left behind"):
        leaves_nothing(tmp_path, before)


def test_what_is_changed_or_gone_is_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    before = files_in(tmp_path)
    (tmp_path / "file").write_text("new")
    with pytest.raises(AssertionError, match="lost"):
        leaves_nothing(tmp_path, before)
    (tmp_path / "file").unlink()
    with pytest.raises(AssertionError, match="lost"):
        leaves_nothing(tmp_path, before, run="logs/tiny/version_0")


def test_a_run_leaves_its_folder_with_whole_files(tmp_path: Path) -> None:
    before = files_in(tmp_path)
    run = tmp_path / "logs/tiny/version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.ckpt").touch()
    leaves_nothing(tmp_path, before, run="logs/tiny/version_0")
    for name in ("checkpoints/.last.ckpt.17", "last.ckpt.part", "../version_1"):
        (run / name).touch()
        with pytest.raises(AssertionError, match="left behind"):
            leaves_nothing(tmp_path, before, run="logs/tiny/version_0")
        (run / name).unlink()

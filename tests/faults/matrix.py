"""The fault matrix: what each row says about itself, the table of all rows, and what is asserted again and again.

A row is a test, or several, with the decorator `fault`:

    @fault("kill -9 at a random step")
    def test_killed(tmp_path): ...

Parametrised tests with one name are tries of one row; `pytest.param(..., marks=fault("grey image"))` gives each of
them a row of its own. A test that tries several times in a loop says so: `fault("kill -9 at a random step", tries=10)`;
if it fails, all of its tries count as lost. The rows of a file are one group of the table, which is called as the file
is (`test_data_faults.py`: data), or as its constant `GROUP` says.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import Result

WIDTH = 80
# what tells an unfinished file from others, wherever it is
UNFINISHED = re.compile(r"^\.|\.(part|partial|tmp|temp|lock)$|~$")


def fault(what: str, tries: int = 1) -> pytest.MarkDecorator:
    """Makes a test a row of the matrix.

    Args:
        what: the fault, in a few words; tests with the same words are one row.
        tries: how often the test tries it.
    """
    return pytest.mark.faults(what, tries)


# What a row asserts.


def one_line(result: Result, status: int, *culprits: str) -> str:
    """Asserts the exit status and that stderr is one line of ours that names the culprits; returns the line."""
    assert result.status == status, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("cifar-resnets: "), result.err
    for culprit in culprits:
        assert culprit in lines[0], (culprit, lines[0])
    assert "Traceback" not in result.out, result.out
    return lines[0]


def ends_well(result: Result, *said: str) -> None:
    """Asserts that a command has succeeded, with nothing on stderr, and has said this on stdout."""
    assert (result.status, result.err) == (0, ""), result
    for words in said:
        assert words in result.out, (words, result.out)


def files_in(folder: Path) -> dict[str, str]:
    """What is below a folder, each path with a digest; without the output that `processes` writes there."""
    paths = [path for path in folder.rglob("*") if not re.match(r"\.(out|err)-\d+$", path.name)]
    return {str(path.relative_to(folder)): _digest(path) for path in paths}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def leaves_nothing(folder: Path, before: Mapping[str, str], run: str | None = None) -> None:
    """Asserts that a command has lost nothing and left nothing behind.

    What was below the folder is there, unchanged, and nothing else: no temporary file, lock, or half a download. Only a
    run that had begun may leave its own folder, with whole files alone: none that is hidden or is called unfinished.

    Args:
        folder: what the command could write to.
        before: what was in it, from `files_in`.
        run: the run's folder below it, such as `logs/tiny/version_0`, if the run had begun.
    """
    after = files_in(folder)
    assert {path: after.get(path) for path in before} == dict(before), "lost or changed"
    new = {path for path in after if path not in before}
    if run is not None:
        allowed = {path for path in new if Path(path).is_relative_to(run) or Path(run).is_relative_to(path)}
        new = (new - allowed) | {path for path in allowed if UNFINISHED.search(Path(path).name)}
    assert not new, f"left behind: {sorted(new)}"


# The table.


@dataclass
class Row:
    """One fault: how often it was tried and lost, and why it was not tried."""

    group: str
    what: str
    tried: int = 0
    lost: int = 0
    skipped: list[str] = field(default_factory=list)

    @property
    def survived(self) -> int:
        """Tries after which everything was as it should be."""
        return self.tried - self.lost


class Matrix:
    """All rows, by group, in the order in which they were tried."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}

    def add(self, group: str, what: str, tries: int, survived: bool) -> None:
        """Counts the tries of a test."""
        row = self._row(group, what)
        row.tried += tries
        row.lost += 0 if survived else tries

    def skip(self, group: str, what: str, reason: str) -> None:
        """Notes that a test was not run."""
        self._row(group, what).skipped.append(reason)

    def _row(self, group: str, what: str) -> Row:
        return self._rows.setdefault((group, what), Row(group, what))

    @property
    def groups(self) -> dict[str, list[Row]]:
        """The rows of each group."""
        groups: dict[str, list[Row]] = {}
        for row in self._rows.values():
            groups.setdefault(row.group, []).append(row)
        return dict(sorted(groups.items()))

    @property
    def total(self) -> Row:
        """The sum of all rows."""
        rows = self._rows.values()
        return Row("", "all", sum(row.tried for row in rows), sum(row.lost for row in rows))


def as_text(matrix: Matrix) -> list[str]:
    """The table for a terminal, at most 80 columns."""
    lines = [_line("fault", "tried", "survived", "lost")]
    for group, rows in matrix.groups.items():
        lines += ["", f"{group}:", *(_line(f"  {row.what}", *_figures(row)) for row in rows)]
    return [*lines, "", _line("all", *_figures(matrix.total)), summary(matrix)]


def as_markdown(matrix: Matrix) -> str:
    """The same table for a document."""
    lines = ["| fault | tried | survived | lost |", "|---|---:|---:|---:|"]
    for group, rows in matrix.groups.items():
        lines += [f"| **{group}** | | | |", *(_cells(row.what, *_figures(row)) for row in rows)]
    return "\n".join([*lines, _cells("**all**", *_figures(matrix.total)), "", summary(matrix)]) + "\n"


def summary(matrix: Matrix) -> str:
    """What the table comes to, in a line."""
    total = matrix.total
    untried = sum(bool(row.skipped) for rows in matrix.groups.values() for row in rows)
    skipped = f"; rows not tried in full on this machine: {untried}" if untried else ""
    return (f"LOST: {total.lost} of {total.tried}" if total.lost else f"{total.tried} tries, nothing lost") + skipped


def _figures(row: Row) -> tuple[str, str, str]:
    if not row.tried:
        return "not tried here", "", ""
    return str(row.tried), str(row.survived), str(row.lost)


def _line(what: str, *figures: str) -> str:
    room = WIDTH - 24
    shown = what if len(what) <= room else f"{what[: room - 3]}..."
    return f"{shown:<{room}}{figures[0]:>7}{figures[1]:>10}{figures[2]:>7}".rstrip()


def _cells(*cells: str) -> str:
    return "|" + "|".join(f" {cell.replace('|', '/')} " if cell else " " for cell in cells) + "|"


def group_of(path: Path, given: str | None = None) -> str:
    """The group of the rows in a file."""
    return given or path.stem.removeprefix("test_").removesuffix("_faults").replace("_", " ")

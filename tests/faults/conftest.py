"""Counts the rows of the fault matrix, and shows them as a table, also in a file that the environment names."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from faults.matrix import Matrix, as_markdown, as_text, group_of

TABLE = "CIFAR_RESNETS_FAULT_TABLE"
MATRIX = pytest.StashKey[Matrix]()
OUTCOME = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Counts a test when its three phases are over: one that cleans up badly has lost, too."""
    report = yield
    marks = [mark for mark in item.own_markers if mark.name == "faults"]
    if not marks:
        return report
    mark = marks[-1]  # a parameter's mark comes after that of its function
    matrix = item.config.stash.setdefault(MATRIX, Matrix())
    group = group_of(item.path, getattr(item.module, "GROUP", None))
    if report.skipped:
        item.stash[OUTCOME] = "skipped"
        matrix.skip(group, mark.args[0], str(report.longrepr))
    elif report.failed:
        item.stash[OUTCOME] = "failed"
    if report.when == "teardown" and (outcome := item.stash.get(OUTCOME, "passed")) != "skipped":
        matrix.add(group, *mark.args, survived=outcome == "passed")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Shows the rows that were run, and writes them to a file if one is named."""
    matrix = config.stash.get(MATRIX, None)
    if matrix is None:
        return
    terminalreporter.section("faults")
    for line in as_text(matrix):
        terminalreporter.write_line(line)
    if path := os.environ.get(TABLE):
        Path(path).write_text(as_markdown(matrix))

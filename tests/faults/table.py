"""A pytest plugin that counts the rows of the fault matrix, and shows them as a table, also in a file.

Tests may run in the processes of pytest-xdist: each report carries its row to the process that shows the table.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from faults.matrix import Matrix, as_markdown, as_text, group_of

FILE = "CIFAR_RESNETS_FAULT_TABLE"  # variable: where the table is written to


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the row of a test to its report."""
    report = yield
    marks = [mark for mark in item.own_markers if mark.name == "faults"]
    if marks:
        # a parameter's mark comes after that of its function
        report.fault = [group_of(item.path, getattr(item.module, "GROUP", None)), *marks[-1].args]
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Counts the reports."""
    config.pluginmanager.register(FaultTable())


class FaultTable:
    """Counts a test when its three phases are over: one that fails while it cleans up is lost, too."""

    def __init__(self) -> None:
        self.matrix = Matrix()
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes in the report of a phase."""
        fault = getattr(report, "fault", None)
        if fault is None:
            return
        if report.skipped:
            self.matrix.skip(*fault[:2], str(report.longrepr))
        if not report.passed:
            self._outcomes[report.nodeid] = report.outcome
        if report.when == "teardown" and (outcome := self._outcomes.get(report.nodeid)) != "skipped":
            self.matrix.add(*fault, survived=outcome is None)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Shows the rows that were run, and writes them to a file if one is named."""
        if not self.matrix.groups:
            return
        terminalreporter.section("faults")
        for line in as_text(self.matrix):
            terminalreporter.write_line(line)
        if path := os.environ.get(FILE):
            Path(path).write_text(as_markdown(self.matrix))

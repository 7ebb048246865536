"""Logs that are cut back, against what Lightning's own loggers write and TensorBoard reads."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from cifar_resnets.runs.log_files import METRICS, MetricsFile, copy_logs, event_files, go_back


def write(folder: Path, rows: list[dict[str, float]], cls: type[CSVLogger] | None = None) -> None:
    logger = cls(folder, name="", version="") if cls else MetricsFile(folder)
    for step, row in enumerate(rows):
        logger.log_metrics(row, step)
        logger.save()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / METRICS).open() as file:
        return list(csv.DictReader(file))


ROWS = [{"val": 1.0}, {"train": 2.0}, {"val": 3.0, "test": 0.5}]


def test_the_table_is_that_of_lightning(tmp_path: Path) -> None:
    write(tmp_path / "ours", ROWS)
    write(tmp_path / "theirs", ROWS, CSVLogger)
    assert (tmp_path / "ours" / METRICS).read_bytes() == (tmp_path / "theirs" / METRICS).read_bytes()


def test_lightnings_own_would_lose_what_was_written(tmp_path: Path) -> None:
    for cls, left in ((CSVLogger, 1), (None, 4)):
        folder = tmp_path / str(left)
        write(folder, ROWS, cls)
        write(folder, [{"another": 4.0}], cls)
        assert len(table(folder)) == left


def test_a_new_column_leaves_the_table_whole_if_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ROWS)
    before = (tmp_path / METRICS).read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, [{"another": 4.0}])
    assert (tmp_path / METRICS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    whole = table(tmp_path)
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[:-3])
    go_back(tmp_path, {}, {"events": {}, "rows": 3})
    assert table(tmp_path) == whole[:2]


def scalars(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("x")] if "x" in events.Tags()["scalars"] else []


def log(folder: Path, suffix: str, steps: range) -> dict[str, int]:
    with SummaryWriter(folder, filename_suffix=suffix) as writer:
        for step in steps:
            writer.add_scalar("x", step, step)
    return event_files(folder)


def test_what_came_after_a_checkpoint_is_taken_out(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    known = log(tmp_path, ".a", range(3))
    log(tmp_path, ".b", range(3, 5))
    name = next(iter(known))
    with (tmp_path / name).open("ab") as file:
        file.write(b"half a record")
    written = event_files(tmp_path)
    log(tmp_path, ".c", range(3, 4))  # of the process that resumes
    go_back(tmp_path, written, {"events": known, "rows": 2})
    assert scalars(tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [row["val"] for row in table(tmp_path)] == ["1.0", ""]


def test_nothing_is_left_where_there_was_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    log(tmp_path, ".a", range(3))
    go_back(tmp_path, event_files(tmp_path), {"events": {}, "rows": 0})
    assert list(tmp_path.iterdir()) == []


def test_a_copy_has_what_was_logged_until_then(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    write(source, ROWS)
    known = log(source, ".a", range(3))
    log(source, ".b", range(3, 5))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    copy_logs(source, target, {"events": {**known, "gone": 7}, "rows": 1})
    assert scalars(target) == [(0, 0), (1, 1), (2, 2)]
    assert len(table(target)) == 1
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_links_are_no_event_files(tmp_path: Path) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("precious")
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    name = "events.out.tfevents.1"
    (source / name).symlink_to(victim)
    assert event_files(source) == {}
    logged = {"events": {name: 0}, "rows": 0}
    go_back(source, event_files(source), logged)
    copy_logs(source, target, logged)
    assert victim.read_text() == "precious"
    assert list(target.iterdir()) == []


def test_a_link_in_the_place_of_the_table_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "other", ROWS[:1])
    theirs = (tmp_path / "other" / METRICS).read_bytes()
    (tmp_path / METRICS).symlink_to(tmp_path / "other" / METRICS)
    write(tmp_path, ROWS[:1])  # with the same columns
    assert (tmp_path / "other" / METRICS).read_bytes() == theirs
    assert len(table(tmp_path)) == 2

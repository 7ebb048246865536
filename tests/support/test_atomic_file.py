"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cifar_resnets.support.atomic_file import remove_unfinished, replacing


def test_takes_the_place_at_the_end_and_may_be_read_by_others(tmp_path: Path) -> None:
    path, other = tmp_path / "a.bin", tmp_path / "b.bin"
    path.write_bytes(b"before")
    with replacing(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
    other.touch()
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode == other.stat().st_mode  # as the user's umask has it
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_stays_if_anything_goes_wrong(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with pytest.raises(type(error)) as caught, replacing(path) as file:
        file.write(b"half")
        raise error
    assert caught.value is error
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_first_error_is_the_one_that_is_seen(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), replacing(tmp_path / "file" / "a.bin"):
        pytest.fail("there is nothing to write to")


def test_an_error_names_the_file_and_not_the_unfinished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error, replacing(tmp_path / "x") as file:
        file.write(b"1")
    assert error.value.filename == str(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_a_number_keeps_its_text(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="^7 requested and 3 written$"), replacing(tmp_path / "x"):
        raise OSError("7 requested and 3 written")  # as numpy says it


def test_unfinished_files_are_removed_and_no_others(tmp_path: Path) -> None:
    kept = ["last.ckpt", ".hidden", "events.1", "checkpoints/x.17"]
    (tmp_path / "checkpoints").mkdir()
    for name in (*kept, ".last.ckpt.4711", "checkpoints/.last.ckpt.12", ".other.12"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "last.ckpt")
    assert (tmp_path / ".other.12").is_file()
    remove_unfinished(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / f".a.{os.getpid()}").symlink_to("thesis.txt")
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "a").read_bytes() == b"new"

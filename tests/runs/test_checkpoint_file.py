"""Checkpoint files against torch, zipfile and hashlib, and how a Trainer writes and reads them."""

from __future__ import annotations

import collections
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from cifar_resnets.errors import CheckpointError, output_error
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file, write_checkpoint
from cifar_resnets.runs.checkpoint_io import AtomicCheckpointIO

CONTENT: dict[str, Any] = {
    "state_dict": collections.OrderedDict(weight=torch.arange(6.0).reshape(2, 3)),
    "step": 7,
    "nested": {"list": [1, 2.5, "three", None, True], "tuple": (1, b"2"), 3: {4, 5}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(CONTENT, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def test_it_is_read_as_it_was_written(path: Path) -> None:
    content = read_checkpoint_file(path)
    assert torch.equal(content["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert {k: v for k, v in content.items() if k != "state_dict"} == {
        k: v for k, v in CONTENT.items() if k != "state_dict"
    }


def test_every_other_reader_reads_it_too(path: Path) -> None:
    assert torch.load(path, weights_only=True)["step"] == 7
    assert torch.load(path, weights_only=True, mmap=True)["step"] == 7
    assert zipfile.ZipFile(path).testzip() is None


def test_the_checksum_is_the_archives_comment(path: Path) -> None:
    data = path.read_bytes()
    comment = zipfile.ZipFile(path).comment
    assert comment == b"sha256:" + hashlib.sha256(data[: -len(comment)]).hexdigest().encode()


def test_the_same_content_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_checkpoint(CONTENT, tmp_path / "y.ckpt")
    assert (tmp_path / "y.ckpt").read_bytes() == path.read_bytes()


def test_any_flipped_bit_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    for place in range(0, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"x\.ckpt is damaged"):
            read_checkpoint_file(path)


@pytest.mark.parametrize("size", [0, 1, 70, 71, 200, -1])
def test_a_part_of_it_is_refused(size: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="is empty" if size == 0 else "is damaged"):
        read_checkpoint_file(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        read_checkpoint_file(tmp_path / "missing.ckpt")
    with pytest.raises(CheckpointError, match="is a folder, give a file in it, such as"):
        read_checkpoint_file(tmp_path)


def test_what_could_not_be_read_without_code_is_not_written(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"callbacks\.mine\.1 is a Path|callbacks\.mine\.1 is a PosixPath"):
        write_checkpoint({"callbacks": {"mine": [1, Path("x")]}}, path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["x.ckpt"]


def test_a_file_of_torch_alone_has_no_checksum(path: Path) -> None:
    torch.save(CONTENT, path)
    with pytest.raises(CheckpointError, match="it has no checksum"):
        read_checkpoint_file(path)


def trainer(max_steps: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_steps=max_steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()],
    )  # fmt: skip


def test_a_trainer_goes_on_from_what_it_wrote(tmp_path: Path) -> None:
    first, model = trainer(2), BoringModel()
    first.fit(model)
    first.save_checkpoint(tmp_path / "a/b/x.ckpt")
    second, again = trainer(3), BoringModel()
    second.fit(again, ckpt_path=tmp_path / "a/b/x.ckpt")
    assert second.global_step == 3
    assert read_checkpoint_file(tmp_path / "a/b/x.ckpt")["global_step"] == 2


def test_nothing_is_read_otherwise_than_as_plain_values(tmp_path: Path) -> None:
    torch.save({"x": Path("x")}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=False)


def test_removing(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "x.ckpt")
    for _ in range(2):
        AtomicCheckpointIO().remove_checkpoint(tmp_path / "x.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_content_that_was_read_already_is_given_to_the_trainer_once(path: Path, tmp_path: Path) -> None:
    plugin, content = AtomicCheckpointIO(), read_checkpoint_file(path)
    plugin.preload(path, content)
    assert plugin.load_checkpoint(str(path)) is content
    assert plugin.load_checkpoint(path) is not content
    plugin.preload(path, content)
    write_checkpoint({"step": 8}, tmp_path / "other.ckpt")
    assert plugin.load_checkpoint(tmp_path / "other.ckpt") == {"step": 8}
    assert plugin.load_checkpoint(path) is not content


def test_a_file_in_the_place_of_the_folder_is_an_error_of_output(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(OSError, match="File exists") as error:
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "checkpoints" / "last.ckpt")
    assert str(output_error(error.value)) == f"{tmp_path}/checkpoints: File exists"

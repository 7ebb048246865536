"""Checkpoints as files: whole or not there, with a checksum, tensors and primitives alone.

A checkpoint is a file of `torch.save`, a zip archive; the SHA-256 of all that comes before it is the archive's comment,
which every other reader skips.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from cifar_resnets.errors import CheckpointError
from cifar_resnets.support.atomic_file import replacing

_LABEL = b"sha256:"
_MARK = len(_LABEL) + 64  # bytes
_PRIMITIVES = (type(None), bool, int, float, complex, str, bytes)


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint, which takes its place at once, when all of it has reached the disk.

    Args:
        content: tensors and primitives, in dicts, lists, tuples and sets.
        path: of the file; what is there stays if anything goes wrong.

    Raises:
        CheckpointError: when the content holds anything else, which could not be read without executing code.
        OSError: when it cannot be written.
    """
    for place, value in _leaves(content, ""):
        if not (isinstance(value, Tensor) or type(value) in _PRIMITIVES):
            raise CheckpointError(
                f"{path} cannot be written: {place} is a {type(value).__name__}, "
                "a checkpoint holds tensors and primitives alone"
            )
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # the last two bytes of an archive without a comment are its length
    archive = memoryview(buffer.getbuffer())[:-2]
    length = _MARK.to_bytes(2, "little")
    digest = hashlib.sha256(archive)
    digest.update(length)
    with replacing(path) as file:
        file.write(archive)
        file.write(length + _LABEL + digest.hexdigest().encode())


def read_checkpoint_file(path: Path) -> Any:
    """Reads what `write_checkpoint` has written, onto the CPU; never code.

    Raises:
        CheckpointError: when it is missing, damaged, or was not written by it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if problem := _problem(data):
        raise CheckpointError(f"{path} {problem}")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file of others, with a checksum of its own, makes torch raise
        raise CheckpointError(f"{path} holds Python objects, or is no checkpoint of `cifar-resnets fit`") from error


def _problem(data: bytes) -> str | None:
    """What is wrong with a file, if anything."""
    if not data:
        return "is empty"
    if data[-_MARK : -_MARK + len(_LABEL)] != _LABEL:
        return "is damaged, or was not written by `cifar-resnets fit`: it has no checksum"
    digest = hashlib.sha256(memoryview(data)[:-_MARK]).hexdigest()
    return None if data.endswith(digest.encode()) else "is damaged: its checksum does not fit"


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What a nested container holds, each with where it is."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}.{index}")
    else:
        yield place, value


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints that are whole or not there, and reads none that is damaged or holds code.

    Lightning's own moves a finished file from $TMPDIR, which copies it where that is another file system: a kill or a
    full disk then leaves half a checkpoint in the place of the previous one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            CheckpointError: when it holds anything but tensors and primitives.
            OSError: when it cannot be written; what was there stays.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, target)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint onto the CPU; never code, whatever `weights_only` says.

        Raises:
            CheckpointError: when it is missing, damaged, or something else.
        """
        content: dict[str, Any] = read_checkpoint_file(Path(path))
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


KEY = "continuation"  # in a checkpoint

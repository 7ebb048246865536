"""Checkpoint files: atomic writes, a checksum, tensors and primitives only.

A checkpoint is a file of `torch.save`, which is a zip archive. The archive's comment, which other readers skip, is the
SHA-256 of everything before it. The checksum tells damage, not who has written the file: what it holds is checked by
`support.torch_archive` before torch reads it, and by `plain_values` and `checkpoint_schema` before anything is used.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cifar_resnets.errors import CheckpointError
from cifar_resnets.models.registry import without_weights
from cifar_resnets.runs.checkpoint_schema import KEY as KEY
from cifar_resnets.runs.checkpoint_schema import problem_of
from cifar_resnets.runs.plain_values import PRIMITIVES, not_plain
from cifar_resnets.support.atomic_file import replacing
from cifar_resnets.support.former_names import current_names
from cifar_resnets.support.torch_archive import LEGACY, MAGIC, ArchiveError, check_archive, check_is_file

_LABEL = b"sha256:"
_MARK = len(_LABEL) + 64  # bytes


class Use(NamedTuple):
    """What a checkpoint is read for.

    Args:
        keys: that it must have; if there are any, all that it holds is checked, see `checkpoint_schema`.
        otherwise: the error if it does not, after its path.
    """

    keys: frozenset[str]
    otherwise: str


ANY = Use(frozenset(), "was not written by `cifar-resnets fit`")
EVALUATE = Use(frozenset({"hyper_parameters", "data", "state_dict"}), ANY.otherwise)
BRANCH = Use(frozenset({"global_step", "state_dict"}), ANY.otherwise)
RESUME = Use(
    frozenset({KEY, "loops", "callbacks", "optimizer_states", "lr_schedulers", "state_dict", "hyper_parameters"})
    | {"epoch", "global_step", "pytorch-lightning_version"},
    "holds no run that could be resumed, give a file of weights as --model.weights",
)


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint, which replaces the file at its path once it is complete on the disk.

    Args:
        content: tensors and primitives, in dicts, lists, tuples and sets.
        path: of the file; an existing one stays if anything goes wrong.

    Raises:
        CheckpointError: when the content holds anything else, which could not be read without executing code.
        OSError: when it cannot be written.
    """
    for place, value in _leaves(content, ""):
        if not (isinstance(value, Tensor) or type(value) in PRIMITIVES):
            raise CheckpointError(
                f"{path} cannot be written: {place} is a {type(value).__name__}, "
                "a checkpoint holds tensors and primitives alone"
            )
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # the last two bytes of an archive without a comment are the length of the comment
    archive = memoryview(buffer.getbuffer())[:-2]
    length = _MARK.to_bytes(2, "little")
    digest = hashlib.sha256(archive)
    digest.update(length)
    with replacing(path) as file:
        file.write(archive)
        file.write(length + _LABEL + digest.hexdigest().encode())


def read_checkpoint_file(path: Path, use: Use = ANY) -> dict[str, Any]:
    """Reads a checkpoint of `write_checkpoint` onto the CPU, without executing code; class paths are those of today.

    Args:
        path: of the file.
        use: what it is read for.

    Raises:
        CheckpointError: when it is missing, damaged, not written by `write_checkpoint`, or of no use; when it holds
            what a checkpoint of `fit` does not.
    """
    data = _read(path)
    if problem := _problem(data):
        raise CheckpointError(f"{path} {problem}")
    content = _unpack(data, path)
    if not (isinstance(content, dict) and use.keys <= content.keys()):
        raise CheckpointError(f"{path} {use.otherwise}")
    if problem := not_plain(content, len(data)) or (problem_of(content) if use.keys else None):
        raise CheckpointError(f"{path}: {problem}")
    settings = {part: current_names(content[part]) for part in ("hyper_parameters", "data", KEY) if part in content}
    if use.keys and "network_args" in (hparams := settings.get("hyper_parameters", {})):
        hparams["network_args"] = without_weights(hparams["network_args"])
    return {**content, **settings}


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, give a file in it, such as checkpoints/best.ckpt")
    try:
        check_is_file(path)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ArchiveError as error:
        raise CheckpointError(f"{path} {error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} is larger than the memory") from error


def _problem(data: bytes) -> str | None:
    """Returns what is wrong with the bytes of a file, or None."""
    if not data:
        return "is empty"
    if data[-_MARK : -_MARK + len(_LABEL)] != _LABEL:
        return _without_checksum(data)
    digest = hashlib.sha256(memoryview(data)[:-_MARK]).hexdigest()
    return None if data.endswith(digest.encode()) else "is damaged: its checksum does not fit"


def _without_checksum(data: bytes) -> str:
    """Returns what a file is that `write_checkpoint` has not written, or not to its end."""
    is_whole = data.startswith(LEGACY)
    if data.startswith(MAGIC) and _LABEL not in data[-_MARK:]:
        try:
            check_archive(io.BytesIO(data))
            is_whole = True
        except ArchiveError as error:
            return str(error)
        except Exception:  # zipfile and pickle raise many kinds
            is_whole = False
    if is_whole:
        was_written = "was written by torch.save, not by `cifar-resnets fit`: it has no checksum"
        return f"{was_written}, give its weights to `fit` as --model.weights"
    return "is damaged, or was not written by `cifar-resnets fit`: it has no checksum"


def _unpack(data: bytes, path: Path) -> Any:
    try:
        check_archive(io.BytesIO(data))
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ArchiveError as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:  # a file of another program, with a valid checksum, can make torch raise anything
        raise CheckpointError(f"{path} holds Python objects, or is no checkpoint of `cifar-resnets fit`") from error


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested containers, each with its dotted key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else str(key))
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}.{index}")
    else:
        yield place, value

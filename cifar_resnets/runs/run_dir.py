"""A folder of its own for each run."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from cifar_resnets.errors import OutputError

CHECKPOINTS = "checkpoints"  # folder below that of the run


def claim_run_dir(root: Path, name: str) -> Path:
    """Makes and returns `root/name/version_N` with the next free N, also while other processes do the same.

    Raises:
        OutputError: when the folder cannot be made.
    """
    parent = root / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = max(map(_number, run_dirs(root, name)), default=-1) + 1
        while True:
            try:
                # mkdir is atomic: whoever makes the folder owns it
                (parent / f"version_{number}").mkdir()
                return parent / f"version_{number}"
            except FileExistsError:
                number += 1
    except OSError as error:
        raise OutputError(
            f"trainer.default_root_dir: {parent} cannot be written ({error.strerror}), give another folder"
        ) from error


def run_dirs(root: Path, name: str) -> list[Path]:
    """The folders `root/name/version_N`, the newest first."""
    parent = root / name
    found = parent.iterdir() if parent.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"version_\d+", path.name)), key=_number, reverse=True)


def lock_run_dir(run_dir: Path) -> int | None:
    """Reserves a run's folder for this process, until it ends, however it does.

    Returns:
        What holds the lock, a file descriptor; None when another process has it.
    """
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system that cannot lock a folder: better without than not at all
        pass
    return descriptor


def sweep(run_dir: Path) -> None:
    """Removes the unfinished files that a process has left in its folder when it was killed."""
    for path in run_dir.rglob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("version_"))


def check_writable(folder: Path, key: str) -> None:
    """Makes a folder if need be, and writes to it.

    Args:
        folder: that is to be written to.
        key: which names it.

    Raises:
        OutputError: when it cannot be written.
    """
    trial = folder / f".trial.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"0")
        trial.unlink()
    except OSError as error:
        raise OutputError(f"{key}: {folder} cannot be written ({error.strerror}), give another folder") from error


LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


RECORD = "run.json"

"""A folder of its own for each run."""

import contextlib
import os
import re
import time
from pathlib import Path

from filelock import lock_descriptor

from cifar_resnets.errors import ConfigurationError, OutputError

RECORD = "run.json"
CHECKPOINTS = "checkpoints"  # folder below that of the run
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


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
                # mkdir is atomic: the process that makes the folder owns it
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


def lock_run_dir(run_dir: Path, seconds: float = 0.0) -> int | None:
    """Locks a run's folder until this process ends, also if it is killed.

    Args:
        run_dir: folder of the run; no file is added to it.
        seconds: to wait if another process has the lock.

    Returns:
        The file descriptor that holds the lock; None if another process has it.
    """
    descriptor, end = os.open(run_dir, os.O_RDONLY), time.monotonic() + seconds
    with contextlib.suppress(OSError):  # a file system without locks: the run goes on without one
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() >= end:
                os.close(descriptor)
                return None
            time.sleep(0.2)
    return descriptor


def claim_checkpoints(folder: Path, key: str) -> None:
    """Keeps a folder that the user gave for a new run's checkpoints from all other runs, until this process ends.

    Args:
        folder: of the checkpoints; made if it does not exist and can be made.
        key: of the command line that sets the folder, for the error.

    Raises:
        ConfigurationError: when it holds checkpoints, or another run that goes on writes to it.
    """
    with contextlib.suppress(OSError):  # what cannot be written is reported before the first step
        folder.mkdir(parents=True, exist_ok=True)
    problem = next((f"it holds {path.name} of another run" for path in sorted(folder.glob("*.ckpt"))), None)
    if problem is None and folder.is_dir() and lock_run_dir(folder) is None:
        problem = "another run is writing to it"
    if problem is not None:
        raise ConfigurationError(f"{key}: {folder} is not allowed, {problem}: give another folder, or leave it out")


def _number(path: Path) -> int:
    return int(path.name.removeprefix("version_"))


def check_writable(folder: Path, key: str) -> None:
    """Makes a folder if it does not exist, and tries to write a file in it.

    Args:
        folder: to be tried.
        key: of the command line that sets the folder, for the error.

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

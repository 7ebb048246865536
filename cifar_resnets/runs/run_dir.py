"""A folder of its own for each run."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from cifar_resnets.errors import ConfigurationError, OutputError
from cifar_resnets.results.json_files import read_json

RECORD = "run.json"
STARTED = (RECORD, "config.yaml", "hparams.yaml")  # files that are written before the first step
EVENTS = "events.out.tfevents."
CHECKPOINTS = "checkpoints"  # folder below that of the run
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def claim_run_dir(root: Path, name: str, key: str = "trainer.default_root_dir") -> Path:
    """Makes and returns `root/name/version_N` with the next free N, also while other processes do the same.

    Args:
        root: folder of all runs.
        name: of the run.
        key: that sets another folder, for the error.

    Raises:
        OutputError: when the folder cannot be made.
    """
    parent = root / name
    try:
        number = max(map(_number, run_dirs(root, name)), default=-1) + 1
        while True:
            parent.mkdir(parents=True, exist_ok=True)
            try:
                # mkdir is atomic: the process that makes the folder owns it
                (parent / f"version_{number}").mkdir()
                return parent / f"version_{number}"
            except FileExistsError:
                number += 1
            except FileNotFoundError:  # another process has removed an empty folder, see `remove_unused`
                continue
    except OSError as error:
        raise OutputError(f"{key}: {parent} cannot be written ({error.strerror}), give another folder") from error


def missing_folders(folder: Path) -> list[Path]:
    """Returns the folders that would have to be made for a path, the innermost first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_unused(run_dir: Path, parents: Sequence[Path], at_start: Collection[Path] = ()) -> None:
    """Removes the folder of a run that has come to nothing, so that it takes no number from the next one.

    It stays if anything has been written but the record of how the run was started.

    Args:
        run_dir: a folder that this process has made.
        parents: folders above it that this process has made, the innermost first; they are removed if they are empty.
        at_start: files that were copied into the folder at the start.
    """
    files = {path for path in run_dir.rglob("*") if path.is_file()} - set(at_start)
    if all(path.name in STARTED or path.name.startswith(EVENTS) for path in files):
        shutil.rmtree(run_dir, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run has been written there meanwhile
            for folder in parents:
                folder.rmdir()


def name_of_run(checkpoint: Path, state: object) -> str | None:
    """Returns the name of the run that a checkpoint is of; None if it is not known.

    Args:
        checkpoint: its path, which is below the run's folder unless it was moved.
        state: what `Continuation` has added to it, where the folder was then; may be anything.
    """
    found = checkpoint.absolute().parent
    recorded = state.get("run_dir") if isinstance(state, Mapping) else None
    folders = [*([found.parent] if found.name == CHECKPOINTS else []), Path(str(recorded))]
    names = [each.parent.name for each in folders if re.fullmatch(r"version_\d+", each.name)]
    return next((name for name in names if name not in ("", "..") and name.isprintable()), None)


def remove_links(run_dir: Path) -> None:
    """Removes links in the place of files that Lightning writes: they may lead out of a folder of a stranger's run.

    The project's own files replace a link, see `support.atomic_file`.
    """
    for path in [run_dir / "hparams.yaml", *run_dir.glob("*-profile*")]:
        if path.is_symlink():
            path.unlink()


def run_dirs(root: Path, name: str) -> list[Path]:
    """The folders `root/name/version_N`, the newest first."""
    parent = root / name
    found = parent.iterdir() if parent.is_dir() else []
    runs = [path for path in found if re.fullmatch(r"version_\d+", path.name) and path.is_dir()]  # no pipes
    return sorted(runs, key=_number, reverse=True)


def read_start(run_dir: Path) -> dict[str, Any]:
    """Reads `run.json`, which says how a run was started; empty if it is missing, damaged or something else."""
    try:
        content = read_json(run_dir / RECORD)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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
        trial.unlink(missing_ok=True)
        with trial.open("xb") as file:  # not through a link
            file.write(b"0")
        trial.unlink()
    except OSError as error:
        raise OutputError(f"{key}: {folder} cannot be written ({error.strerror}), give another folder") from error

"""Atomic writing of files."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces the one at a path at the end of the block: no process ever reads half of it.

    A link at the path is replaced, not followed: the folder may come from a stranger.

    Args:
        path: of the file; an existing one stays if anything goes wrong.

    Raises:
        OSError: when it cannot be written.
    """
    # in the same folder, because os.replace is atomic there; not by tempfile, whose files other users cannot read
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            unfinished.unlink(missing_ok=True)  # it may be a link
            with unfinished.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the first error is raised
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file that a block writes in its errors: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # otherwise the block has raised an error with a text of its own
            error.filename = str(path)
        raise


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Removes the unfinished files that killed processes have left in a folder and below it.

    Args:
        folder: to which no other process may be writing files of that name.
        name: of the files; all of them if not given.
    """
    for path in folder.rglob(f".{name}.*"):
        if path.name.rpartition(".")[2].isdecimal() and path.is_file():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a changed name survive a power failure, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

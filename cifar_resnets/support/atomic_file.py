"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes a place at once at the end of the block, so that nobody ever reads half of it.

    Args:
        path: the place; what is there stays if anything goes wrong.

    Raises:
        OSError: when it cannot be written.
    """
    # in the same folder, so that it can take the place at once; not by tempfile, whose files nobody else may read
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None:  # without a number the text of the error is what its caller made it
            error.filename = str(path)  # a full disk tells of no file, and the unfinished one tells the user nothing
        raise
    finally:
        with contextlib.suppress(OSError):  # the first error counts
            unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a change of names last through a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Errors that a user can cause, each class with the exit status of the command line.

A message is one line: what is wrong, where (file, key, value), and the remedy.
"""

import errno
import os


class UserError(ValueError):
    """Base class of errors that a user can cause and mend."""

    exit_status = 2


class ConfigurationError(UserError):
    """An argument, a key or a value that does not make sense."""


class DataError(UserError):
    """Images or labels that are missing, damaged or contradictory."""

    exit_status = 3


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another network."""

    exit_status = 4


class DivergenceError(UserError):
    """A loss that is no longer finite."""

    exit_status = 5


class SearchError(UserError):
    """A learning-rate search without a result."""

    exit_status = 5


class OutputError(UserError):
    """A folder that cannot be written, or a disk that is full."""

    exit_status = 6


class ResourceError(UserError):
    """Memory that is exhausted."""

    exit_status = 6


def require(section: str, condition: bool, name: str, value: object, allowed: str) -> None:
    """Checks a value of a recipe.

    Args:
        section: section of the recipe, for example `model`.
        condition: whether the value is allowed.
        name: name of the key.
        value: value of the key.
        allowed: description of the allowed values.

    Raises:
        ConfigurationError: if the condition is false.
    """
    if not condition:
        raise ConfigurationError(f"{section}.{name}: {value} is not allowed, give {allowed}")


def local_path(key: str, path: str | os.PathLike[str]) -> str:
    """Returns a path with the home folder for a leading `~`.

    Raises:
        ConfigurationError: for an address such as `s3://bucket`, which would become a local folder called `s3:`.
    """
    scheme, is_address, _ = (text := os.fspath(path)).partition(":/")  # pathlib makes one slash of two
    is_name = len(scheme) > 1 and scheme[0].isalpha() and all(each.isalnum() or each in "+-._" for each in scheme)
    if is_address and is_name:
        raise ConfigurationError(f"{key}: {text} is an address, give a path on this machine, or mount it")
    return os.path.expanduser(text)


CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT}
CANNOT_WRITE |= {errno.EISDIR, errno.ENOTDIR, errno.EFBIG, errno.ESTALE, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE}
CANNOT_WRITE |= {errno.EEXIST}  # a file in the place of a folder
# messages of PyTorch, of the dynamic linker and of Python, in lower case
EXHAUSTED = {"out of memory", "t allocate memory", "not enough memory", "bad_alloc", "failed to map segment"}
EXHAUSTED |= {"can't start new thread"}


def output_error(error: OSError) -> OutputError | None:
    """Converts an error of writing a file; returns None for an error of another kind."""
    if error.errno not in CANNOT_WRITE:
        return None
    return OutputError(f"{os.fsdecode(error.filename or 'output')}: {error.strerror}")


def memory_error(error: BaseException) -> ResourceError | None:
    """Converts an error of exhausted memory; returns None for an error of another kind."""
    is_of_system = isinstance(error, (RuntimeError, ImportError, OSError))
    if not (isinstance(error, MemoryError) or is_of_system and any(each in str(error).lower() for each in EXHAUSTED)):
        return None
    what = one_line(error)[:120]
    return ResourceError(f"memory is exhausted ({what}): give a smaller batch, network or number of images")


def one_line(error: BaseException) -> str:
    """Returns the message of an error on one line, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__

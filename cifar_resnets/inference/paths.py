"""Finds the image files that a command line names: files, folders, patterns, and lists of them."""

import codecs
import glob
import os
from collections.abc import Iterable
from typing import NamedTuple

from cifar_resnets.data.image_files import find_images


class Found(NamedTuple):
    """A path as it was given, or below a folder that was given; and why there is no image, or an empty text."""

    path: str
    problem: str = ""


def find(names: Iterable[str]) -> list[Found]:
    """Finds the images of each name, in the order given; a name that stands for none is returned with the reason.

    A folder stands for the image files in it at any depth, in the order in which a test on it reads them, and for the
    folders in it that cannot be read, after them. A name with
    `*`, `?` or `[` that is no file itself stands for the files and folders that match it; `**` for any folders.
    """
    return [found for name in names for found in _of_name(name)]


def _of_name(name: str) -> list[Found]:
    if os.path.isdir(name):
        return _of_folder(name)
    if glob.has_magic(name) and not os.path.lexists(name):
        matches = sorted(glob.glob(name, recursive=True))
        if "**" in name:  # matches the folders and what is in them
            matches = [each for each in matches if not os.path.isdir(each)]
        return [found for each in matches for found in _of_name(each)] or [Found(name, "no file matches it")]
    return [Found(name)]


def _of_folder(folder: str) -> list[Found]:
    unreadable: list[Found] = []
    names = find_images(folder, lambda error: unreadable.append(Found(str(error.filename), str(error.strerror))))
    found = [*(Found(os.path.join(folder, name)) for name in names), *unreadable]
    return found or [Found(folder, "there is no image file in it")]


def names_in(content: bytes) -> list[str]:
    """Returns the names in a list: a line each, or ended by zero bytes, as `find -print0` writes them.

    Bytes that are no UTF-8 are kept, as in all file names of Python. Empty lines are left out.
    """
    content = content.removeprefix(codecs.BOM_UTF8)  # which editors of Windows write
    separator = b"\0" if b"\0" in content else b"\n"
    lines = content.split(separator)
    if separator == b"\n":
        lines = [line.removesuffix(b"\r") for line in lines]
    return [os.fsdecode(line) for line in lines if line]

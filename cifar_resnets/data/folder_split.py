"""Splits one folder of classes into training and test images: by a hash of each file's name, or as a file says."""

import csv
import hashlib
import io
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_resnets.data.datamodule import Split
from cifar_resnets.data.image_files import Files
from cifar_resnets.errors import DataError
from cifar_resnets.support.atomic_file import replacing
from cifar_resnets.support.text import csv_line, printable

Sides = dict[str, Split]  # of each file, by its path below the root

HEADER = ["path", "split"]
# of equal images that the file of splits puts on several sides, none may be tested that is trained on
_SAFEST: tuple[Split, ...] = ("train", "val", "test")


@dataclass(eq=False)
class _Image:
    """Files of equal content, which stay together: their place from 0 to 1, and what is said of them so far."""

    place: float
    side: Split
    may_move: bool


def place(path: str) -> float:
    """Returns a number from 0 to below 1 that depends on a file's name alone, that is on its path below the class.

    An image that is moved to another class keeps its number, and so does one whose name a Mac has decomposed.
    """
    name = unicodedata.normalize("NFC", path.partition("/")[2])
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6]) / 2**48


def split_by_name(
    files: Files, equal: Sequence[Sequence[str]], fraction: float, listed: Mapping[str, Split] | None = None
) -> Sides:
    """Splits images by a hash of their names, in each class alike.

    A file is tested on if its `place` is below the fraction. It stays on its side when others are added or removed;
    so a class has about its share of test images, not exactly. Of equal images the largest place counts: one that was
    trained on is not tested because it was copied. At least one image of a class is tested if two are left to train
    on, and two are trained on if there are two.

    Args:
        files: of each class.
        equal: groups of paths of files of equal content.
        fraction: of the images that are tested, from 0 to below 1.
        listed: the split of files that do not depend on their names.

    Returns:
        The split of each file.
    """
    listed = listed or {}
    groups = {path: tuple(group) for group in equal for path in group}
    images: dict[tuple[str, ...], _Image] = {}
    of_path: dict[str, _Image] = {}
    for of_class in files.values():
        of_this = {groups.get(path, (path,)) for path, *_ in of_class}
        for group in sorted(of_this - images.keys()):
            images[group] = _image(group, fraction, listed)
            of_path |= dict.fromkeys(group, images[group])
        if fraction:
            _keep_both_sides([images[group] for group in of_this])
    return {path: listed.get(path, image.side) for path, image in of_path.items()}


def _image(group: Sequence[str], fraction: float, listed: Mapping[str, Split]) -> _Image:
    """Builds what is known of an image; one in several classes does not move for the sake of one of them."""
    largest, known = max(map(place, group)), [listed[path] for path in group if path in listed]
    by_name: Split = "test" if largest < fraction else "train"
    in_one_class = len({path.partition("/")[0] for path in group}) == 1
    return _Image(largest, min(known, key=_SAFEST.index) if known else by_name, in_one_class and not known)


def _keep_both_sides(images: Sequence[_Image]) -> None:
    """Moves images of a class to a side that lacks some: that with the smallest place to test, the largest back."""
    ordered = sorted(images, key=lambda image: image.place)
    if len(images) > 2 and not any(image.side == "test" for image in images):
        for image in [each for each in ordered if each.may_move][:1]:
            image.side = "test"
    missing = 2 - sum(image.side == "train" for image in images)
    for image in [each for each in reversed(ordered) if each.may_move and each.side == "test"][: max(missing, 0)]:
        image.side = "train"


# The file of splits.


def read_split_file(file: Path, root: Path, known: Collection[str]) -> Sides:
    """Reads a CSV file with the columns path (below the root) and split (train, val or test).

    Args:
        file: to read.
        root: folder of the images, for messages.
        known: paths of all images.

    Raises:
        DataError: for the first line that is not such a row, or names no image, or one that an earlier line names.
    """
    seen: dict[str, int] = {}
    sides: Sides = {}
    for number, row in _rows(file):
        if problem := _problem(row, root, known, seen):
            raise DataError(f"data.split_file: {file}, line {number}: {problem}")
        path, side = row
        seen[path] = number
        sides[path] = side  # type: ignore[assignment]  # `_problem` has checked it
    return sides


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows below the header with their line numbers."""
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        header = next(reader, [])
        if header != HEADER:
            what = printable(",".join(header))[:80] or "nothing"
            remedy = "save it as CSV in UTF-8, with a comma between the cells"
            raise DataError(f"data.split_file: {file}, line 1: the header is {what}, not {','.join(HEADER)}: {remedy}")
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"data.split_file: {file}, line {reader.line_num}: {error}") from error


def _text(file: Path) -> str:
    if not file.is_file():  # a device or a pipe would have no end
        what = "is no file" if file.exists() else "is missing: give --data.test_fraction 0.2, with which fit writes it"
        raise DataError(f"data.split_file: {file} {what}")
    try:
        return file.read_bytes().decode("utf-8-sig", "surrogateescape")  # spreadsheets write a byte order mark
    except OSError as error:
        raise DataError(f"data.split_file: {file} cannot be read: {error.strerror}") from error


def _problem(row: Sequence[str], root: Path, known: Collection[str], seen: Mapping[str, int]) -> str | None:
    if len(row) != len(HEADER):
        return f"it has {len(row)} cells ({printable(','.join(row))[:80]}), not {','.join(HEADER)}"
    path, side = row
    if side not in _SAFEST:
        return f"{side!r} is no split, give train, val or test"
    if path in seen:
        return f"{path!r} is in line {seen[path]} already, remove one of them"
    if path not in known:
        return f"{path!r} is no image below {root}, remove the line or bring the file back"
    return None


def add_to_split_file(file: Path, sides: Mapping[str, Split]) -> None:
    """Appends rows to a file of splits, or writes a new one; what it has stays as it is.

    Raises:
        OSError: when it cannot be written.
    """
    before = _text(file) if file.exists() else ""
    end = "\r\n" if "\r\n" in before else "\n"
    head = csv_line(HEADER, end) if not before else "" if before.endswith("\n") else end  # ends the last line
    text = head + "".join(csv_line(row, end) for row in sides.items())
    with replacing(file) as target:
        target.write((file.read_bytes() if before else b"") + text.encode("utf-8", "surrogateescape"))

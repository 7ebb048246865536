"""Finds image files of equal content, within and between training, validation and test images."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.data.image_cache import Cache, cache_folder, fingerprint
from cifar_resnets.data.image_files import Files, ImageFile

_DIGEST = 16  # bytes
_THREADS = 8
ORDER = ("train", "val", "test")


def equal_files(root: Path, files: Sequence[ImageFile]) -> list[list[str]]:
    """Returns the groups of two or more paths whose files are equal, byte by byte, in the order of the paths.

    Only files of equal size are read; what was read is kept beside the decoded images.

    Args:
        root: folder that the paths start from.
        files: with the paths below the root.
    """
    sizes = Counter(file.size for file in files)
    alike = sorted(file for file in files if sizes[file.size] > 1)
    if not alike:
        return []
    cache = Cache(cache_folder(root) / "contents", fingerprint({"": alike}, 0, ""), (len(alike), _DIGEST))
    digests = cache.read()
    if digests is None:
        digests = _digests(root, alike)
        cache.keep(digests)
    groups: dict[tuple[int, bytes], list[str]] = defaultdict(list)
    for file, digest in zip(alike, digests, strict=True):
        if digest.any():
            groups[file.size, digest.tobytes()].append(file.path)
    return [group for group in groups.values() if len(group) > 1]


def _digests(root: Path, files: Sequence[ImageFile]) -> NDArray[np.uint8]:
    """Returns a digest of each file's content (n, 16); zeros of one that cannot be read, which decoding will report."""

    def digest(file: ImageFile) -> bytes:
        try:
            return hashlib.sha256((root / file.path).read_bytes()).digest()[:_DIGEST]
        except OSError:
            return bytes(_DIGEST)

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.frombuffer(b"".join(pool.map(digest, files)), np.uint8).reshape(-1, _DIGEST)


def describe_groups(groups: Sequence[Sequence[str]]) -> str | None:
    """Returns what is said of equal files in class folders that stay on one side; None if there are none."""
    if not groups:
        return None
    files = sum(map(len, groups))
    text = f"{files:,} files are byte-equal to others, with which they stay on one side of the split: {_first(groups)}"
    by_class = ({path.partition("/")[0]: path for path in reversed(group)} for group in groups)
    if contradictory := [[*group.values()] for group in by_class if len(group) > 1]:
        text += f"; {len(contradictory):,} images are in several classes: {_first(contradictory)}"
    return text


def describe_crossing(groups: Sequence[Sequence[str]], side_of: Mapping[str, str]) -> str | None:
    """Returns what is said of images that are in two of training, validation and test images; None if none is."""
    crossing = [group for group in groups if len({side_of[path] for path in group}) > 1]
    if not crossing:
        return None
    kinds = Counter(tuple(sorted({side_of[path] for path in group}, key=ORDER.index)) for group in crossing)
    where = ", ".join(f"{number:,} in {' and '.join(kind)}" for kind, number in kinds.items())
    pairs = [[*{side_of[path]: path for path in reversed(group)}.values()] for group in crossing]
    what = f"byte-equal images are on several sides, {where}: {_first(pairs)}"
    return f"{what}; remove one of each, or the accuracy is too high"


def _first(groups: Sequence[Sequence[str]]) -> str:
    """Returns the first two paths of the first group, and whether there are more."""
    return " = ".join(map(repr, groups[0][:2])) + (", ..." if len(groups) > 1 or len(groups[0]) > 2 else "")


def crossing_folders(root: Path, found: Mapping[str, Files]) -> str | None:
    """Returns what `describe_crossing` says of the folders of splits, each with its files; nothing of one alone."""
    if len(found) < 2:
        return None
    side_of = {f"{side}/{file.path}": side for side, files in found.items() for each in files.values() for file in each}
    paths = iter(side_of)
    renamed = [file._replace(path=next(paths)) for files in found.values() for each in files.values() for file in each]
    return describe_crossing(equal_files(root, renamed), side_of)

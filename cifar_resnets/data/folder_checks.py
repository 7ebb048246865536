"""What may be missing, left out or too large in folders of images: checks before any image is decoded."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cifar_resnets.data.image_files import Files, class_folders, subfolders
from cifar_resnets.errors import ConfigurationError, DataError
from cifar_resnets.support.memory import available_bytes

_LARGE = 2**28  # bytes, from which on it is said what the images take


def check_same_classes(root: Path, classes: Sequence[str] | None) -> None:
    """Raises DataError if `train` and `test` both have classes that the other lacks: likely one with two names."""
    train, test = (set(class_folders(root / split)) for split in ("train", "test"))
    chosen = set(classes or train | test)
    # `check_empty` and `describe_folders` report one that only one folder has
    if (train - test) & chosen and (test - train) & chosen:
        alone = sorted((train ^ test) & chosen)
        where = ", ".join(f"{'train' if name in train else 'test'}/{name!r}" for name in alone)
        raise DataError(f"{root}: train and test differ in their class folders, only there: {where}")


def check_empty(root: Path, folder: str, class_names: Sequence[str], files: Files, others: Counter[str]) -> str | None:
    """Returns what is said of classes without images in a folder; None if there are none.

    Args:
        root: of the images.
        folder: `train`, `test` or `val`, or an empty text for one folder of classes.
        class_names: that are used.
        files: of each class.
        others: what else is there.

    Raises:
        DataError: when the run cannot do without them.
    """
    names = [name for name in class_names if not files[name]]
    if not names:
        return None
    where = ", ".join(f"{folder}/{name!r}" if folder else repr(name) for name in names)
    is_missing = folder == "test" and not any((root / folder / name).is_dir() for name in names)
    if (folder == "val" or is_missing) and len(names) < len(class_names):
        return f"no {'validation' if folder == 'val' else 'test'} images of {where}"
    there_is = f"; there are other files: {listed(others)}" if others else ""
    raise DataError(f"{root}: no images in the class folders {where}; add some or remove them{there_is}")


def describe_folders(root: Path, used: Sequence[str], known: Sequence[str], class_names: Sequence[str]) -> str | None:
    """Returns which folders are not used; None if all are.

    Args:
        root: of the images.
        used: folders of classes in it; an empty text for the root itself.
        known: other folders in it that nothing has to be said of.
        class_names: that are used.
    """
    folders = [] if "" in used else [name for name in subfolders(root) if name not in (*used, *known)]
    for folder in used:
        within = (name for name in subfolders(root / folder) if name not in class_names)
        folders += [f"{folder}/{name}" if folder else name for name in within]
    if not folders:
        return None
    first = ", ".join(map(repr, folders[:10])) + (", ..." if len(folders) > 10 else "")
    return f"{len(folders):,} folders are not used: {first}"


def listed(others: Counter[str]) -> str:
    """Returns how many files of each kind there are."""
    return ", ".join(f"{number:,} {kind}" for kind, number in others.most_common(10))


def check_memory(numbers: Mapping[tuple[str, int], int], num_ranks: int = 1) -> str | None:
    """Compares what images take with the memory that there is, before it is taken.

    Linux allocates more memory than there is, and kills the process without a message when it is used.

    Args:
        numbers: of images, for each folder and side of the squares in pixels.
        num_ranks: processes on this machine, each of which holds all images.

    Returns:
        What is said of them; None if they are small.

    Raises:
        ConfigurationError: when they do not fit.
    """
    sizes = {key: number * key[1] ** 2 * 3 for key, number in numbers.items()}
    # the images of a folder are there twice while those that are used are selected
    needed = max(2 * max(sizes.values()), sum(sizes.values())) * num_ranks
    _, side = largest = max(sizes, key=sizes.__getitem__)
    ranks = f" in each of {num_ranks} processes" if num_ranks > 1 else ""
    take = f"{numbers[largest]:,} images of {side}x{side} pixels take {sizes[largest] / 1e9:,.1f} GB{ranks}"
    text = f"{take}, {needed / 1e9:,.1f} GB while they are loaded"
    if needed > (there_is := available_bytes()):
        raise ConfigurationError(f"data.image_size: {text}, {there_is / 1e9:,.1f} GB are free; give a smaller size")
    return text if needed > _LARGE else None

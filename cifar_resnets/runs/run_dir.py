"""A folder of its own for each run."""

from __future__ import annotations

import re
from pathlib import Path

from cifar_resnets.errors import OutputError


def claim_run_dir(root: Path, name: str) -> Path:
    """Makes and returns `root/name/version_N` with the next free N, also while other processes do the same.

    Raises:
        OutputError: when the folder cannot be made.
    """
    parent = root / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = _next_number(parent)
        while True:
            try:
                # mkdir is atomic: whoever makes the folder owns it
                (parent / f"version_{number}").mkdir()
                return parent / f"version_{number}"
            except FileExistsError:
                number += 1
    except OSError as error:
        raise OutputError(
            f"trainer.default_root_dir: {parent} cannot be written ({error.strerror}), give another folder"
        ) from error


def _next_number(parent: Path) -> int:
    numbers = [int(match[1]) for path in parent.iterdir() if (match := re.fullmatch(r"version_(\d+)", path.name))]
    return max(numbers, default=-1) + 1

"""How the Trainer writes and reads checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from cifar_resnets.checkpoint_file import read_checkpoint_file, write_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints that are whole or not there, and reads none that is damaged or holds code.

    Lightning's own moves a finished file from $TMPDIR, which copies it where that is another file system: a kill or a
    full disk then leaves half a checkpoint in the place of the previous one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            CheckpointError: when it holds anything but tensors and primitives.
            OSError: when it cannot be written; what was there stays.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, target)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint onto the CPU; never code, whatever `weights_only` says.

        Raises:
            CheckpointError: when it is missing, damaged, or something else.
        """
        content: dict[str, Any] = read_checkpoint_file(Path(path))
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)

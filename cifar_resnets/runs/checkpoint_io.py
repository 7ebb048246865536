"""Lightning's plugin for checkpoint files, which `checkpoint_file` reads and writes."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from cifar_resnets.runs.checkpoint_file import KEY as KEY
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file, write_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically, and reads none that is damaged or holds code.

    Lightning's own plugin moves a finished file from $TMPDIR. Where that is another file system, the file is copied,
    and a kill or a full disk replaces the previous checkpoint by half of the new one.
    """

    def __init__(self) -> None:
        self._preloaded: tuple[Path, dict[str, Any]] | None = None

    def preload(self, path: Path, content: dict[str, Any]) -> None:
        """Takes the content of a file that was read already; the next `load_checkpoint` of this file returns it."""
        self._preloaded = path, content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            CheckpointError: when it holds anything but tensors and primitives.
            OSError: when it cannot be written; an existing file stays.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, target)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint onto the CPU, without executing code even if `weights_only` is False.

        Raises:
            CheckpointError: when it is missing, damaged, or something else.
        """
        preloaded, self._preloaded = self._preloaded, None  # not kept: it may be as large as the network
        if preloaded is not None and preloaded[0] == Path(path):
            return preloaded[1]
        return read_checkpoint_file(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint if it exists."""
        Path(path).unlink(missing_ok=True)

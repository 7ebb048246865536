"""What the rows about runs share: a run that is long enough to be hit, and whether it ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path

from exactness import differences
from processes import Process, run
from support import PLAIN, Result

TINY_RUN = "logs/tiny/version_0"


def write_recipe(folder: Path, epochs: int = 1, text: str = PLAIN) -> list[str]:
    """Writes a recipe into a folder; returns the command line that fits it."""
    (folder / "tiny.yaml").write_text(text.replace("max_epochs: 1", f"max_epochs: {epochs}"))
    return ["fit", "-c", "tiny.yaml"]


def uninterrupted(folder: Path, *args: str, text: str = PLAIN, epochs: int = 1) -> Path:
    """A run that nothing happens to; returns its folder."""
    folder.mkdir()
    result = run(*write_recipe(folder, epochs, text), *args, cwd=folder)
    assert (result.status, result.err) == (0, ""), result
    return next((folder / "logs").glob("*/version_0"))


def started(folder: Path, *args: str, epochs: int = 1000, text: str = PLAIN) -> Process:
    """A run that has written its first checkpoints."""
    process = Process(*write_recipe(folder, epochs, text), *args, cwd=folder)
    process.wait_for(lambda: (folder / TINY_RUN / "checkpoints/previous.ckpt").is_file())
    return process


def resumed(folder: Path, *args: str, how: str = "last") -> Result:
    """Goes on with the run in a folder."""
    return run("fit", "-c", "tiny.yaml", *args, "--ckpt_path", how, cwd=folder)


def is_as_if_uninterrupted(folder: Path, reference: Path) -> None:
    """Asserts that the only run in a folder has left what the uninterrupted one has."""
    runs = list((folder / "logs").glob("*/version_*"))
    assert [path.name for path in runs] == ["version_0"]
    assert differences(reference, runs[0]) == []

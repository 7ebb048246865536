"""Full disks, closed folders, and losses that are not finite."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from exactness import die_when
from faults.injections import fill, poison_the_images
from faults.matrix import fault, files_in, leaves_nothing, one_line
from faults.runs import TINY_RUN, is_as_if_uninterrupted, resumed, uninterrupted, write_recipe
from processes import run

from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file

pytestmark = pytest.mark.process

SAVES = ["--last_checkpoint.every_n_steps", "1"]
NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED ON A FULL DISK: only root can mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("left", [0, 8192], ids=["nothing left", "two pages left"])
@fault("disk full during a save: status 6, the checkpoint before still loads")
def test_full_during_a_save(left: int, small_disk: Path, tmp_path: Path) -> None:
    args = [*write_recipe(tmp_path, 2), *SAVES, "--trainer.default_root_dir", "disk/logs"]
    full = functools.partial(
        die_when, LastCheckpoint, "on_train_batch_end", 1, functools.partial(fill, small_disk, left)
    )
    one_line(run(*args, cwd=tmp_path, before=full), 6, "No space left on device", "last.ckpt")
    checkpoints = small_disk / TINY_RUN / "checkpoints"
    assert read_checkpoint_file(checkpoints / "last.ckpt")["global_step"] == 1
    assert {path.name for path in checkpoints.iterdir()} <= {"last.ckpt", "previous.ckpt"}
    (small_disk / "filling").unlink()
    assert run(*args, "--ckpt_path", "last", cwd=tmp_path).status == 0


@fault("disk full during logging: status 6, the checkpoint still loads")
def test_full_during_logging(small_disk: Path, tmp_path: Path) -> None:
    args = [*write_recipe(tmp_path, 3), *SAVES, "--trainer.default_root_dir", "disk/logs"]
    args += [f"--{name}.dirpath=checkpoints" for name in ("checkpoint", "last_checkpoint")]
    full = functools.partial(
        die_when, ImageClassifier, "on_validation_start", 3, functools.partial(fill, small_disk, 0)
    )
    one_line(run(*args, cwd=tmp_path, before=full), 6, "No space left on device")
    assert read_checkpoint_file(tmp_path / "checkpoints/last.ckpt")["global_step"] >= 5


@pytest.fixture
def others_folder(tmp_path: Path) -> Path:
    """A folder of another user's, in which this one can only work in `own`."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and str(folder) != "/":
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "own").mkdir()
    (tmp_path / "closed").mkdir()
    write_recipe(tmp_path / "own")
    if os.geteuid() == 0:
        os.chown(tmp_path / "own", NOBODY, NOBODY)
    (tmp_path / "closed").chmod(0o555)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (["--trainer.default_root_dir", "../closed/logs"], "trainer.default_root_dir"),
        (["--trainer.default_root_dir", "../closed"], "trainer.default_root_dir"),
        (["--checkpoint.dirpath", "../closed"], "checkpoints"),
        (["--last_checkpoint.dirpath", "../closed/deeper"], "checkpoints"),
    ],
)
@fault("unwritable checkpoint or log folder, as another user: before the first step")
def test_a_closed_folder(args: list[str], key: str, others_folder: Path) -> None:
    own = others_folder / "own"
    before = files_in(others_folder)
    uid = NOBODY if os.geteuid() == 0 else None
    env = {"HOME": str(own), "CIFAR_RESNETS_CACHE": str(own), "MPLCONFIGDIR": str(own)}
    result = run("fit", "-c", "tiny.yaml", *args, cwd=own, uid=uid, env=env)
    one_line(result, 6, "closed", key)
    assert "epoch" not in result.out
    leaves_nothing(others_folder, before, run="own/logs/tiny/version_0")


@fault("NaN loss: no update from it, status 5, step, rate and last good checkpoint")
def test_a_loss_that_is_nan(tmp_path: Path) -> None:
    args = write_recipe(tmp_path, 3)
    poison = functools.partial(poison_the_images, 8)
    result = run(*args, *SAVES, cwd=tmp_path, before=poison)
    one_line(result, 5, "step 8, epoch 2", "learning rate of 0.0", f"{TINY_RUN}/checkpoints/last.ckpt")
    assert read_checkpoint_file(tmp_path / TINY_RUN / "checkpoints/last.ckpt")["global_step"] == 7
    assert resumed(tmp_path, *SAVES).status == 0
    is_as_if_uninterrupted(tmp_path, uninterrupted(tmp_path / "reference", *SAVES, epochs=3))


@fault("NaN loss: skipped with on_nonfinite skip, up to N in a row")
def test_a_loss_that_is_nan_is_skipped(tmp_path: Path) -> None:
    args = write_recipe(tmp_path, 3)
    skip = ["--on_nonfinite", "skip", "--max_skipped_steps", "2"]
    result = run(*args, *skip, cwd=tmp_path, before=functools.partial(poison_the_images, 8, 2))
    assert (result.status, result.err) == (0, "")
    assert [line for line in result.out.splitlines() if line.startswith("skipped")] == [
        f"skipped step {step}: its loss or gradients are infinite or NaN" for step in (8, 9)
    ]
    assert "nan" not in result.out
    result = run(*args, *skip, cwd=tmp_path, before=functools.partial(poison_the_images, 8, 3))
    one_line(result, 5, "3 times in a row", "step 10")


@fault("a limit on the size of files: status 6, the checkpoint before still loads")
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    args = [*write_recipe(tmp_path, 2), *SAVES]
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4096, 4096))
    limited = functools.partial(die_when, LastCheckpoint, "on_train_batch_end", 1, limit)
    one_line(run(*args, cwd=tmp_path, before=limited), 6, "File too large")
    assert read_checkpoint_file(tmp_path / TINY_RUN / "checkpoints/last.ckpt")["global_step"] == 1
    assert run(*args, "--ckpt_path", "last", cwd=tmp_path).status == 0


@fault("the run's folder is removed while it trains")
def test_the_folder_is_gone(tmp_path: Path) -> None:
    args = write_recipe(tmp_path, 3)
    gone = functools.partial(os.rename, tmp_path / "logs/tiny", tmp_path / "elsewhere")
    result = run(*args, cwd=tmp_path, before=functools.partial(die_when, LastCheckpoint, "on_train_epoch_end", 1, gone))
    one_line(result, 6, "logs/tiny/version_0")
    assert read_checkpoint_file(tmp_path / "elsewhere/version_0/checkpoints/last.ckpt")["global_step"] >= 5


@fault("stdout is closed: `fit | head -1`")
def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    write_recipe(tmp_path, 3)
    command = f"{sys.executable} -m cifar_resnets fit -c tiny.yaml | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""


@fault("stdout and stderr are closed from the start")
def test_nothing_to_write_to(tmp_path: Path) -> None:
    write_recipe(tmp_path, 1)
    command = f"{sys.executable} -m cifar_resnets fit -c tiny.yaml >&- 2>&-"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0
    assert (tmp_path / TINY_RUN / "test.json").is_file()

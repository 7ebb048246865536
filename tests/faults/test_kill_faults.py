"""Processes that are killed: what is left can be continued, to the last bit."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from exactness import RICH, kill_when
from faults.matrix import fault, leaves_nothing
from faults.runs import TINY_RUN, is_as_if_uninterrupted, resumed, started, uninterrupted, write_recipe
from processes import Process, run

from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file

pytestmark = pytest.mark.process

SAVES = ["--last_checkpoint.every_n_steps", "1"]


# pictures take most of the time of so small a run
WITHOUT, GALLERIES = RICH + "explain: null\n", RICH + "explain: {confusion: null, report: false}\n"


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with all that has a state, uninterrupted."""
    return uninterrupted(tmp_path_factory.mktemp("rich") / "run", text=WITHOUT)


# the first of the run, the last but one and the last of an epoch, the last of the run; `killed_twice` has others
@pytest.mark.parametrize("step", [1, 4, 5, 15])
@fault("kill -9 at a step; same bits after resuming")
def test_killed_at_a_step(step: int, rich: Path, tmp_path: Path) -> None:
    args = write_recipe(tmp_path, text=WITHOUT)
    killed = run(*args, cwd=tmp_path, before=functools.partial(kill_when, LastCheckpoint, "on_train_batch_end", step))
    assert killed.status == 128 + signal.SIGKILL
    result = resumed(tmp_path)
    assert (result.status, result.err) == (0, "")
    is_as_if_uninterrupted(tmp_path, rich)


@fault("kill -9 twice, between the checkpoints of every third step")
def test_killed_twice(tmp_path: Path) -> None:
    args = write_recipe(tmp_path, text=GALLERIES.replace("every_n_steps: 1", "every_n_steps: 3"))
    kill = functools.partial(kill_when, LastCheckpoint, "on_train_batch_end")
    assert run(*args, cwd=tmp_path, before=functools.partial(kill, 8)).status == 137
    assert run(*args, "--ckpt_path", "auto", cwd=tmp_path, before=functools.partial(kill, 5)).status == 137
    assert run(*args, "--ckpt_path", "auto", cwd=tmp_path).status == 0
    is_as_if_uninterrupted(tmp_path, uninterrupted(tmp_path / "reference", text=GALLERIES))


@fault("kill -9 during a save, TMPDIR on another file system", tries=10)
def test_killed_during_a_save(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("NOT TESTED: there is no second file system at /dev/shm")
    args = write_recipe(tmp_path, epochs=100_000)
    clock = random.Random(1)
    last = tmp_path / TINY_RUN / "checkpoints/last.ckpt"
    for _ in range(10):
        steps = _step(last)
        process = Process(*args, *SAVES, "--ckpt_path", "auto", cwd=tmp_path, env={"TMPDIR": str(other)})
        process.wait_for(lambda before=steps: _step(last) > before)  # a save at each of the steps that follow
        time.sleep(clock.uniform(0, 0.1))
        process.signal(signal.SIGKILL)
        assert process.wait().status == 137
        assert _step(last) > steps  # it is whole: it can be read
    assert len(list((tmp_path / "logs/tiny").iterdir())) == 1


def _step(path: Path) -> int:
    step: int = read_checkpoint_file(path)["global_step"] if path.exists() else 0
    return step


@fault("kill -9 before the first checkpoint; auto starts anew in the same folder")
def test_killed_before_a_checkpoint(tmp_path: Path) -> None:
    args = write_recipe(tmp_path)
    kill = functools.partial(kill_when, LastCheckpoint, "on_train_start", 1)
    assert run(*args, cwd=tmp_path, before=kill).status == 137
    before = {}
    result = run(*args, "--ckpt_path", "auto", cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    is_as_if_uninterrupted(tmp_path, uninterrupted(tmp_path / "reference"))
    (tmp_path / "tiny.yaml").unlink()
    leaves_nothing(tmp_path / "logs", before, run="tiny/version_0")


@fault("kill -9 after the training, before the test")
def test_killed_before_the_test(tmp_path: Path) -> None:
    args = write_recipe(tmp_path)
    assert (
        run(*args, cwd=tmp_path, before=functools.partial(kill_when, LastCheckpoint, "on_train_end", 1)).status == 137
    )
    result = resumed(tmp_path)
    assert (result.status, result.err) == (0, "")
    assert "nothing is left to train" in result.out
    is_as_if_uninterrupted(tmp_path, uninterrupted(tmp_path / "reference"))


@pytest.mark.parametrize(("signum", "name"), [(15, "SIGTERM"), (2, "SIGINT"), (10, "SIGUSR1"), (1, "SIGHUP")])
@fault("SIGTERM, Ctrl-C, SIGUSR1, SIGHUP: checkpoint, line, status; same bits after")
def test_a_signal_stops_at_the_end_of_a_step(signum: int, name: str, tmp_path: Path) -> None:
    process = started(tmp_path, *SAVES, epochs=8)
    process.signal(signum)
    result = process.wait(30)
    assert result.status == 128 + signum
    assert result.err.startswith(f"cifar-resnets: stopped by {name}")
    assert f"the checkpoint is {TINY_RUN}/checkpoints/last.ckpt" in result.err
    assert result.err.count("\n") == 1
    assert resumed(tmp_path, *SAVES).status == 0
    is_as_if_uninterrupted(tmp_path, uninterrupted(tmp_path / "reference", *SAVES, epochs=8))


@fault("signals while the program is still starting")
def test_a_signal_before_the_training(tmp_path: Path) -> None:
    for wait, signum in ((0.0, signal.SIGTERM), (0.3, signal.SIGINT)):
        process = Process(*write_recipe(tmp_path, 1000), cwd=tmp_path)
        process.wait_for(functools.partial(_takes_in, process.pid, signal.SIGUSR1))  # only our own handlers do
        time.sleep(wait)
        process.signal(signum)
        result = process.wait(30)
        assert result.status == 128 + signum
        assert result.err.count("\n") == 1, result.err


def _takes_in(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


@pytest.mark.parametrize("exists", [True, False], ids=["scontrol that fails", "no scontrol"])
@fault("SIGUSR1 in a SLURM job that cannot be requeued")
def test_not_requeued(exists: bool, tmp_path: Path) -> None:
    process = _in_slurm(tmp_path, "echo 'not allowed' >&2; exit 1" if exists else None)
    process.signal(signal.SIGUSR1)
    result = process.wait(30)
    assert result.status == 138
    assert ("not allowed" if exists else "there is no scontrol") in result.err
    assert "not requeued" in result.err
    assert result.err.count("\n") == 1
    assert read_checkpoint_file(tmp_path / TINY_RUN / "checkpoints/last.ckpt")


@fault("SIGUSR1 in a SLURM job: requeued once, resumed, same bits")
def test_requeued(tmp_path: Path) -> None:
    process = _in_slurm(tmp_path, f'echo "$@" >>{tmp_path}/requeued; kill -TERM $PPID')
    process.signal(signal.SIGUSR1)
    result = process.wait(30)
    assert (result.status, result.err.count("\n")) == (75, 1), result
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    again = run("fit", "-c", "tiny.yaml", cwd=tmp_path, env={"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1"})
    assert (again.status, again.err) == (0, "")
    is_as_if_uninterrupted(tmp_path, uninterrupted(tmp_path / "reference", epochs=8))


def _in_slurm(folder: Path, scontrol: str | None) -> Process:
    """A run in a job of SLURM, whose `scontrol` is a script."""
    tools = folder / "bin"
    tools.mkdir()
    if scontrol is not None:
        (tools / "scontrol").write_text(f"#!/bin/bash\n{scontrol}\n")
        (tools / "scontrol").chmod(0o755)
    path = f"{tools}:/bin" if scontrol is not None else str(tools)
    args = write_recipe(folder, 8)
    process = Process(*args, cwd=folder, env={"SLURM_JOB_ID": "77", "PATH": path})
    process.wait_for(lambda: (folder / TINY_RUN / "checkpoints/previous.ckpt").is_file())
    return process


@fault("another job's leftovers: hpc_ckpt_*, its run folder, its lock")
def test_leftovers_of_another_job(tmp_path: Path) -> None:
    reference = uninterrupted(tmp_path / "reference")
    other = tmp_path / "logs/tiny/version_0"
    args = write_recipe(tmp_path, 50)
    first = Process(*args, cwd=tmp_path, env={"SLURM_JOB_ID": "76"})
    first.wait_for(lambda: (other / "checkpoints/previous.ckpt").is_file())
    first.signal(signal.SIGKILL)
    first.wait()
    (tmp_path / "logs/hpc_ckpt_3.ckpt").write_bytes((other / "checkpoints/last.ckpt").read_bytes())
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    write_recipe(tmp_path, 1)
    # as srun sets them: without, Lightning does not look for what a job has left
    task = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "x"}
    job = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1", **task}
    result = run(*args, "--ckpt_path", "auto", cwd=tmp_path, env=job)
    assert (result.status, result.err) == (0, "")
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "other").mkdir()
    os.rename(other, tmp_path / "other/version_0")
    os.rename(tmp_path / "logs/tiny/version_1", other)
    is_as_if_uninterrupted(tmp_path, reference)


@fault("two jobs in one log folder at once", tries=3)
def test_two_jobs_in_one_folder(tmp_path: Path) -> None:
    reference = uninterrupted(tmp_path / "reference")
    for pair in range(3):
        folder = tmp_path / f"pair{pair}"
        folder.mkdir()
        args = write_recipe(folder)
        both = [Process(*args, "--ckpt_path", "auto", cwd=folder) for _ in range(2)]
        assert [process.wait().status for process in both] == [0, 0]
        os.rename(folder / "logs/tiny/version_1", folder / "other")
        is_as_if_uninterrupted(folder, reference)


@fault("a run that is still going on is not taken up by another process")
def test_a_running_run_is_left_alone(tmp_path: Path) -> None:
    process = started(tmp_path)
    result = resumed(tmp_path)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"the run in {TINY_RUN} is still going on" in result.err
    process.signal(signal.SIGKILL)
    process.wait()
    again = Process("fit", "-c", "tiny.yaml", "--ckpt_path", "last", cwd=tmp_path)
    again.wait_for(lambda: "epoch " in again.out)
    again.signal(signal.SIGTERM)
    assert again.wait(30).status == 143

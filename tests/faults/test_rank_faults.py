"""One of two ranks fails or is killed: all processes end within 30 s, none with status 0, and one line says so."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
import pytest
from faults.faulty import BUG, DATA, FULL, KILLED
from faults.matrix import fault, one_line
from slurm_cluster import Cluster, slurm_cluster
from support import TINY, Result, free_port

pytestmark = pytest.mark.process

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PATH = os.pathsep.join([str(TESTS), str(ROOT)])
ON_CPU = "configs/hardware/cpu.yaml"
TRAINER = ["--trainer.devices", "2", "--trainer.max_epochs", "3", "--trainer.num_sanity_val_steps", "0"]
DAMAGED = "cifar-resnets: rank 1: cat/7.png is damaged"
OBSERVED = r"\[rank: 1\] Child process with PID \d+ terminated with code (-?\d+)\. Forcefully terminating all .*"
CHECKPOINT = "the checkpoint is logs/tiny/version_0/checkpoints/last.ckpt"


def fit(strategy: str, *args: str) -> list[str]:
    """Returns a command line with two ranks."""
    return ["fit", "-c", "tiny.yaml", "--explain", "null", *TRAINER, "--trainer.strategy", strategy, *args]


def failing(fault: str, hook: str, rank: int, epoch: int = 0) -> list[str]:
    """Returns the arguments that make a rank fail."""
    faulty = {"fault": fault, "hook": hook, "rank": rank, "epoch": epoch}
    chosen = [word for key, value in faulty.items() for word in (f"--trainer.callbacks.{key}", str(value))]
    return ["--trainer.callbacks", "faults.faulty.Faulty", *chosen]


@contextmanager
def started(command: list[str], cwd: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a process in a session of its own, of which nothing is left in the end."""
    (cwd / "tiny.yaml").write_text(TINY)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH, **env},
        stdout=subprocess.PIPE,
        stderr=(cwd / "err").open("w"),
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def session(number: int) -> list[int]:
    """Returns the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(sid) == number and state != "Z":
            found.append(int(path.parent.name))
    return found


def end_of(process: subprocess.Popen[str], err: Path) -> Result:
    """Waits until somebody has said something, and then 30 s at most for the end of all processes."""
    assert wait_until(lambda: err.read_text() or process.poll() is not None, 180)
    assert wait_until(lambda: process.poll() is not None and not session(process.pid), 30), session(process.pid)
    status = process.returncode
    return Result(128 - status if status < 0 else status, "", err.read_text())


def wait_until(condition: object, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


@contextmanager
def ranks(cwd: Path, strategy: str, *args: str) -> Iterator[processes.Process]:
    """Starts two ranks, of which nothing is left in the end.

    With `ddp`, rank 0 is the user's process, and starts the other one as a process of its own. With `ddp_fork`, both
    are forks of the user's process, which ends last.
    """
    (cwd / "tiny.yaml").write_text(TINY)
    process = processes.Process(*fit(strategy, *args), cwd=cwd, env={"PYTHONPATH": PATH})
    try:
        yield process
    finally:
        process.kill_session()


def ddp(cwd: Path, *args: str) -> Result:
    """Runs ranks that Lightning starts."""
    with ranks(cwd, "ddp", *args) as process:
        return end_of_ranks(process)


def end_of_ranks(process: processes.Process) -> Result:
    """Waits until somebody has said something, and then 30 s at most for the end of all processes."""
    assert wait_until(lambda: process.err or not process.is_alive, 180)
    assert wait_until(lambda: not process.is_alive and not session(process.pid), 30), session(process.pid)
    return process.wait()


@fault("rank killed in training (Lightning's launcher)")
@pytest.mark.parametrize("rank", [1, 0])
def test_killed(tmp_path: Path, rank: int) -> None:
    result = ddp(tmp_path, *failing(KILLED, "on_train_batch_start", rank, 2))
    assert result.status == 137
    if rank:
        observed(result.err, -9)
    else:
        assert result.err == ""  # the shell reports rank 0


def observed(line: str, status: int) -> None:
    """Asserts that Lightning's launcher has reported rank 1, and its status."""
    assert (match := re.fullmatch(OBSERVED, line.strip())), line
    assert int(match[1]) == status


@fault("rank fails before the ranks are connected (Lightning's launcher)")
def test_before_the_ranks_are_connected(tmp_path: Path) -> None:
    result = ddp(tmp_path, *failing(DATA, "__init__", 1))
    assert result.status == 137  # Lightning's launcher kills rank 0
    own, line = result.err.splitlines()
    assert own == DAMAGED
    observed(line, 3)


@fault("rank fails in training (Lightning's launcher)")
def test_rank_1_in_training(tmp_path: Path) -> None:
    result = ddp(tmp_path, *failing(DATA, "on_train_batch_start", 1))
    assert result.status == 137
    own, line = result.err.splitlines()
    assert own == DAMAGED
    observed(line, 3)


@fault("rank fails in training (Lightning's launcher)")
def test_rank_0_in_training(tmp_path: Path) -> None:
    line = "cifar-resnets: last.ckpt: No space left on device\n"
    result = ddp(tmp_path, *failing(FULL, "on_save_checkpoint", 0))
    assert (result.status, result.err) == (6, line)


@fault("bug in a rank, at the end of its work (Lightning's launcher)")
def test_bug_at_the_end(tmp_path: Path) -> None:
    result = ddp(tmp_path, *failing(BUG, "on_test_end", 1))
    assert result.status == 137
    assert "\ncifar-resnets: rank 1: AssertionError: a bug\n" in result.err
    assert result.err.count("Traceback") == 1 and "in fail" in result.err


@fault("SIGTERM to rank 0 alone (Lightning's launcher)")
def test_sigterm_to_rank_0(tmp_path: Path) -> None:
    with ranks(tmp_path, "ddp", "--trainer.max_epochs", "500") as process:
        process.wait_for(lambda: process.out.count("epoch ") >= 2)
        process.signal(signal.SIGTERM)
        result = end_of_ranks(process)
    one_line(result, 143, f"stopped by SIGTERM; {CHECKPOINT}")


@fault("rank fails (torchrun)")
def test_torchrun(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    args = fit("ddp", *failing(DATA, "__init__", 1))  # rank 0 waits for it
    with started([*launch, "-m", "cifar_resnets", *args], tmp_path) as process:
        result = end_of(process, tmp_path / "err")
    assert result.status == 1  # torchrun's own
    assert [each for each in result.err.splitlines() if each.startswith("cifar-resnets")] == [DAMAGED]
    assert "rank      : 1 (local_rank: 1)" in result.err.partition("Root Cause")[2]


@fault("rank fails (torchrun)")
def test_torchrun_script(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts/torchrun.sh"), "tiny.yaml", *failing(KILLED, "on_validation_start", 1)]
    with started(command, tmp_path, NPROC="2", HARDWARE=str(ROOT / ON_CPU)) as process:
        result = end_of(process, tmp_path / "err")
    assert result.status == 137
    assert result.err.endswith("\nscripts/torchrun.sh: rank 1 was killed by signal 9\n")
    assert "Connection closed" not in result.err


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster() as cluster:
        yield cluster


@fault("rank fails (SLURM)")
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("args", "status", "lines"),
    [
        (["--data", "faults.faulty.FaultyDigits"], "3:0", ["cat/7.png is damaged", "task 0: Exited with exit code 3"]),
        (failing(KILLED, "on_train_epoch_end", 1), "137:0", ["task 1: Killed"]),
        # rank 0, which waits for it, is ended by a signal, and SLURM's status is the highest
        (failing(DATA, "__init__", 1), "143:0", [DAMAGED, "task 1: Exited with exit code 3"]),
    ],
)
def test_slurm(cluster: Cluster, tmp_path: Path, args: list[str], status: str, lines: list[str]) -> None:
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "tiny.yaml").write_text(TINY)
    args = ["--ntasks-per-node=2", "scripts/train.sbatch", "tiny.yaml", "--explain", "null", *args]
    job = cluster.submit(*args, cwd=tmp_path, env={"HARDWARE": ON_CPU, "PYTHONPATH": PATH})
    cluster.wait_for(job, lambda: "srun: error" in cluster.output(job), "a rank that fails")
    assert wait_until(lambda: cluster.show(job)[0]["JobState"] == "FAILED", 30), cluster.show(job)
    assert cluster.show(job)[0]["ExitCode"] == status
    output = cluster.output(job)
    assert all(line in output for line in lines), output
    assert "Connection closed" not in output and "Traceback" not in output
    assert output.count("cifar-resnets: ") == sum("damaged" in line for line in lines), output


@contextmanager
def job(cwd: Path, args: list[str], **env: str) -> Iterator[list[processes.Process]]:
    """Starts the processes that srun would start."""
    (cwd / "tiny.yaml").write_text(TINY)
    slurm = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "NODELIST": "localhost", "NODEID": "0", "JOB_NAME": "job"}
    variables = {f"SLURM_{name}": value for name, value in slurm.items()}
    variables |= {"SLURM_JOB_ID": "7", "MASTER_PORT": str(free_port()), **env}
    tasks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    ranks = [processes.Process(*args, cwd=cwd, env={**variables, **task}) for task in tasks]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill_session()


@fault("SIGUSR1 to all ranks (SLURM)")
def test_rank_0_requeues_the_job_before_the_others_end(tmp_path: Path) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\nsleep 3\n")  # srun would end rank 0 if the other one ended meanwhile
    scontrol.chmod(0o755)
    args = fit("ddp", "--trainer.max_epochs", "500")
    with job(tmp_path, args, PATH=f"{scontrol.parent}:{os.environ['PATH']}") as ranks:
        ranks[0].wait_for(lambda: ranks[0].out.count("epoch ") >= 2)
        for each in ranks:
            each.signal(signal.SIGUSR1)
        # version_N: forks of a server take their rank from Lightning late, and both claim a folder
        one_line(ranks[0].wait(60), 75, "stopped by SIGUSR1 and requeued; the checkpoint is logs/tiny/version_")
        assert ranks[1].is_alive
        ranks[1].signal(signal.SIGTERM)  # as srun does
        assert (ranks[1].wait(30).status, ranks[1].err) == (75, "")


def end_of_forks(process: processes.Process) -> Result:
    """Waits for the end of the user's process, after which there is no other."""
    result = process.wait(60)
    assert not session(process.pid)
    return result


@fault("SIGTERM to the process that waits for its forks")
def test_signal_to_the_process_that_waits(tmp_path: Path) -> None:
    with ranks(tmp_path, "ddp_fork", "--trainer.max_epochs", "500") as process:
        process.wait_for(lambda: process.out.count("epoch ") >= 2)
        process.signal(signal.SIGTERM)
        one_line(end_of_forks(process), 143, f"stopped by SIGTERM; {CHECKPOINT}")


@fault("rank fails (forks)")
@pytest.mark.parametrize(
    ("what", "hook", "status", "line"),
    [
        (DATA, "on_train_start", 3, DAMAGED),
        (KILLED, "on_validation_end", 137, "cifar-resnets: rank 1: process 1 terminated with signal SIGKILL"),
    ],
)
def test_forks(tmp_path: Path, what: str, hook: str, status: int, line: str) -> None:
    with ranks(tmp_path, "ddp_fork", *failing(what, hook, 1)) as process:
        result = end_of_forks(process)
    assert (result.status, result.err) == (status, f"{line}\n")


@fault("bug in a rank (forks)")
def test_bug_in_a_fork(tmp_path: Path) -> None:
    with ranks(tmp_path, "ddp_fork", *failing(BUG, "on_validation_start", 1)) as process:
        result = end_of_forks(process)
    assert result.status == 1
    assert "Process 1 terminated with the following error" in result.err
    assert "in fail" in result.err and "Connection closed" not in result.err

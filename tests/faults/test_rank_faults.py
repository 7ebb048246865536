"""One of two ranks fails or is killed: all processes end within 30 s with an error, and one line names the rank."""

from __future__ import annotations

import os
import re
import signal
import socket
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
from support import TINY, Result

pytestmark = pytest.mark.process

TESTS = Path(__file__).parents[1]
TRAINER = ["--trainer.devices", "2", "--trainer.max_epochs", "3", "--trainer.num_sanity_val_steps", "0"]
DAMAGED = "cifar-resnets: rank 1: cat/7.png is damaged"
LAST = "the last checkpoint is logs/tiny/version_0/checkpoints/last.ckpt, start again with --ckpt_path auto"


def fit(strategy: str, fault: str, hook: str, rank: int, epoch: int = 0) -> list[str]:
    """The command line of a run that fails."""
    faulty = {"fault": fault, "hook": hook, "rank": rank, "epoch": epoch}
    chosen = [word for key, value in faulty.items() for word in (f"--trainer.callbacks.{key}", str(value))]
    callback = ["--trainer.callbacks", "faults.faulty.Faulty", *chosen]
    return ["fit", "-c", "tiny.yaml", "--explain", "null", *TRAINER, "--trainer.strategy", strategy, *callback]


@contextmanager
def started(command: list[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a session of its own, of which nothing is left in the end."""
    (cwd / "tiny.yaml").write_text(TINY)
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
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
    """The living processes of a session."""
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


def ddp(cwd: Path, *args: object) -> Result:
    """Ranks that Lightning starts: rank 0 is the user's process, and has the others run the script again."""
    with started([sys.executable, "-m", "cifar_resnets", *fit("ddp", *args)], cwd) as process:  # type: ignore[arg-type]
        return end_of(process, cwd / "err")


@fault("rank killed in training (Lightning's launcher)")
def test_rank_1_killed(tmp_path: Path) -> None:
    result = ddp(tmp_path, KILLED, "on_train_batch_start", 1, 2)
    assert result.err == f"cifar-resnets: rank 1 was killed (signal 9): {LAST}\n"
    assert result.status == 137


@fault("rank killed in training (Lightning's launcher)")
def test_rank_0_killed(tmp_path: Path) -> None:
    result = ddp(tmp_path, KILLED, "on_train_batch_start", 0, 2)
    assert result.err == f"cifar-resnets: rank 0 was killed: {LAST}\n"
    assert result.status == 137


@fault("rank fails before the ranks know of each other")
@pytest.mark.parametrize(
    ("what", "status", "line"),
    [
        (DATA, 3, DAMAGED),
        (KILLED, 137, "cifar-resnets: rank 1 was killed (signal 9) before the start: start again"),
    ],
)
def test_before_the_start(tmp_path: Path, what: str, status: int, line: str) -> None:
    assert ddp(tmp_path, what, "__init__", 1) == Result(status, "", f"{line}\n")


@fault("rank fails (Lightning's launcher)")
def test_data_of_rank_1(tmp_path: Path) -> None:
    assert ddp(tmp_path, DATA, "on_train_batch_start", 1) == Result(3, "", f"{DAMAGED}\n")


@fault("rank fails (torchrun)")
@pytest.mark.parametrize(
    ("what", "hook", "line"),
    [
        (DATA, "__init__", DAMAGED),
        (KILLED, "on_validation_start", "cifar-resnets: rank 1 was killed: start again"),
    ],
)
def test_torchrun(tmp_path: Path, what: str, hook: str, line: str) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with started([*launch, "-m", "cifar_resnets", *fit("ddp", what, hook, 1)], tmp_path) as process:
        result = end_of(process, tmp_path / "err")
    assert result.status == 1  # torchrun's own
    assert [each for each in result.err.splitlines() if each.startswith("cifar-resnets")] == [line]
    assert "Connection closed" not in result.err


@contextmanager
def job(cwd: Path, args: list[str], **env: str) -> Iterator[list[processes.Process]]:
    """The processes that srun would start; nothing but the ranks themselves ends the others."""
    (cwd / "tiny.yaml").write_text(TINY)
    with socket.create_server(("127.0.0.1", 0)) as free:
        slurm = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "NODELIST": "localhost", "NODEID": "0", "JOB_NAME": "job"}
        variables = {f"SLURM_{name}": value for name, value in slurm.items()}
        variables |= {"SLURM_JOB_ID": "7", "MASTER_PORT": str(free.getsockname()[1]), **env}
    tasks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    ranks = [processes.Process(*args, cwd=cwd, env={**variables, **task}) for task in tasks]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill_session()


@fault("rank fails (SLURM)")
@pytest.mark.parametrize(
    ("what", "hook", "rank", "status", "line"),
    [
        (DATA, "on_train_start", 1, 3, DAMAGED),
        (FULL, "on_save_checkpoint", 0, 6, "cifar-resnets: rank 0: last.ckpt: No space left on device"),
        (KILLED, "on_train_epoch_end", 1, 137, "cifar-resnets: rank 1 was killed: start again"),
    ],
)
def test_slurm(tmp_path: Path, what: str, hook: str, rank: int, status: int, line: str) -> None:
    with job(tmp_path, fit("ddp", what, hook, rank)) as ranks:
        results = [each.wait(60) for each in ranks]
    assert [result.status for result in results] == [status, status]
    assert [result.err for result in results] == [f"{line}\n", ""]


@fault("signal to all ranks (SLURM)")
@pytest.mark.parametrize(
    ("signum", "status", "line"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGUSR1, 75, "stopped by SIGUSR1 and requeued")],
)
def test_signal_to_all_ranks(tmp_path: Path, signum: int, status: int, line: str) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\nsleep 3\n")  # meanwhile, the other rank waits to be told that it may end
    scontrol.chmod(0o755)
    args = ["fit", "-c", "tiny.yaml", "--explain", "null", *TRAINER, "--trainer.strategy", "ddp"]
    with job(tmp_path, [*args, "--trainer.max_epochs", "500"], PATH=f"{scontrol.parent}:{os.environ['PATH']}") as ranks:
        ranks[0].wait_for(lambda: ranks[0].out.count("epoch ") >= 2)
        for each in ranks:
            each.signal(signum)
        results = [each.wait(60) for each in ranks]
    assert [result.status for result in results] == [status, status]
    assert results[0].err.startswith(f"cifar-resnets: {line}; the checkpoint is "), results
    assert results[1].err == ""


@fault("signal to the process that waits for its forks")
def test_signal_to_the_process_that_waits(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    args = ["fit", "-c", "tiny.yaml", "--explain", "null", *TRAINER, "--trainer.strategy", "ddp_fork"]
    process = processes.Process(*args, "--trainer.max_epochs", "500", cwd=tmp_path)
    try:
        process.wait_for(lambda: process.out.count("epoch ") >= 2)
        process.signal(signal.SIGTERM)
        result = process.wait(60)
        assert not session(process.pid)
    finally:
        process.kill_session()
    one_line(result, 143, "stopped by SIGTERM; the checkpoint is logs/tiny/version_0/checkpoints/last.ckpt")


def forked(cwd: Path, *args: object) -> Result:
    """Ranks that are forks of the user's process."""
    (cwd / "tiny.yaml").write_text(TINY)
    process = processes.Process(*fit("ddp_fork", *args), cwd=cwd)  # type: ignore[arg-type]
    try:
        result = process.wait(60)
        assert wait_until(lambda: not session(process.pid), 10), session(process.pid)
    finally:
        process.kill_session()
    return Result(result.status, "", result.err)


@fault("rank fails (forks)")
@pytest.mark.parametrize(
    ("what", "hook", "rank", "status", "line"),
    [
        (DATA, "on_train_start", 1, 3, DAMAGED),
        (DATA, "setup", 0, 3, "cifar-resnets: rank 0: cat/7.png is damaged"),
        (FULL, "on_save_checkpoint", 0, 6, "cifar-resnets: rank 0: last.ckpt: No space left on device"),
        (KILLED, "on_validation_end", 1, 137, "cifar-resnets: rank 1 was killed: start again"),
        (KILLED, "on_test_start", 0, 137, f"cifar-resnets: rank 0 was killed: {LAST}"),
    ],
)
def test_forks(tmp_path: Path, what: str, hook: str, rank: int, status: int, line: str) -> None:
    assert forked(tmp_path, what, hook, rank) == Result(status, "", f"{line}\n")


@fault("bug in a rank")
def test_traceback_of_a_bug_is_that_of_the_rank_that_has_it(tmp_path: Path) -> None:
    result = forked(tmp_path, BUG, "on_validation_start", 1)
    assert result.status == 1
    assert re.findall("^cifar-resnets: .*", result.err, re.MULTILINE) == [
        "cifar-resnets: rank 1: AssertionError: a bug"
    ]
    assert "in fail" in result.err and "Connection closed" not in result.err

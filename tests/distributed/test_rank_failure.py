"""How a process ends as one of several ranks; with whole command lines: tests/faults/test_rank_faults.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from cifar_resnets.distributed import rank_failure
from cifar_resnets.distributed.rank_failure import ending_together, report
from cifar_resnets.errors import DataError

COMMAND = "import time; from cifar_resnets.distributed.rank_failure import ending_together\nwith ending_together(): "
# a process that starts a rank
PARENT_OF_ONE = f"""
import os, subprocess, sys, time
env = dict(os.environ, **%s)
code = {COMMAND + "print('started', flush=True); time.sleep(100)"!r}
child = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(100)
"""
# two ranks, the second of which ends in the middle of a step
TWO_RANKS = """
import os, sys, time
import torch, torch.distributed as dist
from cifar_resnets.distributed import rank_failure
rank, rank_failure.WAIT = int(os.environ["RANK"]), float(sys.argv[2])
with rank_failure.ending_together():
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
    dist.barrier()
    if rank:
        raise SystemExit(3)
    print("alone", flush=True)
    dist.all_reduce(torch.zeros(1))
"""


@pytest.fixture
def sigterm() -> Iterator[None]:
    """Puts the handler of SIGTERM back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


pytestmark = pytest.mark.process


def start(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pid: int) -> None:
    end = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_alone_nothing_changes(capfd: pytest.CaptureFixture[str]) -> None:
    with ending_together():
        pass
    with pytest.raises(ZeroDivisionError), ending_together():
        raise ZeroDivisionError
    with pytest.raises(SystemExit) as stop, ending_together():
        report("no images\nin  /data")
        raise SystemExit(3)
    assert stop.value.code == 3
    assert capfd.readouterr() == ("", "cifar-resnets: no images in /data\n")


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_a_rank_reports_its_number(
    variable: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_failure, "TOGETHER", 0)
    monkeypatch.setenv(variable, "5")
    report("no images")
    assert capfd.readouterr() == ("", "cifar-resnets: rank 5: no images\n")


def test_a_report_does_not_steer_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    report("no \x1b[2J\nof a\x07 file")
    assert capfd.readouterr().err == "cifar-resnets: no \\x1b[2J of a\\x07 file\n"


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, {"TORCHELASTIC_RUN_ID": "none"}])
def test_a_rank_ends_with_the_process_that_started_it(variables: dict[str, str]) -> None:
    parent = start(PARENT_OF_ONE % variables)
    child = int(first_line(parent))
    parent.kill()
    wait_for_end(child)
    parent.communicate()


def two_ranks(folder: Path, wait: float) -> list[subprocess.Popen[str]]:
    return [start(TWO_RANKS, str(folder / "store"), str(wait), RANK=str(rank)) for rank in range(2)]


def test_a_rank_that_loses_another_one_waits_for_its_launcher(tmp_path: Path) -> None:
    left, lost = two_ranks(tmp_path, 60)
    assert first_line(left) == "alone"
    assert lost.wait(60) == 3
    time.sleep(1)
    assert left.poll() is None
    left.terminate()
    assert left.wait(20) == 1
    assert [each.communicate() for each in (left, lost)] == [("", "")] * 2


def test_a_rank_that_no_launcher_ends_reports_what_failed(tmp_path: Path) -> None:
    left, lost = two_ranks(tmp_path, 0.1)
    assert [each.wait(60) for each in (left, lost)] == [1, 3]
    assert left.communicate()[1].splitlines()[-1].startswith("cifar-resnets: RuntimeError: [")
    lost.communicate()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("fault", "status", "line"),
    [
        ("data", 3, "cifar-resnets: rank 1: no images\n"),
        ("killed", 137, "cifar-resnets: rank 1: process 1 terminated with signal SIGKILL\n"),
    ],
)
def test_a_fork_fails(fault: str, status: int, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, ending_together():
        mp.start_processes(_fail_in_rank_1, (fault,), nprocs=2, start_method="fork")
    assert stop.value.code == status
    assert capfd.readouterr().err.endswith(line)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_bug_in_a_fork_is_shown_with_its_rank(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, ending_together():
        mp.start_processes(_fail_in_rank_1, ("bug",), nprocs=2, start_method="fork")
    assert stop.value.code == 1
    assert "Process 1 terminated" in (err := capfd.readouterr().err)
    assert err.endswith("cifar-resnets: rank 1: ZeroDivisionError: a bug\n")


def _fail_in_rank_1(rank: int, fault: str) -> None:
    if not rank:
        time.sleep(60)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise DataError("no images") if fault == "data" else ZeroDivisionError("a bug")

"""A real SLURM of two nodes on this machine: one slurmctld and two slurmd on loopback, with a munged of their own.

It needs no root, nothing in /etc and no name in /etc/hosts: its files are in one folder, and SLURM's commands find it
by `SLURM_CONF`, which is also how its processes are told from those of another SLURM.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
PATIENCE = 200  # seconds, on a machine that does other work
# Both nodes are this machine. Ranks find each other by the first one's name, which has to mean this machine, too, at a
# port that comes from the job's number: jobs of two clusters at once must not have the same.
HOST = socket.gethostname().partition(".")[0]
NODES = (HOST, f"{HOST}-2")
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
FirstJobId={ports[0]}
{more}
NodeName=DEFAULT CPUs=4 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# what SLURM counts as GPUs, on a machine that has none
GPUS = "NodeName={host},{host}-2 Name=gpu File=/dev/null,/dev/zero\n"


class Cluster:
    """What a user of the cluster does.

    Args:
        folder: with the cluster's configuration and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # a test that itself runs in a job does not speak of that job
        others = ("SLURM", "SBATCH", "SRUN", "HARDWARE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        self.env = {**kept, "SLURM_CONF": str(folder / "slurm.conf")}

    def command(self, *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """What a command prints.

        Raises:
            AssertionError: when it fails.
        """
        done = subprocess.run(
            args, cwd=cwd, env={**self.env, **(env or {})}, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *args: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """Submits a job by `sbatch` in a folder, where its output will lie; its number."""
        return self.command("sbatch", "--parsable", *args, cwd=cwd, env=env).strip()

    def show(self, job: str) -> list[dict[str, str]]:
        """What SLURM knows of a job, of each task of an array."""
        lines = self.command("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(field.partition("=")[::2] for field in line.split()) for line in lines]

    def output(self, job: str) -> str:
        """What a job has written so far, each task of an array."""
        paths = [Path(each["StdOut"]) for each in self.show(job)]
        return "\n".join(path.read_text() for path in paths if path.exists())

    def wait_for(self, job: str, condition: Callable[[], object], what: str) -> None:
        """Waits until a condition holds.

        Raises:
            AssertionError: when it does not in time.
        """
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}: {self.show(job)}\n{self.output(job)}"
            time.sleep(0.1)

    def wait(self, job: str) -> list[dict[str, str]]:
        """Waits for the end of a job, all tasks of an array, and returns what SLURM says of it."""
        going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        self.wait_for(job, lambda: all(each["JobState"] not in going for each in self.show(job)), "the end")
        return self.show(job)


@contextlib.contextmanager
def slurm_cluster(*more: str) -> Iterator[Cluster]:
    """A cluster until the end of the block; skips the test, loudly, where there is no SLURM.

    Args:
        more: lines of slurm.conf.
    """
    if missing := [name for name in COMMANDS if shutil.which(name, path=_path()) is None]:
        pytest.skip(f"NOT TESTED ON A CLUSTER: there is no {', '.join(missing)}, run scripts/install_slurm.sh")
    # not pytest's folder: the name of a socket must be short
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        cluster = Cluster(Path(name))
        started: list[subprocess.Popen[bytes]] = []
        try:
            _configure(cluster.folder, more)
            for command in _daemons(cluster.folder):
                started.append(_start(cluster, command))
            _wait_until_idle(cluster)
            yield cluster
        finally:
            _stop(cluster, started)


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _configure(folder: Path, more: tuple[str, ...]) -> None:
    for name in ("state", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    text = CONFIGURATION.format(
        host=HOST, user=getpass.getuser(), folder=folder, ports=_free_ports(3), more="\n".join(more)
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(GPUS.format(host=HOST))


def _daemons(folder: Path) -> list[list[str]]:
    munge = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munge.log", "pid-file": "munge.pid"}
    files = [f"--{name}={folder / file}" for name, file in {**munge, "seed-file": "munge.seed"}.items()]
    return [
        ["munged", "--foreground", "--force", *files],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in NODES),
    ]


def _free_ports(num: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(cluster: Cluster, command: list[str]) -> subprocess.Popen[bytes]:
    env = {**cluster.env, "PATH": _path()}
    with (cluster.folder / f"{command[0]}-{command[-1]}.out".replace("/", "_")).open("wb") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def _wait_until_idle(cluster: Cluster) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(["sinfo", "-h", "-o", "%D %t"], env=cluster.env, capture_output=True, text=True)
        if done.stdout.strip() == "2 idle":
            return
        assert time.monotonic() < end, f"{done.stdout}{done.stderr}{_logs(cluster.folder)}"
        time.sleep(0.2)


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in folder.glob("*.log"))


def _stop(cluster: Cluster, started: list[subprocess.Popen[bytes]]) -> None:
    """Ends the daemons and what they have started: jobs and their guards are in sessions of their own."""
    for daemon in reversed(started):
        daemon.terminate()
    for daemon in started:
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    while pids := _processes_of(cluster):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _processes_of(cluster: Cluster) -> list[int]:
    mark = f"SLURM_CONF={cluster.env['SLURM_CONF']}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found

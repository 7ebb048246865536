"""`scripts/torchrun.sh`: one node, two nodes on loopback, one of them lost and replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from exactness import differences
from processes import run_two_ranks
from support import TINY, free_port

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/torchrun.sh"
PATIENCE = 200  # seconds, on a machine that does other work


class Torchrun:
    """The script that runs, as one node.

    Args:
        folder: that it runs in.
        args: of the script.
        variables: of its environment.
    """

    def __init__(self, folder: Path, *args: str, **variables: str) -> None:
        number = sum(1 for _ in folder.glob(".torchrun-*"))
        self._output = folder / f".torchrun-{number}"
        # a test that itself runs in a job is not a rank of that job
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "TORCHELASTIC"))}
        env = {**kept, "HARDWARE": str(ROOT / "configs/hardware/cpu.yaml"), "OMP_NUM_THREADS": "1", **variables}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [SCRIPT, *args], cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Waits until a condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.1)

    def wait(self) -> int:
        """Waits for its end; its exit status."""
        return self.process.wait(PATIENCE)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a recipe; what still runs in it at the end of the test is killed."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    yield tmp_path
    for pid in processes_in(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_in(folder: Path) -> list[int]:
    """The processes whose working folder this is, but for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if Path(os.readlink(path / "cwd")) == folder and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def num_epochs(output: str) -> int:
    return output.count("\nepoch ")


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        ([], {}, "the recipe is missing: scripts/torchrun.sh RECIPE [OVERRIDE...]"),
        (["--model.lr", "1"], {}, "the recipe is missing: scripts/torchrun.sh RECIPE [OVERRIDE...]"),
        (
            ["tiny.yaml"],
            {"NNODES": "2", "RDZV_ID": "a"},
            "NNODES=2 needs RDZV_ENDPOINT=HOST:PORT and RDZV_ID=NAME, the same on each node",
        ),
    ],
)
def test_what_is_missing_is_named(folder: Path, args: list[str], env: dict[str, str], said: str) -> None:
    torchrun = Torchrun(folder, *args, **env)
    assert (torchrun.wait(), torchrun.output) == (2, f"scripts/torchrun.sh: {said}\n")


def test_the_status_is_that_of_the_program(folder: Path) -> None:
    torchrun = Torchrun(folder, "missing.yaml", NPROC="1")
    assert torchrun.wait() == 2
    assert "missing.yaml" in torchrun.output


def test_sigterm_reaches_the_processes(folder: Path) -> None:
    torchrun = Torchrun(folder, "tiny.yaml", "--trainer.max_epochs", "999", "--explain", "null", NPROC="2")
    torchrun.wait_for(lambda: num_epochs(torchrun.output) >= 2)
    torchrun.process.terminate()
    assert torchrun.wait() == 143
    line = "cifar-resnets: stopped by SIGTERM; the checkpoint is logs/tiny/version_0/checkpoints/last.ckpt"
    assert torchrun.output.count("cifar-resnets: ") == torchrun.output.count(line) == 1, torchrun.output
    assert processes_in(folder) == []


def test_a_lost_node_is_replaced_and_the_run_goes_on(folder: Path) -> None:
    more = ["--trainer.max_epochs", "25", "--explain", "null"]
    args = ["tiny.yaml", *more]
    port = free_port()
    nodes = {"NNODES": "2", "NPROC": "1", "RDZV_ENDPOINT": f"127.0.0.1:{port}", "LOCAL_ADDR": "127.0.0.1"}
    nodes |= {"RDZV_ID": "lost", "PET_RDZV_CONF": "keep_alive_interval=1"}  # a lost node is noticed after three of them
    first = Torchrun(folder, *args, **nodes)
    first.wait_for(lambda: is_open(port))  # so that the meeting point is not on the node that is lost
    second = Torchrun(folder, *args, **nodes)
    first.wait_for(lambda: num_epochs(first.output + second.output) >= 3)
    second.process.kill()
    again = Torchrun(folder, *args, **nodes)
    assert [each.wait() for each in (first, again)] == [0, 0], first.output + again.output
    assert [path.name for path in (folder / "logs/tiny").iterdir()] == ["version_0"]
    run_two_ranks("fit", "-c", "tiny.yaml", "-c", "cpu", *more, "--trainer.default_root_dir", "straight", cwd=folder)
    assert differences(folder / "logs/tiny/version_0", folder / "straight/tiny/version_0") == []
    assert processes_in(folder) == []

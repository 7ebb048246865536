"""The learning-rate finder, ended in the middle of its test, and with nothing to find."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.injections import slow_range_test
from faults.matrix import ends_well, fault, files_in, leaves_nothing, one_line
from processes import Process, run
from support import TINY, Result

pytestmark = pytest.mark.process

GROUP = "learning-rate finder"
NUM_STEPS = 50
FINDER = f"{{class_path: LRFinder, init_args: {{num_steps: {NUM_STEPS}, num_runs: 2, min_lr: 0.001}}}}"
RECIPE = TINY.replace("max_epochs: 1}", f"max_epochs: 1, callbacks: [{FINDER}]}}")
FIRST = "logs/tiny/version_0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE + "explain: null\n")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run in which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(RECIPE + "explain: null\n")
    ends_well(run("fit", "-c", "tiny.yaml", cwd=folder), f"(valley of {NUM_STEPS} steps, ")
    return weights(folder / FIRST)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def ended(folder: Path, signum: int, num_steps: int, *args: str) -> Result:
    """A command that gets a signal after so many steps of its range test."""
    reached = folder.parent / f"{folder.name}.reached"
    process = Process(*args, cwd=folder, before=partial(slow_range_test, reached, num_steps))
    process.wait_for(reached.exists)
    process.signal(signum)
    return process.wait(30)


def check_end(result: Result, signum: int, end: str = "; no checkpoint was written") -> None:
    if signum == signal.SIGKILL:
        assert (result.status, result.err) == (137, "")
    else:
        line = one_line(result, 128 + signum, f"stopped by {signal.Signals(signum).name}")
        assert line.endswith(f"stopped by {signal.Signals(signum).name}{end}")


SIGNALS: Any = [
    pytest.param(signal.SIGKILL, marks=fault("kill -9 in the middle of the range test")),
    pytest.param(signal.SIGTERM, marks=fault("SIGTERM in the middle of the range test")),
    pytest.param(signal.SIGINT, marks=fault("Ctrl-C in the middle of the range test")),
]


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("num_steps", [1, NUM_STEPS + 7])
def test_ended_in_the_middle(folder: Path, undisturbed: Any, signum: int, num_steps: int) -> None:
    before = files_in(folder)
    check_end(ended(folder, signum, num_steps, "fit", "-c", "tiny.yaml"), signum)
    leaves_nothing(folder, before, run=FIRST)
    left = {path.name for path in (folder / FIRST).rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith(".ckpt") or name.startswith("lr_finder")], left
    before = files_in(folder)
    again = run("fit", "-c", "tiny.yaml", "--ckpt_path", "auto", cwd=folder)
    ends_well(again, "learning rate: ", f"(valley of {NUM_STEPS} steps, ", "accuracy: ")
    (run_dir,) = (path.parent.parent for path in folder.rglob("last.ckpt"))
    assert run_dir in (folder / FIRST, folder / "logs/tiny/version_1")
    for name, tensor in weights(run_dir).items():
        assert torch.equal(tensor, undisturbed[name]), name


@fault("kill -9 in the middle of the range test, and a start from a checkpoint that there is not")
def test_nothing_to_resume(folder: Path) -> None:
    ended(folder, signal.SIGKILL, 5, "fit", "-c", "tiny.yaml")
    before = files_in(folder)
    one_line(run("fit", "-c", "tiny.yaml", "--ckpt_path", "last", cwd=folder), 4, "--ckpt_path")
    leaves_nothing(folder, before)


@pytest.mark.parametrize(
    "signum",
    [
        pytest.param(signal.SIGKILL, marks=fault("kill -9 in the middle of find-lr")),
        pytest.param(signal.SIGINT, marks=fault("Ctrl-C in the middle of find-lr")),
    ],
)
def test_find_lr_leaves_nothing(folder: Path, signum: int) -> None:
    before = files_in(folder)
    result = ended(folder, signum, 5, "find-lr", "-c", "tiny.yaml", "--csv", "out/lr.csv", "--plot", "lr.png")
    check_end(result, signum, end="")
    leaves_nothing(folder, before)
    ends_well(run("find-lr", "-c", "tiny.yaml", "--csv", "out/lr.csv", "--plot", "lr.png", cwd=folder), "valley")
    leaves_nothing(folder, {**before, **{name: files_in(folder)[name] for name in ("out", "out/lr.csv", "lr.png")}})


@fault("a range test that finds nothing")
def test_nothing_found(folder: Path) -> None:
    before = files_in(folder)
    rates = ("--trainer.callbacks.min_lr", "1e-20", "--trainer.callbacks.max_lr", "2e-20")
    error = ("--trainer.callbacks.on_failure", "error")
    one_line(run("fit", "-c", "tiny.yaml", *rates, *error, cwd=folder), 5, "LRFinder: ")
    leaves_nothing(folder, before, run=FIRST)


@fault("a figure of find-lr in a folder that there is not")
def test_no_folder_for_the_figure(folder: Path) -> None:
    before = files_in(folder)
    one_line(run("find-lr", "-c", "tiny.yaml", "--plot", "nowhere/lr.png", cwd=folder), 6, "--plot", "nowhere")
    leaves_nothing(folder, before)


@fault("a table of find-lr in the place of a folder")
def test_folder_in_the_place_of_the_table(folder: Path) -> None:
    (folder / "lr.csv").mkdir()
    before = files_in(folder)
    one_line(run("find-lr", "-c", "tiny.yaml", "--csv", "lr.csv", cwd=folder), 6, "lr.csv")
    leaves_nothing(folder, before)

"""Where a fit goes on, in folders written by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.runs.checkpoint_file import RESUME, read_checkpoint_file, write_checkpoint
from cifar_resnets.runs.resume import (
    START,
    Start,
    agreed_checkpoint,
    find_start,
    identity,
    newest_good,
    pass_to_children,
)
from cifar_resnets.runs.run_dir import lock_run_dir

ARGS = ["fit", "-c", "r.yaml"]


WHOLE = read_checkpoint_file(Path(__file__).parent.parent / "fixtures/v0.1.0/checkpoints/last.ckpt")


def content(run: str) -> dict[str, Any]:
    return {**WHOLE, "continuation": {**WHOLE["continuation"], "run_dir": run}}


def run_of(start: Start) -> str:
    assert start.content is not None
    return str(start.content["continuation"]["run_dir"])


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def add_run(root: Path, number: int, *names: str, args: list[str] = ARGS) -> Path:
    folder = root / f"x/version_{number}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(identity(args)))
    for age, name in enumerate(reversed(names)):
        write_checkpoint(content(f"before/x/version_{number}"), folder / "checkpoints" / name)
        os.utime(folder / "checkpoints" / name, (1000 + age, 1000 + age))
    return folder


def release(start: Start) -> Start:
    assert start.lock is not None
    os.close(start.lock)
    return start


def test_auto_without_a_run_starts_anew(tmp_path: Path) -> None:
    assert find_start("auto", tmp_path, "x", ARGS) == Start()
    assert find_start(None, tmp_path, "x", ARGS) == Start()


def test_a_fresh_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(*args: str) -> str:
        return find_start("auto", tmp_path, "x", [*ARGS, *args]).note

    assert reason() == f"--ckpt_path auto: no run in {tmp_path}/x can be resumed: there is none; starting anew"
    run = add_run(tmp_path, 0)
    assert "can be resumed: none is of this command line; starting anew" in reason("--model.lr", "1")
    lock = lock_run_dir(run)
    assert "each run of this command line is still going on" in reason()
    assert lock is not None
    os.close(lock)
    start = release(find_start("auto", tmp_path, "x", ARGS))
    assert start.note == f"there is no checkpoint in {run}/checkpoints, starting anew"
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    assert "none is of this command line and job" in reason()


def test_last_takes_no_run_of_an_evaluation(tmp_path: Path) -> None:
    trained = add_run(tmp_path, 0, "last.ckpt")
    for number, command in ((1, "test"), (2, "predict")):
        (add_run(tmp_path, number) / "run.json").write_text(json.dumps({"subcommand": command}))
    assert release(find_start("last", tmp_path, "x", ARGS)).run_dir == trained


def test_last_advises_auto_only_where_it_helps(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "last.ckpt")
    (tmp_path / "x").rename(tmp_path / "y")
    with pytest.raises(CheckpointError, match=r"is of another run, .*; give the path of a checkpoint$"):
        find_start("last", tmp_path, "y", ARGS)
    add_run(tmp_path, 0, "best.ckpt")
    with pytest.raises(CheckpointError, match="auto takes the newest good one$"):
        find_start("last", tmp_path, "x", ARGS)


def test_auto_takes_the_newest_run_of_this_command_line(tmp_path: Path) -> None:
    add_run(tmp_path, 2, "last.ckpt")
    mine = add_run(tmp_path, 10, "last.ckpt")
    add_run(tmp_path, 11, "last.ckpt", args=[*ARGS, "--model.lr", "1"])
    for words in (["--ckpt_path", "auto"], ["--ckpt_path=auto"]):
        start = release(find_start("auto", tmp_path, "x", [*ARGS[:1], *words, *ARGS[1:]]))
        assert (start.run_dir, start.checkpoint) == (mine, mine / "checkpoints/last.ckpt")


def test_auto_takes_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    start = release(find_start("auto", tmp_path, "x", [*(a for a in ARGS)])) if add_run(tmp_path, 0) else None
    assert start is not None
    assert (start.run_dir, start.checkpoint) == (tmp_path / "x/version_0", None)


def test_another_job_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(tmp_path, 0, "last.ckpt")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    assert find_start("auto", tmp_path, "x", ARGS) == Start()
    mine = add_run(tmp_path, 1, "last.ckpt")
    assert release(find_start("auto", tmp_path, "x", ARGS)).run_dir == mine
    monkeypatch.setenv("SLURM_JOB_ID", "6")
    assert find_start("auto", tmp_path, "x", ARGS) == Start()


def test_a_run_that_is_going_on_is_left_alone(tmp_path: Path) -> None:
    older, newer = add_run(tmp_path, 0, "last.ckpt"), add_run(tmp_path, 1, "last.ckpt")
    lock = lock_run_dir(newer)
    assert lock is not None
    assert release(find_start("auto", tmp_path, "x", ARGS)).run_dir == older
    with pytest.raises(ConfigurationError, match="version_1 is still going on"):
        find_start("last", tmp_path, "x", ARGS)
    os.close(lock)
    assert release(find_start("last", tmp_path, "x", ARGS)).run_dir == newer


def test_last_takes_the_newest_run_whatever_its_command_line(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "last.ckpt")
    newest = add_run(tmp_path, 1, "last.ckpt", args=["fit", "other"])
    start = release(find_start("last", tmp_path, "x", ARGS))
    assert (start.run_dir, start.checkpoint) == (newest, newest / "checkpoints/last.ckpt")


def test_last_is_never_replaced_by_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run in"):
        find_start("last", tmp_path, "x", ARGS)
    add_run(tmp_path, 0, "best.ckpt")
    with pytest.raises(CheckpointError, match=r"there is no file .*last\.ckpt; auto takes the newest good one"):
        find_start("last", tmp_path, "x", ARGS)


def test_a_file_is_gone_on_from_in_a_folder_of_its_own(tmp_path: Path) -> None:
    path = add_run(tmp_path, 0, "last.ckpt") / "checkpoints/last.ckpt"
    start = find_start(str(path), tmp_path, "x", ARGS)
    assert start == Start(checkpoint=path)
    assert run_of(start) == "before/x/version_0"
    with pytest.raises(CheckpointError, match=r"there is no file a/b\.ckpt"):
        find_start("a/b.ckpt", tmp_path, "x", ARGS)


def test_the_newest_good_one_and_what_is_wrong_with_the_others(tmp_path: Path) -> None:
    run = add_run(tmp_path, 0, "last.ckpt", "previous.ckpt", "best.ckpt")
    folder = run / "checkpoints"
    assert newest_good(folder, run) == Start(run, folder / "last.ckpt")
    assert run_of(newest_good(folder, run)) == "before/x/version_0"
    (folder / "last.ckpt").write_bytes(b"")
    (folder / "weights.ckpt").write_bytes(b"PK")
    start = newest_good(folder, run)
    assert start.checkpoint == folder / "previous.ckpt"
    assert len(start.warnings) == 2
    assert all(warning.endswith(f"going on from {start.checkpoint}") for warning in start.warnings)
    for each in folder.iterdir():
        each.write_bytes(b"")
    assert newest_good(folder, run).checkpoint is None


def test_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    write_checkpoint({"state_dict": {}}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"w\.ckpt holds no run that could be resumed.*--model\.weights"):
        read_checkpoint_file(tmp_path / "w.ckpt", RESUME)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"job": null}', "{"])
def test_a_record_that_is_damaged_is_of_no_run(text: str, tmp_path: Path) -> None:
    (add_run(tmp_path, 0, "last.ckpt") / "run.json").write_text(text)
    assert find_start("auto", tmp_path, "x", ARGS) == Start()


def test_checkpoints_elsewhere_may_be_of_several_runs(tmp_path: Path) -> None:
    mine, shared = add_run(tmp_path, 3), tmp_path / "shared"
    shared.mkdir()
    write_checkpoint(content("x/version_3"), shared / "mine.ckpt")
    os.utime(shared / "mine.ckpt", (1000, 1000))
    write_checkpoint(content("x/version_2"), shared / "last.ckpt")
    start = release(find_start("auto", tmp_path, "x", ARGS, shared))
    assert (start.run_dir, start.checkpoint) == (mine, shared / "mine.ckpt")
    with pytest.raises(CheckpointError, match="is of another run, x/version_2"):
        find_start("last", tmp_path, "x", ARGS, shared)


class Launched(DDPStrategy):
    """As a scheduler has started it; rank 0 has told it `of rank 0`."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster_environment = TorchElasticEnvironment()
        self.is_set_up = False

    def setup_environment(self) -> None:
        self.is_set_up = True

    def broadcast(self, obj: object, src: int = 0) -> object:
        assert self.is_set_up
        return "of rank 0"


@pytest.mark.parametrize(
    ("strategy", "rank", "parent", "expected"),
    [
        (SingleDeviceStrategy(), "0", os.getppid, "own"),
        (DDPStrategy(), "1", os.getppid, "of the parent"),
        (Launched(), "1", os.getppid, "of the parent"),  # as Lightning's own environment is when it has started it
        (Launched(), "0", os.getppid, "of rank 0"),
        (Launched(), "1", os.getpid, "of rank 0"),  # what a fit has left behind that has started torchrun
    ],
)
def test_what_all_ranks_go_on_from(
    strategy: Strategy, rank: str, parent: Callable[[], int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv(START, json.dumps([parent(), "of the parent"]))
    assert agreed_checkpoint(Path("own"), strategy) == expected


def test_a_checkpoint_is_passed_to_children_with_the_id_of_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(START, "")
    pass_to_children(None)
    assert json.loads(os.environ[START]) == [os.getpid(), None]
    pass_to_children(Path("a.ckpt"))
    assert json.loads(os.environ[START]) == [os.getpid(), "a.ckpt"]


def test_pipes_and_deep_records_in_a_log_folder_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    os.mkfifo(tmp_path / "x/version_9")
    with pytest.raises(CheckpointError, match="there is no run"):
        find_start("last", tmp_path, "x", ARGS)
    for number in (2, 3):
        (tmp_path / f"x/version_{number}").mkdir()
    os.mkfifo(tmp_path / "x/version_2/run.json")
    (tmp_path / "x/version_3/run.json").write_text("[" * 100_000)
    assert find_start("auto", tmp_path, "x", ARGS).run_dir is None
    with pytest.raises(CheckpointError, match="version_3"):
        find_start("last", tmp_path, "x", ARGS)

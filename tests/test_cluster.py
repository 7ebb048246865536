"""`scripts/train.sbatch` and `scripts/sweep.sbatch` on a real SLURM: two nodes, requeued jobs, arrays."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from exactness import differences
from processes import run_two_ranks
from slurm_cluster import HOST, Cluster, slurm_cluster
from support import TINY

pytestmark = [pytest.mark.process, pytest.mark.cluster]

ROOT = Path(__file__).parents[1]
TRAIN = "scripts/train.sbatch"
ON_CPU = {"HARDWARE": "configs/hardware/cpu.yaml"}
# says what it was called with, and ends with the status it is given
PROGRAM = """#!/usr/bin/env bash
echo "$SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME, $OMP_NUM_THREADS threads: $*"
trap 'sleep 1; echo "rank $SLURM_PROCID has saved"; exit 143' TERM
case "$*" in *wait*) while true; do sleep 0.1; done ;; *fails*) exit $((SLURM_PROCID + 4)) ;; esac
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # many a cluster requeues what ends with 75 by itself: a job that has already done so must not be requeued twice
    with slurm_cluster("RequeueExit=75") as cluster:
        yield cluster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository's folder, with logs of its own."""
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def called(folder: Path) -> Path:
    """A repository's folder whose program only says what it was called with."""
    (folder / ".venv").unlink()
    program = folder / ".venv/bin/cifar-resnets"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    return folder


def output(folder: Path, job: str) -> str:
    """What a job has written so far, or a task of an array."""
    path = folder / f"slurm-{job}.out"
    return path.read_text() if path.exists() else ""


def run(cluster: Cluster, folder: Path, *args: str, **env: str) -> tuple[dict[str, str], list[str]]:
    """What SLURM says of a job at its end, and what it has written, in the order of ranks."""
    job = cluster.submit(*args, cwd=folder, env=env)
    [end] = cluster.wait(job)
    return end, sorted(output(folder, job).splitlines())


# What a job is.


def test_a_process_per_gpu_on_each_node(cluster: Cluster, called: Path) -> None:
    options = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=2"]
    end, lines = run(cluster, called, *options, TRAIN, "recipe.yaml", "--model.lr", "0.1")
    args = "fit -c recipe.yaml -c slurm --trainer.num_nodes 2 --trainer.devices 2"
    said = f"2 threads: {args} --trainer.strategy ddp --model.lr 0.1"
    nodes = [HOST, HOST, f"{HOST}-2", f"{HOST}-2"]
    assert lines == [f"{rank} of 4 on {node}, {said}" for rank, node in enumerate(nodes)]
    assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0")


@pytest.mark.parametrize("options", [["--gpus-per-node=2"], ["--gres=gpu:2"]])
def test_processes_share_a_cpu_when_no_more_were_asked_for(cluster: Cluster, called: Path, options: list[str]) -> None:
    end, lines = run(cluster, called, *options, TRAIN, "recipe.yaml")
    assert [line.partition(":")[0] for line in lines] == [f"{rank} of 2 on {HOST}, 1 threads" for rank in range(2)]
    assert end["JobState"] == "COMPLETED"


def test_without_gpus_a_process_per_task_on_the_cpu(cluster: Cluster, called: Path) -> None:
    end, lines = run(cluster, called, "--ntasks-per-node=2", "--cpus-per-task=2", TRAIN, "recipe.yaml")
    args = "fit -c recipe.yaml -c cpu --trainer.num_nodes 1 --trainer.devices 2"
    assert lines == [f"{rank} of 2 on {HOST}, 2 threads: {args} --trainer.strategy ddp" for rank in range(2)]


def test_one_process_needs_no_strategy_and_an_array_gives_the_seed(cluster: Cluster, called: Path) -> None:
    job = cluster.submit(
        "--array=3,5", "--cpus-per-task=3", TRAIN, "recipe.yaml", cwd=called, env={"HARDWARE": "my.yaml"}
    )
    cluster.wait(job)
    for seed in (3, 5):
        args = "fit -c recipe.yaml -c my.yaml --trainer.num_nodes 1 --trainer.devices 1"
        [line] = output(called, f"{job}_{seed}").splitlines()
        assert line.endswith(f", 3 threads: {args} --seed_everything {seed}")


def test_the_job_ends_with_the_status_of_the_program(cluster: Cluster, called: Path) -> None:
    end, _ = run(cluster, called, "--ntasks-per-node=2", TRAIN, "recipe.yaml", "fails")
    assert (end["JobState"], end["ExitCode"]) == ("FAILED", "5:0")


def test_a_cancelled_job_has_time_for_a_checkpoint(cluster: Cluster, called: Path) -> None:
    job = cluster.submit("--nodes=2", TRAIN, "recipe.yaml", "wait", cwd=called)
    cluster.wait_for(job, lambda: output(called, job).count("threads") == 2, "two processes")
    cluster.command("scancel", job)
    [end] = cluster.wait(job)
    assert end["JobState"] == "CANCELLED"
    assert all(f"rank {rank} has saved" in output(called, job) for rank in range(2))


def test_a_missing_recipe_is_named(cluster: Cluster, called: Path) -> None:
    end, lines = run(cluster, called, TRAIN, "--model.lr", "0.1")
    assert end["ExitCode"] == "2:0"
    assert lines == [f"{TRAIN}: the recipe is missing: sbatch [OPTION...] {TRAIN} RECIPE [OVERRIDE...]"]


# What it leaves.


def submit(cluster: Cluster, folder: Path, *args: str) -> str:
    return cluster.submit(*args, "--explain", "null", cwd=folder, env=ON_CPU)


def started_again(cluster: Cluster, job: str) -> None:
    """Sends a job the signal of the time limit, waits until it is back in the queue, and lets it start at once."""
    cluster.command("scancel", "--signal=USR1", job)
    cluster.wait_for(job, lambda: cluster.show(job)[0]["JobState"] == "PENDING", "its return to the queue")
    cluster.command("scontrol", "update", f"jobid={job}", "starttime=now")


def num_epochs(folder: Path, job: str) -> int:
    """How many epochs a job says it has trained."""
    return len(re.findall(r"^epoch ", output(folder, job), re.MULTILINE))


def test_a_requeued_job_leaves_what_an_uninterrupted_one_does(cluster: Cluster, folder: Path) -> None:
    epochs = ["--trainer.max_epochs", "25"]
    job = submit(cluster, folder, "--nodes=2", TRAIN, "tiny.yaml", *epochs)
    cluster.wait_for(job, lambda: num_epochs(folder, job) >= 4, "some epochs")
    started_again(cluster, job)
    [end] = cluster.wait(job)
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", "1")
    said = [line for line in output(folder, job).splitlines() if line.startswith("cifar-resnets: ")]
    line = "cifar-resnets: stopped by SIGUSR1 and requeued; the checkpoint is logs/tiny/version_0/checkpoints/last.ckpt"
    assert said == [line]
    assert [path.name for path in (folder / "logs/tiny").iterdir()] == ["version_0"]
    args = ["-c", "tiny.yaml", "-c", "cpu", *epochs, "--explain", "null", "--trainer.default_root_dir", "straight"]
    run_two_ranks("fit", *args, cwd=folder)
    assert differences(folder / "straight/tiny/version_0", folder / "logs/tiny/version_0") == []


def test_a_sweep_is_collected_although_a_task_was_requeued(cluster: Cluster, folder: Path) -> None:
    args = ["scripts/sweep.sbatch", "tiny.yaml", "--seeds", "3", "5", "--trainer.max_epochs", "40"]
    job = submit(cluster, folder, "--array=0-1", "--gpus-per-node=0", *args)
    task = f"{job}_1"
    cluster.wait_for(job, lambda: num_epochs(folder, task) >= 3, "some epochs")
    started_again(cluster, task)
    ends = cluster.wait(job)
    assert sorted((end["ArrayTaskId"], end["JobState"], end["Restarts"]) for end in ends) == [
        ("0", "COMPLETED", "0"),
        ("1", "COMPLETED", "1"),
    ]
    assert len(list((folder / "logs/tiny").iterdir())) == 2
    table = json.loads(cluster.command(".venv/bin/cifar-resnets", "collect", "logs", "--format", "json", cwd=folder))
    assert [[run["seed"] for run in group["runs"]] for group in table["groups"]] == [[3, 5]]

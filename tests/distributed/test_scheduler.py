"""Jobs of schedulers, by the variables that SLURM and torchrun set."""

from __future__ import annotations

from pathlib import Path

import pytest

from cifar_resnets.distributed.scheduler import (
    forget_leftovers,
    is_restarted,
    is_under_torchrun,
    job_name,
    rank_by_environment,
    requeue,
)

ARRAY = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2"}


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "slurm 12"),
        (ARRAY, "slurm 10_2"),
        ({"TORCHELASTIC_RUN_ID": "none"}, None),
        ({"TORCHELASTIC_RUN_ID": "mine"}, "torchrun mine"),
        ({"SLURM_JOB_ID": "12", "TORCHELASTIC_RUN_ID": "mine"}, "slurm 12"),
    ],
)
def test_the_name_of_a_job(env: dict[str, str], name: str | None) -> None:
    assert job_name(env) == name


def test_a_job_that_was_restarted() -> None:
    assert not is_restarted({})
    assert not is_restarted({"SLURM_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none"})
    assert is_restarted({"SLURM_RESTART_COUNT": "1"})
    assert is_restarted({"TORCHELASTIC_RUN_ID": "mine"})


def test_torchrun_names_its_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not is_under_torchrun()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert is_under_torchrun()


def test_the_rank_of_this_process() -> None:
    assert rank_by_environment({}) == 0
    assert rank_by_environment({"RANK": "4", "LOCAL_RANK": "0"}) == 4  # the first of another node
    assert rank_by_environment({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}) == 1
    assert rank_by_environment({"LOCAL_RANK": "2"}) == 2


@pytest.mark.parametrize(
    "env",
    [
        {"SLURM_PROCID": "1"},
        {"LOCAL_RANK": "1"},
        {"RANK": "abc"},
        {"RANK": "1", "WORLD_SIZE": "1"},
        {"RANK": "1", "WORLD_SIZE": "two"},
        {"NODE_RANK": "-1", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "2"},
        {"SLURM_NTASKS": "2"},
    ],
)
def test_ranks_that_are_left_over_from_another_job_are_forgotten(env: dict[str, str]) -> None:
    forget_leftovers(env)
    assert not env
    assert rank_by_environment(env) == 0


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4"},  # torchrun
        {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"},  # Lightning
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    ],
)
def test_ranks_of_launchers_are_kept(env: dict[str, str]) -> None:
    before = dict(env)
    forget_leftovers(env)
    assert env == before


def test_a_count_of_restarts_that_is_no_number_is_none() -> None:
    assert not is_restarted({"SLURM_RESTART_COUNT": "abc"})


@pytest.mark.parametrize(
    ("script", "problem"),
    [('echo "$@" >"$0.called"', None), ("echo not allowed >&2; exit 1", "not allowed"), (None, "there is no scontrol")],
)
def test_requeueing(script: str | None, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if script else str(tmp_path))
    if script:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)
    answer = requeue(ARRAY)
    assert answer is None if problem is None else problem in str(answer)
    if problem is None:
        assert (tmp_path / "scontrol.called").read_text() == "requeue 10_2\n"


def test_only_a_job_of_slurm_can_be_requeued() -> None:
    assert requeue({"TORCHELASTIC_RUN_ID": "mine"}) == "this is no SLURM job"

"""The job of SLURM, or the launch of torchrun, that a process belongs to."""

import os
import shutil
import subprocess
from collections.abc import Mapping, MutableMapping

UNNAMED = "none"  # torchrun's name of a launch without `--rdzv-id`
REQUEUE_TIMEOUT = 60  # seconds for `scontrol`


def job_name(env: Mapping[str, str] | None = None) -> str | None:
    """Returns the name of the SLURM job, or torchrun launch, of this process; None without either.

    It stays the same when the job is requeued, or the launch restarted.

    Args:
        env: environment variables; those of this process if not given.
    """
    env = os.environ if env is None else env
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"slurm {env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}"
    if "SLURM_JOB_ID" in env:
        return f"slurm {env['SLURM_JOB_ID']}"
    if env.get("TORCHELASTIC_RUN_ID", UNNAMED) != UNNAMED:
        return f"torchrun {env['TORCHELASTIC_RUN_ID']}"
    return None


def is_restarted(env: Mapping[str, str] | None = None) -> bool:
    """Returns whether the job may have run before: SLURM has requeued it, or it is a torchrun launch with a name.

    torchrun's own count of restarts begins at 0 again with each agent.

    Args:
        env: environment variables; those of this process if not given.
    """
    env = os.environ if env is None else env
    if env.get("TORCHELASTIC_RUN_ID", UNNAMED) != UNNAMED:
        return True
    return _is_below("0", env.get("SLURM_RESTART_COUNT", ""))


# what numbers a process, and the number of processes, which a launcher always sets with it
_NUMBERS = {"WORLD_SIZE": ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"), "SLURM_NTASKS": ("SLURM_PROCID",)}


def forget_leftovers(env: MutableMapping[str, str]) -> None:
    """Removes ranks that no launcher has given this process: a shell may have kept one of them from an earlier job.

    A process that took itself for rank 1 would write no files, and wait for a rank 0 that there is not.

    Args:
        env: environment variables; changed in place.
    """
    for total, names in _NUMBERS.items():
        for name in names:
            if name in env and not _is_below(env[name], env.get(total, "")):
                del env[name]
        if not env.keys() & set(names):
            env.pop(total, None)


def _is_below(number: str, total: str) -> bool:
    return number.isdecimal() and total.isdecimal() and int(number) < int(total)


def rank_by_environment(env: Mapping[str, str] | None = None) -> int:
    """Returns the rank that torchrun, SLURM or Lightning has given this process in its environment; 0 without one."""
    env = os.environ if env is None else env
    return int(next((env[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if env.get(name)), 0))


def is_under_torchrun() -> bool:
    """Returns whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def requeue(env: Mapping[str, str] | None = None) -> str | None:
    """Requeues the SLURM job.

    Args:
        env: environment variables; those of this process if not given.

    Returns:
        The reason if it could not be requeued, or None.
    """
    job = job_name(env)
    if job is None or not job.startswith("slurm "):
        return "this is no SLURM job"
    if (scontrol := shutil.which("scontrol")) is None:
        return "there is no scontrol"
    try:
        command = [scontrol, "requeue", job.removeprefix("slurm ")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=REQUEUE_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        return f"scontrol requeue: {error}"
    return None if done.returncode == 0 else f"scontrol requeue: {done.stderr.strip() or done.stdout.strip()}"

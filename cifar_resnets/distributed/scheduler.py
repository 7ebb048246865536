"""The scheduler's job that a run belongs to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

UNNAMED = "none"  # what torchrun calls a launch that nobody has named
REQUEUE_TIMEOUT = 60  # seconds that `scontrol` may take


def job_name(env: Mapping[str, str] | None = None) -> str | None:
    """What identifies the job of SLURM, or the launch of torchrun, that this process belongs to; None without either.

    It stays the same when the job is requeued, or the launch restarted.

    Args:
        env: variables of the environment; the process' own if not given.
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
    """Whether the job may have run before: SLURM has requeued it, or it is a launch of torchrun that has a name.

    How often torchrun has restarted its processes does not tell: it starts anew with each agent.
    """
    env = os.environ if env is None else env
    if env.get("TORCHELASTIC_RUN_ID", UNNAMED) != UNNAMED:
        return True
    return int(env.get("SLURM_RESTART_COUNT") or 0) > 0


def rank_by_environment(env: Mapping[str, str] | None = None) -> int:
    """Which of a run's processes this one is, as far as torchrun, SLURM or Lightning have told it; 0 is the first."""
    env = os.environ if env is None else env
    return int(next((env[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if env.get(name)), 0))


def requeue(env: Mapping[str, str] | None = None) -> str | None:
    """Puts the job of SLURM into its queue again; why it could not be done, or None.

    Args:
        env: variables of the environment; the process' own if not given.
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

"""Which run a fit goes on with, in which folder, from which checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import Strategy

from cifar_resnets.distributed.scheduler import job_name, rank_by_environment
from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.runs.checkpoint_file import KEY, read_checkpoint_file
from cifar_resnets.runs.log_files import copy_logs
from cifar_resnets.runs.run_dir import CHECKPOINTS, LAST, RECORD, lock_run_dir, run_dirs
from cifar_resnets.support.atomic_file import replacing

START = "CIFAR_RESNETS_START"  # variable: a process and the checkpoint that it goes on from
WAIT = 60  # seconds for the processes of a job that was requeued to end


@dataclass(frozen=True)
class Start:
    """Where a fit begins.

    Args:
        run_dir: folder that it goes on in; a new one if None.
        checkpoint: that it goes on from; a fresh start if None.
        warnings: what is to be told, a line each.
        lock: what reserves the folder for this process.
    """

    run_dir: Path | None = None
    checkpoint: Path | None = None
    warnings: tuple[str, ...] = ()
    lock: int | None = None


def find_start(
    ckpt_path: str | None, root: Path, name: str, args: Sequence[str], elsewhere: Path | None = None
) -> Start:
    """What a fit goes on with.

    Args:
        ckpt_path: `last`: the newest run of this name; `auto`: the newest run of this command line, of the same job if
            a scheduler has started it, or a fresh start; or a file, from which a new run goes on.
        root: of all logs.
        name: of the run.
        args: the command line.
        elsewhere: folder of the checkpoints, if it is not below that of the run.

    Raises:
        CheckpointError: when there is no such run, or no checkpoint of it that can be read.
        ConfigurationError: when the run is still going on.
    """
    if ckpt_path == "last":
        return _last(root, name, elsewhere)
    if ckpt_path == "auto":
        return _auto(root, name, identity(args), elsewhere)
    return Start(checkpoint=None if ckpt_path is None else Path(ckpt_path))


def identity(args: Sequence[str]) -> dict[str, Any]:
    """What a run is recognised by when it is started again: its command line, but for the checkpoint, and its job."""
    words, skip = [], False
    for word in args:
        if not (skip or word == "--ckpt_path" or word.startswith("--ckpt_path=")):
            words.append(word)
        skip = word == "--ckpt_path"
    return {"job": job_name(), "command_digest": hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]}


def read_resumable(path: Path) -> dict[str, Any]:
    """Reads a checkpoint that a fit can go on from.

    Raises:
        CheckpointError: when it is missing, damaged, or something else.
    """
    content = read_checkpoint_file(path)
    if not isinstance(content, dict) or not {KEY, "loops", "optimizer_states", "state_dict"} <= content.keys():
        raise CheckpointError(f"{path} holds no run that could be resumed, give a file of weights as --model.weights")
    return content


def hand_down(checkpoint: Path | None) -> None:
    """Tells the processes that Lightning is going to start from this one where the fit goes on.

    Args:
        checkpoint: that it goes on from; a fresh start if None.
    """
    os.environ[START] = json.dumps([os.getpid(), None if checkpoint is None else str(checkpoint)])


def agreed_checkpoint(checkpoint: Path | None, strategy: Strategy) -> str | None:
    """The checkpoint that rank 0 goes on from, on all ranks.

    Args:
        checkpoint: of this rank; only that of rank 0 counts.
        strategy: of the Trainer.
    """
    path: str | None
    parent, path = json.loads(os.environ.get(START, "[0, null]"))
    if rank_by_environment() > 0 and parent == os.getppid():
        return path
    path = None if checkpoint is None else str(checkpoint)
    environment = getattr(strategy, "cluster_environment", None)
    if environment is not None and environment.creates_processes_externally:
        strategy.setup_environment()  # a scheduler has started all ranks at once: none has been told anything
        path = strategy.broadcast(path)
    return path


def branch_off(source: Path, content: dict[str, Any], run_dir: Path) -> None:
    """Copies what a run had logged, and its best checkpoints, for a run that goes on from it in a folder of its own.

    Args:
        source: a checkpoint of the run; what lies elsewhere than `fit` puts it is left out.
        content: of that checkpoint.
        run_dir: the other folder.
    """
    if logged := content[KEY]["logged"]:
        copy_logs(source.parent.parent, run_dir, logged)
    for state in content["callbacks"].values():
        for name in (Path(path).name for path in state.get("best_k_models", ())):
            best = source.with_name(name)
            # a file that was replaced since belongs to what came after this checkpoint
            if best.is_file() and read_checkpoint_file(best)["global_step"] <= content["global_step"]:
                target = run_dir / CHECKPOINTS / name
                target.parent.mkdir(exist_ok=True)
                with replacing(target) as copy:
                    copy.write(best.read_bytes())


def _last(root: Path, name: str, elsewhere: Path | None) -> Start:
    folder = next(iter(run_dirs(root, name)), None)
    if folder is None:
        raise CheckpointError(f"--ckpt_path last: there is no run in {root / name}, leave it out or give auto")
    if (lock := lock_run_dir(folder)) is None:
        raise ConfigurationError(f"--ckpt_path last: the run in {folder} is still going on")
    path = (elsewhere or folder / CHECKPOINTS) / LAST
    try:
        _read_of(path, folder)
    except CheckpointError as error:
        raise CheckpointError(f"--ckpt_path last: {error}; auto takes the newest good one") from error
    return Start(folder, path, lock=lock)


def _auto(root: Path, name: str, wanted: dict[str, Any], elsewhere: Path | None) -> Start:
    for folder in run_dirs(root, name):
        if _identity_of(folder) != wanted:
            continue
        # the processes of the job may still be ending; without a job, it is another run of the same command line
        if (lock := _lock(folder, WAIT if wanted["job"] else 0)) is None:
            continue
        checkpoint, warnings = newest_good(elsewhere or folder / CHECKPOINTS, folder)
        return Start(folder, checkpoint, tuple(warnings), lock)
    return Start()


def _lock(folder: Path, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while (lock := lock_run_dir(folder)) is None and time.monotonic() < end:
        time.sleep(0.2)
    return lock


def newest_good(folder: Path, run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that a fit can go on from, and what is wrong with those that are newer.

    Args:
        folder: of the checkpoints.
        run_dir: folder of the run.
    """
    warnings: list[str] = []
    for path in _newest_first(folder):
        try:
            _read_of(path, run_dir)
            return path, [f"{warning}: going on from {path}" for warning in warnings]
        except CheckpointError as error:
            warnings.append(str(error))
    return None, [f"{warning}: there is no other checkpoint, starting anew" for warning in warnings]


def _read_of(path: Path, run_dir: Path) -> None:
    """Reads a checkpoint, which has to be of a run: several may write theirs into one folder."""
    written_by = read_resumable(path)[KEY]["run_dir"]
    # the last two folders: by what path they are reached may have changed
    if written_by is None or Path(written_by).parts[-2:] != run_dir.parts[-2:]:
        raise CheckpointError(f"{path} is of another run, {written_by}")


def _newest_first(folder: Path) -> Iterator[Path]:
    # at the same time, which a coarse clock makes possible, `last` is written last
    found = [path for path in folder.glob("*.ckpt") if path.is_file()]
    yield from sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name == LAST), reverse=True)


def _identity_of(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_text())
        return {"job": record["job"], "command_digest": record["command_digest"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None

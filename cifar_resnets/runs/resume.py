"""Finds the run and the checkpoint from which a fit goes on."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import Strategy

from cifar_resnets.distributed.scheduler import job_name, rank_by_environment
from cifar_resnets.errors import CheckpointError, ConfigurationError
from cifar_resnets.runs.checkpoint_file import BRANCH, KEY, RESUME, read_checkpoint_file
from cifar_resnets.runs.log_files import copy_logs
from cifar_resnets.runs.run_dir import CHECKPOINTS, LAST, lock_run_dir, read_start, run_dirs
from cifar_resnets.support.atomic_file import replacing

START = "CIFAR_RESNETS_START"  # variable of the environment: see `pass_to_children`
WAIT = 60  # seconds for the processes of a job that was requeued to end


@dataclass(frozen=True)
class Start:
    """Where a fit begins, or what an evaluation is of.

    Args:
        run_dir: folder of the run that goes on; None for a new one.
        checkpoint: from which it goes on, or which is evaluated; None for a fresh start.
        content: of the checkpoint, for the Trainer, which need not read it again.
        warnings: lines to print.
        lock: of the folder, see `lock_run_dir`.
        note: a line to print, why a fit that might have gone on starts anew.
    """

    run_dir: Path | None = None
    checkpoint: Path | None = None
    content: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    warnings: tuple[str, ...] = ()
    lock: int | None = None
    note: str = field(default="", compare=False)


def find_start(
    ckpt_path: str | None, root: Path, name: str, args: Sequence[str], elsewhere: Path | None = None
) -> Start:
    """Finds where a fit begins, and reads the checkpoint from which it goes on.

    Args:
        ckpt_path: `last`: the newest run of this name; `auto`: the newest run of this command line, of the same job if
            a scheduler has started it, or a fresh start; or a file, from which a new run goes on.
        root: folder of all runs.
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
    if ckpt_path is None:
        return Start()
    return Start(checkpoint=Path(ckpt_path), content=read_checkpoint_file(Path(ckpt_path), RESUME))


def identity(args: Sequence[str]) -> dict[str, Any]:
    """Returns what identifies a run that is started again: its job, and its command line without the checkpoint."""
    kept, skip = [], False
    for arg in args:
        if not (skip or arg == "--ckpt_path" or arg.startswith("--ckpt_path=")):
            kept.append(arg)
        skip = arg == "--ckpt_path"
    return {"job": job_name(), "command_digest": hashlib.sha256("\0".join(kept).encode()).hexdigest()[:16]}


def pass_to_children(checkpoint: Path | None) -> None:
    """Passes the path of the checkpoint, with the id of this process, to the processes that Lightning will start.

    Args:
        checkpoint: from which the fit goes on; None for a fresh start.
    """
    os.environ[START] = json.dumps([os.getpid(), None if checkpoint is None else str(checkpoint)])


def agreed_checkpoint(checkpoint: Path | None, strategy: Strategy) -> str | None:
    """Returns the path of the checkpoint from which rank 0 goes on, on all ranks.

    Args:
        checkpoint: as this rank found it; ignored on all ranks but 0.
        strategy: of the Trainer.
    """
    path: str | None
    parent, path = json.loads(os.environ.get(START, "[0, null]"))
    if rank_by_environment() > 0 and parent == os.getppid():
        return path
    path = None if checkpoint is None else str(checkpoint)
    environment = getattr(strategy, "cluster_environment", None)
    if environment is not None and environment.creates_processes_externally:
        strategy.setup_environment()  # a scheduler has started all ranks at once: rank 0 has no children
        path = strategy.broadcast(path)
    return path


def branch_off(source: Path, content: dict[str, Any], run_dir: Path) -> None:
    """Copies logs and best checkpoints of a run to the folder of another run, which goes on from its checkpoint.

    Args:
        source: the checkpoint; files that are not where `fit` puts them are left out.
        content: of the checkpoint.
        run_dir: folder of the other run.
    """
    if logged := content[KEY]["logged"]:
        copy_logs(source.parent.parent, run_dir, logged)
    for state in content["callbacks"].values():
        for name in (Path(path).name for path in state.get("best_k_models", ())):
            best = source.with_name(name)
            # a file that was replaced since is of a later step than the checkpoint
            found = content if best == source else read_checkpoint_file(best, BRANCH) if best.is_file() else None
            if found is not None and found["global_step"] <= content["global_step"]:
                target = run_dir / CHECKPOINTS / name
                target.parent.mkdir(exist_ok=True)
                with replacing(target) as copy:
                    copy.write(best.read_bytes())


def _last(root: Path, name: str, elsewhere: Path | None) -> Start:
    folder = next((each for each in run_dirs(root, name) if read_start(each).get("subcommand", "fit") == "fit"), None)
    if folder is None:
        raise CheckpointError(f"--ckpt_path last: there is no run in {root / name}, leave it out or give auto")
    if (lock := lock_run_dir(folder)) is None:
        raise ConfigurationError(f"--ckpt_path last: the run in {folder} is still going on")
    path = (elsewhere or folder / CHECKPOINTS) / LAST
    try:
        content = _read_of_run(path, folder)
    except CheckpointError as error:
        is_another = newest_good(path.parent, folder).checkpoint is not None
        remedy = "auto takes the newest good one" if is_another else "give the path of a checkpoint"
        raise CheckpointError(f"--ckpt_path last: {error}; {remedy}") from error
    return Start(folder, path, content, lock=lock)


def _auto(root: Path, name: str, wanted: dict[str, Any], elsewhere: Path | None) -> Start:
    folders = run_dirs(root, name)
    mine = [folder for folder in folders if _identity_of(folder) == wanted]
    for folder in mine:
        # the processes of the job may still be ending; without a job, it is another run of the same command line
        if (lock := lock_run_dir(folder, WAIT if wanted["job"] else 0)) is not None:
            return newest_good(elsewhere or folder / CHECKPOINTS, folder, lock)
    of = f"of this command line{' and job' if wanted['job'] else ''}"
    why = f"each run {of} is still going on" if mine else f"none is {of}" if folders else "there is none"
    return Start(note=f"--ckpt_path auto: no run in {root / name} can be resumed: {why}; starting anew")


def newest_good(folder: Path, run_dir: Path, lock: int | None = None) -> Start:
    """Finds and reads the newest checkpoint of a run from which a fit can go on; warns of newer ones that it cannot.

    Args:
        folder: of the checkpoints.
        run_dir: folder of the run.
        lock: of that folder.
    """
    warnings: list[str] = []
    for path in _newest_first(folder):
        try:
            content = _read_of_run(path, run_dir)
        except CheckpointError as error:
            warnings.append(str(error))
        else:
            return Start(run_dir, path, content, tuple(f"{each}: going on from {path}" for each in warnings), lock)
    none = "there is no other checkpoint, starting anew"
    note = "" if warnings else f"there is no checkpoint in {folder}, starting anew"
    return Start(run_dir, warnings=tuple(f"{each}: {none}" for each in warnings), lock=lock, note=note)


def _read_of_run(path: Path, run_dir: Path) -> dict[str, Any]:
    """Reads a checkpoint; raises CheckpointError if it is of another run, which may write to the same folder."""
    content = read_checkpoint_file(path, RESUME)
    written_by = content[KEY]["run_dir"]
    # the last two folders: those above may have other names now
    if written_by is None or Path(written_by).parts[-2:] != run_dir.parts[-2:]:
        raise CheckpointError(f"{path} is of another run, {written_by}")
    return content


def _newest_first(folder: Path) -> Iterator[Path]:
    # of files with equal times, which a coarse clock makes possible, `last` is the newest
    found = [path for path in folder.glob("*.ckpt") if path.is_file()]
    yield from sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name == LAST), reverse=True)


def _identity_of(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_start(folder)
        return {"job": record["job"], "command_digest": record["command_digest"]}
    except KeyError:
        return None

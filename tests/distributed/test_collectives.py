"""The number of ranks, asked of real process groups."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from cifar_resnets.distributed.collectives import world_size


def test_one_process_is_alone() -> None:
    assert world_size() == 1


def test_as_many_as_there_are(tmp_path: Path) -> None:
    mp.start_processes(_count, (str(tmp_path),), nprocs=2, start_method="fork")
    assert [(tmp_path / f"{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


def _count(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (Path(folder) / f"{rank}").write_text(str(world_size()))
    dist.barrier()  # the other one may still be connecting
    dist.destroy_process_group()

"""Two processes that agree, through a real process group."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from cifar_resnets.distributed.collectives import Agreement


def test_one_process_agrees_with_itself() -> None:
    assert Agreement()([3, 0]) == [3, 0]


def test_ranks_take_the_largest_of_what_each_says(tmp_path: Path) -> None:
    mp.start_processes(_agree, (str(tmp_path),), nprocs=2, start_method="fork")
    assert [(tmp_path / f"{rank}").read_text() for rank in (0, 1)] == ["[15, 1, 0]"] * 2


def _agree(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (Path(folder) / f"{rank}").write_text(str(Agreement()([15 * rank, 1 - rank, 0])))
    dist.barrier()  # the other one may still be connecting
    dist.destroy_process_group()

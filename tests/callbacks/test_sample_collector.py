"""The samples of an evaluation: their places in the data, for our loader and for PyTorch's, on one rank and on two."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from cifar_resnets.callbacks import collectors as module
from cifar_resnets.callbacks.collectors import SampleCollector
from cifar_resnets.data.loaders import EvalLoader
from cifar_resnets.evaluation.mistakes import HighestLosses, SamplesAt

NUM = 23


def on(rank: int, world_size: int) -> Any:
    """As much of a Trainer as is needed."""
    return SimpleNamespace(global_rank=rank, world_size=world_size)


def ours(rank: int, world_size: int) -> EvalLoader:
    images = torch.arange(NUM, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)
    statistics = {"mean": [0.0] * 3, "std": [1 / 255] * 3}
    return EvalLoader(images, torch.arange(NUM), batch_size=6, rank=rank, world_size=world_size, **statistics)


def dataset() -> TensorDataset:
    return TensorDataset(torch.arange(NUM)[:, None, None, None].expand(-1, 3, 2, 2).float(), torch.arange(NUM))


def theirs(rank: int, world_size: int) -> Any:
    sampler = DistributedSampler(dataset(), world_size, rank, shuffle=False)
    return DataLoader(dataset(), batch_size=4, sampler=sampler)


class Stream(IterableDataset):
    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def __iter__(self):
        yield from list(dataset())[self.rank :: self.world_size]


def stream(rank: int, world_size: int) -> Any:
    return [DataLoader(Stream(rank, world_size), batch_size=4)]


def collected(loader: Any, rank: int, world_size: int, *keepers: Any) -> SampleCollector:
    """The network takes all images for another class, the more confidently the earlier they come."""
    collector = SampleCollector(keepers, global_step=3)
    for step, batch in enumerate(loader[0] if isinstance(loader, list) else loader):
        logits = torch.zeros(len(batch[1]), NUM + 1)
        logits[:, NUM] = 1 + (NUM - batch[1]) / 4
        collector.update(on(rank, world_size), loader, step, batch, logits)
    return collector


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("make", [ours, theirs, stream])
def test_the_index_is_the_place_in_the_data_whatever_the_loader(make, world_size, monkeypatch):
    ranks = [
        collected(make(rank, world_size), rank, world_size, HighestLosses(4), SamplesAt([17, 2]), SamplesAt([]))
        for rank in range(world_size)
    ]
    mine = [[keeper.kept for keeper in collector.keepers] for collector in ranks]
    monkeypatch.setattr(module, "in_data_order", lambda trainer, parts: mine)
    top, same, none = ranks[0].pop(on(0, world_size))
    assert top is not None and same is not None and none is None
    assert torch.equal(top.index, top.labels) and torch.equal(top.images[:, 0, 0, 0].round().long(), top.labels)
    assert top.index.tolist() == [0, 1, 2, 3]
    assert same.index.tolist() == [17, 2]
    if make is theirs and world_size == 2:
        assert len(ranks[0].keepers[0].kept) == 4  # 12 images each: the first comes twice


def test_without_a_batch_there_is_nothing():
    assert SampleCollector([HighestLosses(3), SamplesAt([])], 0).pop(on(0, 1)) == [None, None]

"""The order of an epoch that shows each class equally often."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support import needs_gpu

from cifar_resnets.data.augment import Augmentation
from cifar_resnets.data.sampler import EpochSampler, balanced_order

COUNTS = [50, 3, 1, 20]


def labels_of(counts: list[int]) -> torch.Tensor:
    """In no order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(9))]


def sampler(seed: int = 0, epoch: int = 0, counts: list[int] = COUNTS, **changes) -> EpochSampler:
    labels = labels_of(counts)
    found = EpochSampler(len(labels), (8, 8), Augmentation(), seed, balanced_labels=labels, **changes)
    found.set_epoch(epoch)
    return found


@pytest.mark.parametrize("counts", [COUNTS, [5, 5], [1, 1000], [30, 0, 7, 2], [1, 2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_class_and_each_image_of_a_class_comes_as_often_up_to_one(counts, seed):
    labels = labels_of(counts)
    order = balanced_order(labels, torch.Generator().manual_seed(seed))
    assert len(order) == len(labels)
    present = [label for label, count in enumerate(counts) if count]
    of_class = Counter(labels[order].tolist())
    share = len(labels) / len(present)
    assert set(of_class) == set(present)
    assert all(abs(number - share) < 1 for number in of_class.values())
    times = torch.bincount(order, minlength=len(labels))
    for label in present:
        own = times[labels == label]
        assert own.max() - own.min() <= 1


def test_the_order_follows_from_seed_and_epoch_alone_and_no_two_are_the_same():
    orders = [sampler(seed, epoch).plan()[0] for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order.tolist()) for order in orders}) == 6
    torch.manual_seed(99)
    assert torch.equal(sampler(1, 2).plan()[0], orders[5])
    assert torch.equal(sampler(1, 2, repeats=True).plan()[0], orders[3])  # as `trainer.overfit_batches` wants


def test_frequent_classes_show_other_images_in_each_epoch_and_all_in_the_end():
    labels = labels_of(COUNTS)
    seen = [set(sampler(epoch=epoch).plan()[0].tolist()) for epoch in range(30)]
    frequent = set(torch.where(labels == 0)[0].tolist())
    assert all(len(each & frequent) in (18, 19) for each in seen)  # of 74 / 4
    assert set().union(*seen) == set(range(74))


def test_the_classes_are_mixed_within_an_epoch():
    order = sampler(counts=[900, 60, 40]).plan()[0]
    for part in labels_of([900, 60, 40])[order].split(250):
        assert all(50 < number < 120 for number in torch.bincount(part, minlength=3))


def test_which_class_has_one_image_more_is_chance():
    more = Counter()
    for epoch in range(60):
        order = sampler(epoch=epoch, counts=[4, 4, 5]).plan()[0]
        more[torch.bincount(labels_of([4, 4, 5])[order]).argmax().item()] += 1
    assert all(more[label] > 8 for label in range(3))


@needs_gpu
def test_on_a_gpu_it_is_drawn_there():
    order = balanced_order(labels_of(COUNTS).cuda(), torch.Generator("cuda").manual_seed(0))
    assert order.is_cuda
    assert sorted(Counter(labels_of(COUNTS)[order.cpu()].tolist()).values()) == [18, 18, 19, 19]

"""Random numbers of a step: a function of its keys alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cifar_resnets.training.seeding import seed_noise

CPU = torch.device("cpu")


def drawn(*keys: int) -> list[float]:
    seed_noise(CPU, *keys)
    values: list[float] = torch.rand(4).tolist()
    return values


def test_the_same_keys_draw_the_same() -> None:
    first = drawn(0, 3, 7, 1)
    torch.rand(1000)
    assert drawn(0, 3, 7, 1) == first


def test_each_key_counts() -> None:
    keys = [(0, 3, 7, 1), (1, 3, 7, 1), (0, 4, 7, 1), (0, 3, 8, 1), (0, 3, 7, 0), (3, 0, 7, 1)]
    assert len({tuple(drawn(*each)) for each in keys}) == len(keys)


def test_steps_in_a_row_are_independent() -> None:
    # the correlation of a thousand pairs of uniform numbers is within 0.1 but once in a thousand times
    firsts = torch.tensor([drawn(0, 0, batch, 0)[0] for batch in range(1001)])
    assert abs(torch.corrcoef(torch.stack([firsts[:-1], firsts[1:]]))[0, 1]) < 0.1
    assert abs(firsts.mean() - 0.5) < 0.05


@pytest.mark.parametrize("keys", [(0, 0, 0, 0), (0, 3, 63, 1), (7, 3, 64, 1), (2**32 - 1, 100_000, 12_345, 63)])
def test_a_seed_is_that_of_a_sequence_of_the_keys(keys: tuple[int, int, int, int]) -> None:
    """So it has been since version 0.1.0: a run that is resumed from a checkpoint goes on with the same numbers."""
    seed_noise(CPU, *keys)
    number = int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0])
    assert torch.default_generator.initial_seed() == number >> 1

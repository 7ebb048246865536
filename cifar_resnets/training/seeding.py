"""Seeds the random numbers of each training step."""

from __future__ import annotations

import numpy as np
import torch


def seed_noise(device: torch.device, *keys: int) -> None:
    """Seeds dropout and stochastic depth for a step, so that a resumed run draws the same numbers.

    Args:
        device: on which they are drawn.
        keys: identify the step: seed, epoch, batch, rank.
    """
    number = int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(number)  # takes a hundredth of the time of torch.manual_seed
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(number)

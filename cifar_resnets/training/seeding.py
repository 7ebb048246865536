"""Random numbers of a training step, as a function of what names the step."""

from __future__ import annotations

import numpy as np
import torch


def seed_noise(device: torch.device, *keys: int) -> None:
    """Gives dropout and stochastic depth random numbers of a step's own: a resumed run draws the same.

    Args:
        device: on which they are drawn.
        keys: what names the step: seed, epoch, batch, rank.
    """
    number = int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(number)  # a hundredth of the time of torch.manual_seed
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(number)

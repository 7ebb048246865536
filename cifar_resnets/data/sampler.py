"""The order of the images in an epoch, and the random numbers of their augmentation."""

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor

from cifar_resnets.data.augment import Augmentation, Draws, draw

CPU = torch.device("cpu")
FIRST_FLIPS = (0,)  # key of a generator; the keys of steps have two numbers


@dataclasses.dataclass
class EpochSampler:
    """Draws the order of the images and their augmentation as a function of (seed, epoch) alone.

    The order is a permutation or, with `balanced_labels` (num_images,), their `balanced_order`. Lightning calls
    `set_epoch` before each epoch, also after a resume.
    """

    num_images: int
    size: tuple[int, int]
    augmentation: Augmentation
    seed: int
    device: torch.device = CPU
    repeats: bool = False
    balanced_labels: Tensor | None = None
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration; a sampler that `repeats` stays in the first one."""
        self.epoch = 0 if self.repeats else epoch

    def generator(self, *keys: int) -> torch.Generator:
        """Returns a generator for this epoch and the given keys, independent of all others."""
        return _generator((self.seed, self.epoch), keys, self.device)

    def plan(self) -> tuple[Tensor, Draws]:
        """Draws the order of the images (num_images,) and the augmentation of each position in it."""
        generator = self.generator()
        if self.balanced_labels is None:
            order = torch.randperm(self.num_images, generator=generator, device=self.device)
        else:
            order = balanced_order(self.balanced_labels, generator)
        draws = draw(self.augmentation, self.num_images, self.size, generator)
        if self.augmentation.alternating_flip:
            draws = dataclasses.replace(draws, flips=self._is_flipped()[order])
        return order, draws

    def _is_flipped(self) -> Tensor:
        """Returns which images an alternating flip mirrors in this epoch: (num_images,) of bool."""
        generator = _generator((self.seed, 0), FIRST_FLIPS, self.device)
        first = torch.randint(2, (self.num_images,), generator=generator, device=self.device).bool()
        return first ^ bool(self.epoch % 2)


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draws as many images as there are, equally many of each class, in random order.

    A class with more images than its share is drawn from without replacement, one with fewer is repeated, each time in
    full before it is repeated again. Chance decides which classes get one image more where the shares are not whole.

    Args:
        labels: (n,); a class without images is left out.
        generator: on the device of the labels.

    Returns:
        Indices of the images (n,).
    """
    random = functools.partial(torch.rand, generator=generator, device=labels.device)
    members = [each for each in torch.split(labels.argsort(stable=True), labels.bincount().tolist()) if len(each)]
    share, rest = divmod(len(labels), len(members))
    has_more = (random(len(members)).argsort() < rest).tolist()
    drawn = []
    for images, more in zip(members, has_more, strict=True):
        rounds = -(-(share + more) // len(images))
        shuffled = random(rounds, len(images)).argsort(dim=1, stable=True)
        drawn.append(images[shuffled.flatten()[: share + more]])
    return torch.cat(drawn)[torch.randperm(len(labels), generator=generator, device=labels.device)]


def _generator(entropy: tuple[int, ...], keys: tuple[int, ...], device: torch.device) -> torch.Generator:
    # keys are no further entropy, with which (seed, epoch) and (seed, epoch, 0, 0) would give the same numbers
    state = np.random.SeedSequence(entropy, spawn_key=keys).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))

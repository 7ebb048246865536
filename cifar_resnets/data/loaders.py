"""Loaders of uint8 images that stay in the memory of the training device: a batch is one gather, without workers.

Neither is a `torch.utils.data.DataLoader`: Lightning accepts any iterable with a length, and does not shard it over
ranks.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cifar_resnets.data.augment import (
    Augmentation,
    Draws,
    augment,
    crop_and_flip,
    cutout,
    normalize,
    pad,
    with_mirrored,
)
from cifar_resnets.data.sampler import CPU, EpochSampler
from cifar_resnets.errors import ConfigurationError

Batch = tuple[Tensor, Tensor]


class TrainLoader:
    """Iterates over shuffled, augmented batches; the last, incomplete batch of an epoch is left out.

    The images of a step and their augmentation are the same for any number of ranks: each rank takes its part of the
    global batch. Only mixup and CutMix pair the images within a rank.

    An image takes (h + 2p) * (w + 2p) * c bytes for a crop padded by p; on a CPU with flips twice that, because its
    mirror image is stored, too. The state of a loader is the number of batches that it has returned in this epoch,
    from which Lightning resumes an epoch.

    Args:
        images: uint8 (n, h, w, c) on the training device.
        labels: int64 (n,).
        batch_size: images of a batch over all ranks.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1.
        augmentation: applied to each image.
        seed: of the order and the augmentation.
        num_classes: for mixup and CutMix, whose labels are probabilities (n, num_classes).
        balance: whether an epoch shows each class equally often, see `balanced_order`.
        repeats: whether each epoch has the batches of the first one.
        rank: of this process.
        world_size: number of ranks.

    Raises:
        ConfigurationError: when the batch is larger than the data, or not divisible by the number of ranks.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: list[float],
        std: list[float],
        augmentation: Augmentation,
        seed: int,
        num_classes: int,
        balance: bool = False,
        repeats: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_batch_size(batch_size, len(images))
        if batch_size % world_size:
            raise ConfigurationError(f"data.batch_size: {batch_size} cannot be divided by {world_size} ranks")
        self.size = (images.shape[1], images.shape[2])
        # drawn on the GPU, the numbers need no copy that it has to wait for; other accelerators have no float64
        on_gpu = images.device.type == "cuda"
        device = images.device if on_gpu else CPU
        balanced_labels = labels.to(device) if balance else None
        self.sampler = EpochSampler(len(images), self.size, augmentation, seed, device, repeats, balanced_labels)
        self._augment = Compiled(augment) if on_gpu else _augment_in_steps
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._augmentation = augmentation
        mirrors = augmentation.flip and not on_gpu
        self._padded = pad(with_mirrored(images) if mirrors else images, augmentation)
        self._labels = labels
        self._mean, self._std = on_pixel_scale(mean, std, images.device)
        self._mix = _mixing(augmentation, num_classes)
        self._start = self._done = 0  # batches of the epoch

    def __len__(self) -> int:
        return self.sampler.num_images // self.batch_size

    def state_dict(self) -> dict[str, int]:
        """Returns the number of batches of the epoch that were returned."""
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next iteration begin after the given number of batches."""
        self._start = state_dict["done"]

    def __iter__(self) -> Iterator[Batch]:
        start, self._start = self._start, 0
        return self._batches(start)

    def _batches(self, start: int) -> Iterator[Batch]:
        # runs at the first batch; the epoch may be set after the call of `iter`
        order, draws = self.sampler.plan()
        order, draws = order.to(self._padded.device), draws.to(self._padded.device)
        share = self.batch_size // self.world_size
        for step in range(start, len(self)):
            first = step * self.batch_size + self.rank * share
            self._done = step + 1
            yield self._batch(step, order[first : first + share], draws[first : first + share])

    def _batch(self, step: int, index: Tensor, draws: Draws) -> Batch:
        hole_size = self._augmentation.cutout_size if self._augmentation.cutout_holes else 0
        images = self._augment(self._padded, index, draws, self.size, self._mean, self._std, hole_size)
        batch = images.permute(0, 3, 1, 2), self._labels[index]  # (n, c, h, w), channels_last in memory
        return batch if self._mix is None else self._mixed(step, batch)

    def _mixed(self, step: int, batch: Batch) -> Batch:
        # torchvision's transforms draw from the global generator, which is seeded for this step
        assert self._mix is not None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.sampler.generator(step, self.rank).initial_seed())
            images, labels = self._mix(*batch)
        return images.contiguous(memory_format=torch.channels_last), labels


def check_batch_size(batch_size: int, num_images: int) -> None:
    """Raises ConfigurationError, with a power of two that fits, if a batch is larger than the training set."""
    if batch_size > num_images:
        fits = 1 << max(num_images.bit_length() - 1, 0)
        what = f"{batch_size} is more than the {num_images} training images"
        raise ConfigurationError(f"data.batch_size: {what}, give --data.batch_size {fits}")


def _augment_in_steps(
    padded: Tensor, index: Tensor, draws: Draws, size: tuple[int, int], mean: Tensor, std: Tensor, hole_size: int
) -> Tensor:
    images = normalize(crop_and_flip(padded, index, draws, size), mean, std)
    return cutout(images, draws.holes, hole_size) if hole_size else images


class Compiled:
    """Compiles a function with `torch.compile`; without a compiler, warns and calls the function as it is."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._plain = function
        self._function: Callable[..., Tensor] = torch.compile(function)
        self._was_called = False

    def __call__(self, *args: Any) -> Tensor:
        """Calls the function, which is compiled in the first call."""
        if not self._was_called:
            self._was_called = True
            try:
                self._function(*args)
            except (RuntimeError, OSError) as error:  # for example no triton, no C compiler, no folder for its cache
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = str(error).partition("\n")[0]
                warnings.warn(f"{self._plain.__name__} is not compiled, and so takes longer: {reason}", stacklevel=2)
                self._function = self._plain
        return self._function(*args)


class EvalLoader:
    """Iterates over every image exactly once over all ranks, in order, in batches of nearly equal size.

    All ranks get the same number of batches, because DistributedDataParallel synchronises buffers in each forward.

    Args:
        images: uint8 (n, h, w, c) on the evaluating device.
        labels: int64 (n,).
        batch_size: largest number of images per batch over all ranks; each rank gets at least one image per batch.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1.
        rank: of this process.
        world_size: number of ranks.

    Raises:
        ConfigurationError: when there are fewer images than ranks.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: list[float],
        std: list[float],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(images) < world_size:
            raise ConfigurationError(f"trainer.devices: {len(images)} images cannot be shared by {world_size} ranks")
        self.rank, self.world_size = rank, world_size
        self._images, self._labels = images.contiguous(), labels
        self._num_batches = min(-(-len(images) // batch_size), len(images) // world_size)
        self._mean, self._std = on_pixel_scale(mean, std, images.device)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self._num_batches):
            part = self.part(step, self.rank)
            images = normalize(self._images[part], self._mean, self._std)
            yield images.permute(0, 3, 1, 2), self._labels[part]

    def indices(self, step: int) -> range:
        """Returns the indices of the images that this rank evaluates in a step."""
        part = self.part(step, self.rank)
        return range(part.start, part.stop)

    def part(self, step: int, rank: int) -> slice:
        """Returns the slice of the images that a rank evaluates in a step."""
        parts, part = self._num_batches * self.world_size, step * self.world_size + rank
        return slice(part * len(self._images) // parts, (part + 1) * len(self._images) // parts)


def on_pixel_scale(mean: list[float], std: list[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation (c,) on the scale 0 to 255, in float32 on a device."""
    return tuple(torch.tensor(values, dtype=torch.float64).mul(255).float().to(device) for values in (mean, std))  # type: ignore[return-value]  # two values in, two out


def _mixing(augmentation: Augmentation, num_classes: int) -> Callable[[Tensor, Tensor], Batch] | None:
    if not (augmentation.mixup_alpha or augmentation.cutmix_alpha):
        return None
    from torchvision.transforms import v2  # imports thirty modules, which most recipes do not need

    choices: list[v2.Transform] = []
    if augmentation.mixup_alpha:
        choices.append(v2.MixUp(alpha=float(augmentation.mixup_alpha), num_classes=num_classes))
    if augmentation.cutmix_alpha:
        choices.append(v2.CutMix(alpha=float(augmentation.cutmix_alpha), num_classes=num_classes))
    mixing: Callable[[Tensor, Tensor], Batch] = v2.RandomChoice(choices)
    return mixing

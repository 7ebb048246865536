"""Loaders of uint8 images that stay in the memory of the training device: a batch is one gather, without workers.

Neither is a `torch.utils.data.DataLoader`: Lightning accepts any iterable with a length, and does not shard it over
ranks.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cifar_resnets.data.augment import Augmentation, Draws, normalize
from cifar_resnets.data.sampler import CPU, EpochSampler
from cifar_resnets.data.stored_images import StoredImages
from cifar_resnets.errors import ConfigurationError

Batch = tuple[Tensor, Tensor]


class TrainLoader:
    """Iterates over shuffled, augmented batches; the last, incomplete batch of an epoch is left out.

    The images of a step and their augmentation are the same for any number of ranks: each rank takes its part of the
    global batch. Only mixup and CutMix pair the images within a rank.

    The images take the memory of `StoredImages`. The state of a loader is the number of batches that it has returned in
    this epoch, from which Lightning resumes an epoch.

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
        crop_size: height and width of random resized crops, which are taken in place of padded ones; none if not given.
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
        crop_size: tuple[int, int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_batch_size(batch_size, len(images))
        if batch_size % world_size:
            raise ConfigurationError(f"data.batch_size: {batch_size} cannot be divided by {world_size} ranks")
        self._images = StoredImages(images, augmentation, crop_size)
        self.size = self._images.size
        # drawn on the GPU, the numbers need no copy that it has to wait for; other accelerators have no float64
        on_gpu = images.device.type == "cuda"
        device = images.device if on_gpu else CPU
        balanced_labels = labels.to(device) if balance else None
        self.sampler = EpochSampler(len(images), self.size, augmentation, seed, device, repeats, balanced_labels)
        if crop_size:
            self.sampler.cropped_from = (images.shape[1], images.shape[2])
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
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
        order, draws = order.to(self._images.device), draws.to(self._images.device)
        share = self.batch_size // self.world_size
        for step in range(start, len(self)):
            first = step * self.batch_size + self.rank * share
            self._done = step + 1
            yield self._batch(step, order[first : first + share], draws[first : first + share])

    def _batch(self, step: int, index: Tensor, draws: Draws) -> Batch:
        images = self._images.batch(index, draws, self._mean, self._std)
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


class EvalLoader:
    """Iterates over every image exactly once over all ranks, in order, in batches of nearly equal size.

    All ranks get the same number of batches, because DistributedDataParallel synchronises buffers in each forward.

    Args:
        images: uint8 (n, h, w, c) on the evaluating device.
        labels: int64 (n,).
        names: of the images (n,), None if they have none.
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
        names: Sequence[str] | None = None,
        *,
        batch_size: int,
        mean: list[float],
        std: list[float],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(images) < world_size:
            raise ConfigurationError(f"trainer.devices: {len(images)} images cannot be shared by {world_size} ranks")
        self.rank, self.world_size, self.names = rank, world_size, names
        self._images, self._labels = images.contiguous(), labels
        self._parts = evaluation_parts(len(images), batch_size, world_size)
        self._mean, self._std = on_pixel_scale(mean, std, images.device)

    def __len__(self) -> int:
        return len(self._parts) // self.world_size

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self)):
            part = self.part(step, self.rank)
            images = normalize(self._images[part], self._mean, self._std)
            yield images.permute(0, 3, 1, 2), self._labels[part]

    def indices(self, step: int) -> range:
        """Returns the indices of the images that this rank evaluates in a step."""
        part = self.part(step, self.rank)
        return range(part.start, part.stop)

    def part(self, step: int, rank: int) -> slice:
        """Returns the slice of the images that a rank evaluates in a step."""
        return self._parts[step * self.world_size + rank]


def evaluation_parts(num_images: int, batch_size: int, world_size: int = 1) -> list[slice]:
    """Divides images into parts of nearly equal size, which the ranks evaluate in turns.

    The last digits of logits depend on the size of a batch. There have to be as many images as ranks, or more.
    """
    num = min(-(-num_images // batch_size), num_images // world_size) * world_size
    return [slice(part * num_images // num, (part + 1) * num_images // num) for part in range(num)]


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

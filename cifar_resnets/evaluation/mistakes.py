"""Which images a network gets wrong, the most confident mistakes first.

They are ranked by their loss, -log p of the true class, in nats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnets.support.atomic_file import replacing

__all__ = [
    "Chosen",
    "Samples",
    "TopLosses",
    "by_pair",
    "classified",
    "in_order_of",
    "joined",
    "ranked",
    "shown",
    "shrunk",
    "write_arrays",
]


@dataclass(frozen=True)
class Samples:
    """Classified images.

    Args:
        images: (n, c, h, w), normalised.
        index: int64 (n,), place in the data.
        labels: int64 (n,), true classes.
        predicted: int64 (n,), most probable classes.
        p_label: float32 (n,), probability of the true class.
        p_predicted: float32 (n,), probability of the most probable class.
        score: float32 (n,), the larger the more confidently wrong: the loss of a mistake, which is above 0, or 0 if it
            is not a number; below 0 for an image that is right, and ascending with its loss.
    """

    images: Tensor
    index: Tensor
    labels: Tensor
    predicted: Tensor
    p_label: Tensor
    p_predicted: Tensor
    score: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | Sequence[int]) -> Samples:
        """Some of them, by their rows; a sequence of numbers costs no copy to the device."""
        if isinstance(rows, Tensor):
            return Samples(*(each[rows] for each in self._tensors()))
        return Samples(*(torch.stack([each[row] for row in rows]) if rows else each[:0] for each in self._tensors()))

    def cpu(self) -> Samples:
        """The same on the CPU."""
        return Samples(*(each.cpu() for each in self._tensors()))

    @property
    def wrong(self) -> Tensor:
        """Bool (n,): which are misclassified."""
        return self.predicted != self.labels

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def classified(images: Tensor, labels: Tensor, logits: Tensor, index: Tensor) -> Samples:
    """A batch and what was said of it.

    Args:
        images: (n, c, h, w), normalised.
        labels: (n,), true classes.
        logits: (n, num_classes).
        index: int64 (n,), place in the data.
    """
    labels = labels.long()
    log_p = logits.detach().float().log_softmax(dim=1)
    best, predicted = log_p.max(dim=1)
    loss = -log_p.gather(1, labels[:, None])[:, 0]
    p_label = (-loss).exp()
    right = (-p_label).nan_to_num(-torch.inf)
    score = torch.where(predicted == labels, right, loss.nan_to_num(0.0, posinf=torch.inf))
    return Samples(images.detach(), index, labels, predicted, p_label, best.exp(), score)


def joined(parts: Sequence[Samples]) -> Samples:
    """One set of several."""
    return Samples(*(torch.cat(each) for each in zip(*(part._tensors() for part in parts), strict=True)))


class TopLosses:
    """The most confidently wrong images of all batches, then those that are right with the largest loss.

    Of equals the first come first. No value is brought to Python.

    Args:
        num_samples: how many are kept.
        max_side: larger images are shrunk to so many pixels a side; kept as they are if None.
    """

    def __init__(self, num_samples: int, max_side: int | None = None) -> None:
        self.num_samples, self.max_side = num_samples, max_side
        self.kept: Samples | None = None

    def update(self, batch: Samples, places: range) -> None:
        """Takes in a batch that comes after the ones before in the data."""
        best = self._best(batch)
        if self.max_side is not None:
            best = replace(best, images=shrunk(best.images, self.max_side))
        self.kept = best if self.kept is None else self._best(joined([self.kept, best]))

    def _best(self, samples: Samples) -> Samples:
        # not by topk, which takes any of equals
        return samples.take(samples.score.sort(descending=True, stable=True).indices[: self.num_samples])


class Chosen:
    """The same images in each evaluation, by their places in the data.

    Args:
        places: whose images are taken, in this order.
    """

    def __init__(self, places: Sequence[int]) -> None:
        self.places = places
        self.kept: Samples | None = None

    def update(self, batch: Samples, places: range) -> None:
        """Takes in a batch: `places` says what its index says, without a look at the device."""
        rows = [places.index(place) for place in self.places if place in places]
        if rows:
            found = batch.take(rows)
            self.kept = found if self.kept is None else joined([self.kept, found])


def ranked(samples: Samples, num_samples: int) -> Samples:
    """The first of the samples of several ranks, on the CPU; each image once, of equals the first in the data."""
    order = np.lexsort((samples.index.numpy(), -samples.score.numpy()))
    _, first = np.unique(samples.index.numpy()[order], return_index=True)
    return samples.take(torch.from_numpy(order[np.sort(first)][:num_samples]))


def in_order_of(places: Sequence[int], samples: Samples) -> Samples:
    """The samples at some places in the data, in the order of these; a place without a sample is left out."""
    rows = {place: row for row, place in enumerate(samples.index.tolist())}
    return samples.take([rows[place] for place in places if place in rows])


def by_pair(samples: Samples) -> Samples:
    """The same samples on the CPU, those with one true and one predicted class together.

    Larger groups come first, of equal ones that with the larger score, and images that are right last.
    """
    pairs = list(zip(samples.labels.tolist(), samples.predicted.tolist(), strict=True))
    scores, sizes = samples.score.tolist(), Counter(pairs)
    best = {pair: max(s for p, s in zip(pairs, scores, strict=True) if p == pair) for pair in sizes}

    def key(row: int) -> tuple[Any, ...]:
        true, predicted = pair = pairs[row]
        return true == predicted, -sizes[pair], -best[pair], pair, -scores[row]

    return samples.take(sorted(range(len(samples)), key=key))


def shown(images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> NDArray[np.uint8]:
    """Images as they were before they were normalised.

    Args:
        images: normalised (n, c, h, w), on the CPU; c of 1 is grey, of more than 3 the first three count.
        mean: per channel, on the scale 0 to 1; if not given, the values of all images are stretched over the scale.
        std: per channel, on the scale 0 to 1.

    Returns:
        uint8 (n, h, w, 3).
    """
    images = images.float().nan_to_num(0.0, 0.0, 0.0)
    if mean is not None and std is not None:
        images = images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    elif images.numel():
        low, high = images.amin(), images.amax()
        images = (images - low) / (high - low).clamp(min=1e-6)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    pixels: NDArray[np.uint8] = (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def shrunk(images: Tensor, max_side: int) -> Tensor:
    """Images (n, c, h, w) with sides of at most so many pixels, by an antialiased filter; smaller ones as they are."""
    height, width = images.shape[2:]
    longer = max(height, width)
    if longer <= max_side or not len(images):
        return images
    size = [max(1, round(side * max_side / longer)) for side in (height, width)]
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes a compressed .npz file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)

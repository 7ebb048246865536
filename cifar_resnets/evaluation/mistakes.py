"""Finds the images that a network gets wrong, the most confident mistakes first.

Mistakes are ranked by their loss, -log p of the true class, in nats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_resnets.support.sandbox import like_network, plain_network, sandboxed

CHUNK = 32  # images at once


@dataclass(frozen=True)
class Samples:
    """Classified images.

    The score ascends from the images that are right to the most confident mistake: the loss of a mistake, 0 if that is
    NaN, and -p of the true class of an image that is right, -inf if that is NaN.
    """

    images: Tensor  # (n, c, h, w), normalised
    index: Tensor  # int64 (n,), place in the data
    labels: Tensor  # int64 (n,), true classes
    predicted: Tensor  # int64 (n,), most probable classes
    p_label: Tensor  # float32 (n,), probability of the true class
    p_predicted: Tensor  # float32 (n,), probability of the most probable class
    score: Tensor  # float32 (n,)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | Sequence[int]) -> Samples:
        """Selects rows; given as a sequence of numbers, they are not copied to the device."""
        if isinstance(rows, Tensor):
            return Samples(*(each[rows] for each in self.tensors()))
        return Samples(*(torch.stack([each[row] for row in rows]) if rows else each[:0] for each in self.tensors()))

    def cpu(self) -> Samples:
        """Copies the samples to the CPU."""
        return Samples(*(each.cpu() for each in self.tensors()))

    @property
    def wrong(self) -> Tensor:
        """Bool (n,): which are misclassified."""
        return self.predicted != self.labels

    def tensors(self) -> list[Tensor]:
        """Returns all fields in their order."""
        return [getattr(self, field.name) for field in fields(self)]


def classify(images: Tensor, labels: Tensor, logits: Tensor, index: Tensor) -> Samples:
    """Builds the samples of a batch from a network's logits (n, num_classes)."""
    labels = labels.long()
    log_p = logits.detach().float().log_softmax(dim=1)
    best, predicted = log_p.max(dim=1)
    loss = -log_p.gather(1, labels[:, None])[:, 0]
    p_label = (-loss).exp()
    right = (-p_label).nan_to_num(-torch.inf)
    score = torch.where(predicted == labels, right, loss.nan_to_num(0.0, posinf=torch.inf))
    return Samples(images.detach(), index, labels, predicted, p_label, best.exp(), score)


def classify_again(network: nn.Module, samples: Samples) -> Samples:
    """Classifies samples on the CPU with a network's present weights; the network is left as it was."""
    network = plain_network(network)
    with sandboxed(network, samples.images), torch.no_grad():
        logits = [network(like_network(network, images)).cpu() for images in torch.split(samples.images, CHUNK)]
    return classify(samples.images, samples.labels, torch.cat(logits), samples.index)


class HighestLosses:
    """Keeps the most confident mistakes of all batches, then the images that are right with the highest loss.

    Of equals the first are kept. The device is never waited for. Images larger than `max_side` are scaled down to it.
    """

    def __init__(self, num_samples: int, max_side: int | None = None) -> None:
        self.num_samples, self.max_side = num_samples, max_side
        self.kept: Samples | None = None

    def update(self, batch: Samples, places: range) -> None:
        """Takes in the next batch."""
        best = self._best(batch)
        if self.max_side is not None:
            best = replace(best, images=limit_size(best.images, self.max_side))
        self.kept = best if self.kept is None else self._best(concatenate([self.kept, best]))

    def _best(self, samples: Samples) -> Samples:
        # not by topk, which takes any of equals
        return samples.take(samples.score.sort(descending=True, stable=True).indices[: self.num_samples])

    def merge(self, samples: Samples) -> Samples:
        """Selects from the samples that all ranks kept, on the CPU; an image that came twice is taken once."""
        order = np.lexsort((samples.index.numpy(), -samples.score.numpy()))
        _, first = np.unique(samples.index.numpy()[order], return_index=True)
        return samples.take(torch.from_numpy(order[np.sort(first)][: self.num_samples]))


class SamplesAt:
    """Keeps the images at given places in the data, in the order of these places."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = places
        self.kept: Samples | None = None

    def update(self, batch: Samples, places: range) -> None:
        """Takes in a batch; `places` are those of its images, known without waiting for the device."""
        rows = [places.index(place) for place in self.places if place in places]
        if rows:
            found = batch.take(rows)
            self.kept = found if self.kept is None else concatenate([self.kept, found])

    def merge(self, samples: Samples) -> Samples:
        """Orders the samples that all ranks kept by their places; a place without a sample is left out."""
        rows = {place: row for row, place in enumerate(samples.index.tolist())}
        return samples.take([rows[place] for place in self.places if place in rows])


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Concatenates sets of samples."""
    return Samples(*(torch.cat(each) for each in zip(*(part.tensors() for part in parts), strict=True)))


def group_by_pair(samples: Samples) -> Samples:
    """Sorts samples on the CPU by pair of true and predicted class.

    Larger groups come first, of equally large ones that with the highest score; images that are right come last.
    """
    pairs = list(zip(samples.labels.tolist(), samples.predicted.tolist(), strict=True))
    scores, sizes = samples.score.tolist(), Counter(pairs)
    best = {pair: max(s for p, s in zip(pairs, scores, strict=True) if p == pair) for pair in sizes}

    def key(row: int) -> tuple[Any, ...]:
        true, predicted = pair = pairs[row]
        return true == predicted, -sizes[pair], -best[pair], pair, -scores[row]

    return samples.take(sorted(range(len(samples)), key=key))


def to_pixels(
    images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> NDArray[np.uint8]:
    """Converts normalised images back to pixels.

    Args:
        images: normalised (n, c, h, w), on the CPU; fewer than three channels are shown in grey, of more than three
            the first three are shown.
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


def limit_size(images: Tensor, max_side: int) -> Tensor:
    """Scales images (n, c, h, w) down, antialiased, where a side is longer than `max_side` pixels."""
    height, width = images.shape[2:]
    longer = max(height, width)
    if longer <= max_side or not len(images):
        return images
    size = [max(1, round(side * max_side / longer)) for side in (height, width)]
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)

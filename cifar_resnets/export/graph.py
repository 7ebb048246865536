"""The network as it is exported: from images as a camera gives them to probabilities."""

import copy

import torch
from torch import Tensor, nn

from cifar_resnets.data.loaders import on_pixel_scale
from cifar_resnets.inference.classifier import TrainedClassifier

ONE = 2**22  # Pillow's weights are whole numbers, of which one line's add up to this


class ImagesToProbabilities(nn.Module):
    """Computes the probabilities of images of any size: the preprocessing of the training is inside.

    Args:
        classifier: the trained network with its preprocessing; it is copied.
    """

    mean: Tensor  # (3,), on the scale 0 to 255
    std: Tensor

    def __init__(self, classifier: TrainedClassifier) -> None:
        super().__init__()
        self.network = network_of(classifier)
        self.image_size = classifier.image_size
        mean, std = on_pixel_scale(list(classifier.mean), list(classifier.std), torch.device("cpu"))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Maps uint8 images (n, h, w, 3) to probabilities, float32 (n, num_classes)."""
        pixels = resize(images, self.image_size)
        logits = self.network(((pixels - self.mean) / self.std).permute(0, 3, 1, 2))
        probabilities: Tensor = logits.float().softmax(dim=1)
        return probabilities


def network_of(classifier: TrainedClassifier) -> nn.Module:
    """Returns a copy of a classifier's network on the CPU, in evaluation mode and in plain memory format."""
    network = copy.deepcopy(classifier.network).cpu().to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(False)


def resize(images: Tensor, size: int) -> Tensor:
    """Resizes images to a square as Pillow's bilinear filter does, by which the images of a training are decoded.

    Like Pillow it resizes along the rows, then along the columns, with weights and sums of whole numbers, and rounds
    both times to whole grey levels. Numbers as large are exact in float64, so that every runtime computes the same. Of
    tall images some pixels differ from Pillow's by a level: it begins with the columns where that saves time.

    Source: `src/libImaging/Resample.c` of Pillow, `precompute_coeffs` and `normalize_coeffs_8bpc`.

    Args:
        images: uint8 (n, h, w, 3).
        size: height and width of the result.

    Returns:
        Whole numbers from 0 to 255 in float32, (n, size, size, 3); the images themselves if they are of that size.
    """
    num, height, width, channels = images.shape
    rows = _rounded(_weights(width, size) @ images.double())
    both = _rounded(_weights(height, size) @ rows.reshape(num, height, size * channels))
    return both.reshape(num, size, size, channels).float()


def _weights(length: int, size: int) -> Tensor:
    """Returns the weights (size, length) of the pixels of a line for each of the result, in parts of `ONE`."""
    pixels = torch.arange(length, dtype=torch.float64)
    scale = (pixels[-1:] + 1) / size  # a tensor, so that the length stays variable
    centres = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    weights = (1 - ((pixels - centres + 0.5) * (1 / scale.clamp(min=1))).abs()).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True) * ONE + 0.5).floor()


def _rounded(sums: Tensor) -> Tensor:
    return ((sums + ONE / 2) / ONE).floor()

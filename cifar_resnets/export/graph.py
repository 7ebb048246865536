"""The network as it is exported: from images as a camera gives them to probabilities."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnets.inference.classifier import TrainedClassifier


class ImagesToProbabilities(nn.Module):
    """Computes the probabilities of images of any size: the preprocessing of the training is inside.

    Args:
        classifier: the trained network with its preprocessing; it is copied.
    """

    mean: Tensor  # (3, 1, 1), on the scale 0 to 255
    std: Tensor

    def __init__(self, classifier: TrainedClassifier) -> None:
        super().__init__()
        self.network = network_of(classifier)
        self.image_size = classifier.image_size
        for name in ("mean", "std"):
            values = torch.tensor(getattr(classifier, name), dtype=torch.float64).mul(255).float()
            self.register_buffer(name, values[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Maps uint8 images (n, h, w, 3) to probabilities, float32 (n, num_classes)."""
        pixels = resize(images.permute(0, 3, 1, 2).float(), self.image_size)
        logits = self.network((pixels - self.mean) / self.std)
        probabilities: Tensor = logits.float().softmax(dim=1)
        return probabilities


def network_of(classifier: TrainedClassifier) -> nn.Module:
    """Returns a copy of a classifier's network on the CPU, in evaluation mode and in plain memory format."""
    network = copy.deepcopy(classifier.network).cpu().to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(False)


def resize(pixels: Tensor, size: int) -> Tensor:
    """Resizes images to a square as Pillow's bilinear filter does, which decodes the images of a training.

    Like Pillow it resizes along the rows, then along the columns, and rounds both times to whole grey levels. Some
    pixels differ by a level, hardly any by two: Pillow's weights have 22 bits, those here are float32, and Pillow
    begins with the columns of narrow images.

    Args:
        pixels: whole numbers from 0 to 255 in float32, (n, 3, h, w); unchanged if they are of that size already.
        size: height and width of the result.
    """
    rows = F.interpolate(pixels, (pixels.shape[2], size), mode="bilinear", antialias=True)
    both = F.interpolate((rows + 0.5).floor(), (size, size), mode="bilinear", antialias=True)
    return (both + 0.5).floor()

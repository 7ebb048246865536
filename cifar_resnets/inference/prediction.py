"""What a network says of one image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    Args:
        name: of the most probable class.
        probability: of that class, from 0 to 1.
        probabilities: of each class by its name, in the order of the network.
    """

    name: str
    probability: float
    probabilities: dict[str, float]

    @property
    def entropy(self) -> float:
        """Entropy of the probabilities in nats: 0 if the network is sure, log(num_classes) if it cannot tell."""
        return -sum(p * math.log(p) for p in self.probabilities.values() if p > 0) + 0.0

    @property
    def margin(self) -> float:
        """Difference between the highest probability and the second highest."""
        highest = [p for _, p in self.top(2)]
        return highest[0] - highest[1] if len(highest) > 1 else highest[0]

    def top(self, k: int) -> list[tuple[str, float]]:
        """Returns the names and probabilities of the k most probable classes, or of all if there are fewer."""
        return sorted(self.probabilities.items(), key=lambda item: -item[1])[:k]


def make_prediction(class_names: Sequence[str], probabilities: Sequence[float]) -> Prediction:
    """Returns the prediction of an image from the probabilities of the classes (num_classes,)."""
    best = max(range(len(probabilities)), key=probabilities.__getitem__)  # of equals the first, as in `Prediction.top`
    return Prediction(class_names[best], probabilities[best], dict(zip(class_names, probabilities, strict=True)))

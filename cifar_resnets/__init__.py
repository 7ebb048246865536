"""Train and test residual networks on CIFAR-10 with PyTorch Lightning.

What is public in Python is in `__all__`, and imported when it is used first: the package alone imports neither torch
nor Lightning.
"""

from __future__ import annotations

__version__ = "0.2.0"

TYPE_CHECKING = False  # as that of typing, whose import takes milliseconds
if TYPE_CHECKING:
    from cifar_resnets.callbacks.best_checkpoint import BestCheckpoint as BestCheckpoint
    from cifar_resnets.callbacks.confusion import Confusion as Confusion
    from cifar_resnets.callbacks.dashboard import Dashboard as Dashboard
    from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint as LastCheckpoint
    from cifar_resnets.callbacks.lr_finder import LRFinder as LRFinder
    from cifar_resnets.callbacks.misclassified import Misclassified as Misclassified
    from cifar_resnets.cam.gradcam import heatmaps as heatmaps
    from cifar_resnets.classifier import ImageClassifier as ImageClassifier
    from cifar_resnets.data.augment import Augmentation as Augmentation
    from cifar_resnets.data.cifar import CIFAR10 as CIFAR10
    from cifar_resnets.data.cifar import CIFAR100 as CIFAR100
    from cifar_resnets.data.digits import Digits as Digits
    from cifar_resnets.data.image_folder import ImageFolder as ImageFolder
    from cifar_resnets.errors import UserError as UserError
    from cifar_resnets.inference.classifier import TrainedClassifier as TrainedClassifier
    from cifar_resnets.inference.classifier import load as load
    from cifar_resnets.models.registry import create_network as create_network
    from cifar_resnets.models.weights import load_weights as load_weights
    from cifar_resnets.receptive_field.measured import verify as verify
    from cifar_resnets.receptive_field.theory import summarize as summarize
    from cifar_resnets.training.schedules import OneCycle as OneCycle

_MODULES = {  # of the public names
    "Augmentation": "data.augment",
    "BestCheckpoint": "callbacks.best_checkpoint",
    "CIFAR10": "data.cifar",
    "CIFAR100": "data.cifar",
    "Confusion": "callbacks.confusion",
    "Dashboard": "callbacks.dashboard",
    "Digits": "data.digits",
    "ImageClassifier": "classifier",
    "ImageFolder": "data.image_folder",
    "LRFinder": "callbacks.lr_finder",
    "LastCheckpoint": "callbacks.last_checkpoint",
    "Misclassified": "callbacks.misclassified",
    "OneCycle": "training.schedules",
    "TrainedClassifier": "inference.classifier",
    "UserError": "errors",
    "create_network": "models.registry",
    "heatmaps": "cam.gradcam",
    "load": "inference.classifier",
    "load_weights": "models.weights",
    "summarize": "receptive_field.theory",
    "verify": "receptive_field.measured",
}
__all__ = ["__version__", *_MODULES]  # noqa: PLE0604  all are strings


def __getattr__(name: str) -> object:
    """Imports a public name, and with most of them torch, when it is used first."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the public names, for completion."""
    return sorted({*globals(), *__all__})

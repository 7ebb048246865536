"""Train and test residual networks on CIFAR-10 with PyTorch Lightning."""

from __future__ import annotations

__version__ = "0.2.0"
__all__ = ["__version__", "load"]

TYPE_CHECKING = False  # as that of typing, whose import takes milliseconds
if TYPE_CHECKING:
    from cifar_resnets.inference.classifier import load as load


def __getattr__(name: str) -> object:
    """Imports `load`, and with it torch, when it is used first."""
    if name == "load":
        from importlib import import_module

        return import_module("cifar_resnets.inference.classifier").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

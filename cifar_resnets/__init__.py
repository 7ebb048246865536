"""Train and test residual networks on CIFAR-10 with PyTorch Lightning."""

__version__ = "0.2.0"

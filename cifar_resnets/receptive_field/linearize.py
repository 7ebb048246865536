"""Runs a network without nonlinearities, so that a gradient flows from each unit to every pixel that it sees."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cifar_resnets.receptive_field.rules.base import each

SKIPPED = {
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "gelu", "silu"),
    *("silu_", "mish", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "sigmoid", "sigmoid_"),
    *("tanh", "tanh_"),
    *("hardtanh", "hardtanh_", "softplus", "softsign", "logsigmoid", "prelu", "rrelu", "softmax", "clamp", "clamp_"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "dropout", "dropout_"),
}


class Linearized(TorchFunctionMode):
    """Skips activations and norms, and replaces max pooling with the sum of its window."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removeprefix("_")
        if name in SKIPPED:
            return args[0] if args else kwargs["input"]
        if name in ("max_pool2d", "max_pool2d_with_indices"):
            return _sum_pool(*args, **kwargs)
        if name in ("adaptive_max_pool2d", "adaptive_max_pool2d_with_indices"):
            return F.adaptive_avg_pool2d(*args[:2])
        if name == "amax":
            return torch.mean(*args, **kwargs)
        return func(*args, **kwargs)


def _sum_pool(
    images: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Sums the windows of max pooling: a depthwise convolution with ones."""
    kernel, padding, dilation = (each(value, 2) for value in (kernel_size, padding, dilation))
    stride = each(stride or kernel, 2)
    pads = []
    for size, k, s, p, d in zip(images.shape[2:], kernel, stride, padding, dilation, strict=True):
        span = size + 2 * p - d * (k - 1) - 1
        rest = -span % s if ceil_mode else 0
        # as in max pooling, the last window has to begin inside the image or its padding
        pads.append((p, p + rest if ((span + rest) // s) * s < size + p else p))
    (top, bottom), (left, right) = pads
    ones = images.new_ones(images.shape[1], 1, *kernel)
    padded = F.pad(images, (left, right, top, bottom))
    return F.conv2d(padded, ones, stride=stride, dilation=dilation, groups=images.shape[1])

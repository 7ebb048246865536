"""A network without nonlinearities, in which a gradient flows from each unit to every pixel that it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Transparent"]

LEFT_OUT = {
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "gelu", "silu"),
    *("silu_", "mish", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "sigmoid", "sigmoid_"),
    *("tanh", "tanh_"),
    *("hardtanh", "hardtanh_", "softplus", "softsign", "logsigmoid", "prelu", "rrelu", "softmax", "clamp", "clamp_"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "dropout", "dropout_"),
}


class Transparent(TorchFunctionMode):
    """Leaves out activations and norms, and lets max pooling add up its window."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removeprefix("_")
        if name in LEFT_OUT:
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
    """Max pooling's windows, added up: a convolution with ones, of each channel by itself."""
    kernel, padding, dilation = (_two(value) for value in (kernel_size, padding, dilation))
    stride = _two(stride or kernel)
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


def _two(value: Any) -> tuple[int, int]:
    first, second = (
        value
        if isinstance(value, (tuple, list)) and len(value) == 2
        else 2 * (value[0] if isinstance(value, (tuple, list)) else value,)
    )
    return first, second

"""Detects where a network reads the values of a tensor outside of PyTorch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

ESCAPES = {
    Tensor.numpy: "numpy",
    Tensor.__array__: "numpy",
    Tensor.tolist: "tolist",
    Tensor.untyped_storage: "untyped_storage",
    Tensor.__dlpack__: "dlpack",
    Tensor.data.__get__: "data",  # type: ignore[attr-defined]
    Tensor.data.__set__: "data",  # type: ignore[attr-defined]
}


class Escapes(TorchFunctionMode):
    """Detects access to the values of a tensor outside of PyTorch, which cannot be traced.

    Args:
        escaped: called with the tensor and the name of the attribute.
    """

    def __init__(self, escaped: Callable[[Tensor, str], None]) -> None:
        super().__init__()
        self.escaped = escaped

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ESCAPES:
            for tensor in args:
                if isinstance(tensor, Tensor):
                    self.escaped(tensor, ESCAPES[func])
        return func(*args, **(kwargs or {}))

"""Tensors and plain values: whether a file holds nothing else, and how a message shows them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cifar_resnets.support.text import printable

PRIMITIVES = (type(None), bool, int, float, complex, str, bytes)
DEEPEST = 50  # levels of nested containers
MOST = 500_000  # values, where each use of one that is used repeatedly counts
SPARE = 2**26  # bytes by which tensors that repeat their values may exceed the file


def not_plain(content: Any, size: int) -> str | None:
    """Returns where some content holds more than tensors and plain values, or what is made to exhaust a reader.

    Args:
        content: of a file, as torch has read it.
        size: of the file in bytes, which its tensors exceed only by repeating values, or by sharing memory.
    """
    todo, seen, left = [("", content, 0)], 0, 4 * size + SPARE
    while todo:
        place, value, depth = todo.pop()
        if (seen := seen + 1) > MOST or depth > DEEPEST:
            return f"{short(place)} is nested too deeply, or too large"
        if isinstance(value, Mapping) and not all(map(_is_plain, value)):
            return f"{short(place)} has a key that is no plain value"
        if isinstance(value, Mapping) or type(value) in (list, tuple, set):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            todo += [(f"{place}.{str(key)[:80]}".lstrip("."), item, depth + 1) for key, item in items]
        elif isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.is_meta or value.is_nested:
                return f"{short(place)} is no plain tensor"
            if (left := left - value.numel() * value.element_size()) < 0:
                return f"{short(place)} is a tensor {tuple(value.shape)}, larger than the file"
        elif not _is_plain(value):
            return f"{short(place)} is {describe(value)}, no plain value"
    return None


def _is_plain(value: Any) -> bool:
    """Returns whether a value is a primitive, or a tuple of them, which may be a key."""
    if type(value) is tuple:
        return all(type(item) is not tuple and _is_plain(item) for item in value)
    return type(value) in PRIMITIVES and not (type(value) is int and abs(value) >= 2**63)


def short(text: str) -> str:
    """Shortens text of a file for a message."""
    return printable(text if len(text) <= 120 else f"{text[:117]}...")


def describe(value: Any) -> str:
    """Returns what a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "a mapping of keys"
    if type(value) in (list, tuple, set):
        return f"a list of {len(value)} values"
    if value is None:
        return "null"
    return short(repr(value)) if _is_plain(value) else f"of type {type(value).__name__}"

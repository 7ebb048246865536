"""Imports what a recipe names by its module."""

import importlib
from typing import Any


def import_attribute(module: str, name: str) -> Any:
    """Returns an attribute of a module.

    Raises:
        ImportError: with one line, when the module cannot be imported, for any reason, or has no such attribute.
    """
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a module of the user can raise anything
        raise ImportError(f"cannot import {module}: {type(error).__name__}: {error}") from error
    if not hasattr(found, name):
        raise ImportError(f"{module} has no {name}")
    return getattr(found, name)

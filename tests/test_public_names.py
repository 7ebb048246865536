"""What `cifar_resnets` exports: typed, imported late, and listed in the documentation."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import cifar_resnets

ROOT = Path(__file__).parents[1]
NAMES = [name for name in cifar_resnets.__all__ if name != "__version__"]


def typed() -> dict[str, str]:
    """The module of each name, as type checkers see it."""
    tree = ast.parse(Path(cifar_resnets.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = {each.asname: node.module for node in imports for each in node.names if each.asname}
    return {name: module for name, module in found.items() if module}


def test_each_name_is_typed_and_is_that_of_its_module() -> None:
    assert sorted(typed()) == sorted(NAMES)
    for name, module in typed().items():
        found = getattr(cifar_resnets, name)
        assert found is getattr(import_module(module), name) and found.__doc__


def test_the_package_alone_imports_nothing_heavy() -> None:
    program = "import sys, cifar_resnets; dir(cifar_resnets); print(*{'torch', 'numpy', 'lightning'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cifar_resnets' has no attribute 'nothing'"):
        cifar_resnets.nothing  # noqa: B018
    assert {*NAMES} <= {*dir(cifar_resnets)}


def test_the_documentation_lists_them() -> None:
    page = (ROOT / "docs/python_api.md").read_text()
    table = page[page.index("| networks |") : page.index("Whatever")]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(NAMES)

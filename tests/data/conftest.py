from __future__ import annotations

import pytest
from cifar_archives import Tiny

from cifar_resnets.data.cifar import CIFAR10, CIFAR100


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=lambda module: module.__name__)
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A small data set of each kind, in place of the real one."""
    return Tiny(request.param, monkeypatch)


@pytest.fixture
def tiny10(monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A small CIFAR-10, in place of the real one."""
    return Tiny(CIFAR10, monkeypatch)

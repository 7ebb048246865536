"""What glibc does with freed memory, seen by the page faults of a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any, NoReturn

import pytest
from support import needs_glibc

import cifar_resnets.__main__ as entry
from cifar_resnets.support.malloc import OWN, keep_freed_memory

# blocks of 8 and of 48 MiB, which lie below and above what glibc's own threshold can grow to
TOUCH = """
import ctypes, resource, sys
from cifar_resnets.support.malloc import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def step():
    blocks = [libc.malloc(size << 20) for size in (8, 48, 8, 48)]
    for block, size in zip(blocks, (8, 48, 8, 48)):
        ctypes.memset(block, 1, size << 20)
    for block in blocks:
        libc.free(block)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print((faults() - before) / 10)
"""


def steps(how: str, **env: str) -> tuple[str, float]:
    """Whether memory is kept, and the page faults of a step that allocates 112 MiB."""
    mine = {name: value for name, value in os.environ.items() if name not in OWN}
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, how], env={**mine, **env}, capture_output=True, text=True, check=True
    )
    is_kept, faults = done.stdout.split()
    return is_kept, float(faults)


@needs_glibc
def test_a_step_gets_the_memory_of_the_step_before() -> None:
    (_, given_back), (is_kept, kept) = steps("given back"), steps("kept")
    assert is_kept == "True"
    assert given_back > 100  # a hundred in pages of 2 MiB, tens of thousands in those of 4 KiB
    assert kept < 0.01 * given_back


@needs_glibc
@pytest.mark.parametrize(
    "env", [{name: "1000000"} for name in OWN] + [{"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}], ids=str
)
def test_settings_of_the_user_s_own_are_left(env: dict[str, str]) -> None:
    assert steps("kept", **env)[0] == "False"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert keep_freed_memory({}) is False
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory({}) is False


def test_a_command_keeps_its_memory(monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    calls: list[str] = []
    monkeypatch.setattr(entry, "keep_freed_memory", lambda: calls.append("kept"))
    assert cli("summary", "cifar_resnet20").status == 0
    assert calls == ["kept"]

"""What several tests share, and is no fixture."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="NOT TESTED COMPILED: there is no C++ compiler"
)
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
TINY_NETWORK = {"depths": [1], "widths": [8], "stem_width": 8}
# the smallest run: one stage of one block, few images, one epoch
TINY = f"""
name: tiny
model:
  network: cifar_resnet20
  network_args: {TINY_NETWORK}
  lr: 0.05
data:
  class_path: Digits
  init_args: {{batch_size: 40, num_train: 200}}
trainer: {{accelerator: cpu, max_epochs: 1}}
"""
# without pictures, which take three quarters of the time of so small a run
PLAIN = f"{TINY}explain: null\n"
WITHOUT_PICTURES = ("--explain", "null")


def needs_gpu(test: Any) -> Any:
    """Marks a test that scripts/gpu_check.sh selects, and that is skipped without a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test))


@dataclass
class Result:
    status: int
    out: str
    err: str


def shell(*args: str, cwd: Path, **env: str) -> Result:
    """Runs the command line as a user does."""
    command = [sys.executable, "-m", "cifar_resnets", *args]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    return Result(done.returncode, done.stdout, done.stderr)


def terminal(*args: str, cwd: Path, width: int = 80) -> Result:
    """Runs the command line in a terminal, whose output, errors included, holds what moves the cursor."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color"} | {
        name: "" for name in ("COLUMNS", "NO_COLOR") if name in os.environ
    }
    with subprocess.Popen(
        [sys.executable, "-m", "cifar_resnets", *args], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        parts = []
        with contextlib.suppress(OSError):  # Linux says so that the other side has closed it
            while part := os.read(ours, 2**16):
                parts.append(part)
    os.close(ours)
    return Result(process.returncode, b"".join(parts).decode(), "")


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_images(root: Path, num_train: int = 24, num_test: int = 9, size: int = 16) -> Path:
    """An image folder whose three classes are told apart by their colour, with noise."""
    rng = np.random.default_rng(0)
    for split, num in (("train", num_train), ("test", num_test)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(num):
                pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


class Synchronisations(TorchDispatchMode):
    """Notes the operators that make a GPU wait: they bring a value to Python, or their shape depends on values.

    But for `bincount`, for which torchmetrics' confusion matrix waits once a batch.
    """

    WAITING = {"_local_scalar_dense", "nonzero", "_unique2", "masked_select", "is_nonzero", "equal"}

    def __init__(self, *more: str) -> None:
        super().__init__()
        self.waiting = {*self.WAITING, *more}
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in self.waiting:
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))

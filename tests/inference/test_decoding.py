"""Files that are decoded ahead: in order, and only a few at a time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_resnets.data.loaders import evaluation_parts
from cifar_resnets.errors import ResourceError
from cifar_resnets.inference import decoding
from cifar_resnets.inference.decoding import Batch, decode_batches
from cifar_resnets.inference.paths import Found


def test_only_a_few_blocks_of_many_files_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, alive, most = threading.Lock(), 0, 0

    def end() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def decode(found: Sequence[Found], image_size: int, background: str, resize: str) -> Batch:
        nonlocal alive, most
        batch = Batch(found, np.zeros((len(found), 1, 1, 3), np.uint8))
        with lock:
            alive, most = alive + 1, max(most, alive + 1)
        weakref.finalize(batch, end)
        return batch

    monkeypatch.setattr(decoding, "decode_files", decode)
    monkeypatch.setattr(decoding, "FEW", 10**6)  # threads, of which this test counts the blocks
    found = [Found(str(number)) for number in range(50_000)]
    seen = []
    for batch in decode_batches(found, evaluation_parts(len(found), 64), 1, "white", num_workers=2):
        seen += batch.found
        if len(seen) < 5000:
            time.sleep(0.001)  # the workers could run ahead
    assert seen == found
    assert most <= 4 + 3 + 2  # ahead of the batch, its own, and those that are being handed over


def test_batches_are_the_parts_in_their_order(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = [Found(str(tmp_path / "none.png")), Found("x", "a problem")] * 40
    parts = evaluation_parts(80, 30)
    batches = list(decode_batches(found, parts, 4, "white", num_workers=2))
    assert [len(batch.found) for batch in batches] == [part.stop - part.start for part in parts] == [26, 27, 27]
    problems = [each.problem for batch in batches for each in batch.found]
    assert problems == ["No such file or directory", "a problem"] * 40
    assert all(batch.pixels.shape == (0, 4, 4, 3) for batch in batches)


def test_a_worker_that_was_killed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> Batch:
        raise BrokenProcessPool

    monkeypatch.setattr(decoding, "decode_files", killed)
    with pytest.raises(ResourceError, match="a process that decodes images was killed"):
        list(decode_batches([Found("x")], [slice(0, 1)], 4, "white"))


def test_a_worker_that_is_killed_before_the_next_task_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise BrokenProcessPool

    monkeypatch.setattr(decoding, "ThreadPoolExecutor", Pool)
    with pytest.raises(ResourceError, match="a process that decodes images was killed"):
        list(decode_batches([Found("x")], [slice(0, 1)], 4, "white"))


WAITS_AMID_ITS_FILES = """
import sys
from cifar_resnets.inference.decoding import decode_batches
from cifar_resnets.inference.paths import Found

parts = [slice(start, start + 10) for start in range(0, 20_000, 10)]
for batch in decode_batches([Found("x", "a problem")] * 20_000, parts, 4, "white", num_workers=2):
    print("a batch", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_no_process_is_left_behind_when_the_main_one_is_killed(tmp_path: Path) -> None:
    command, variables = [sys.executable, "-c", WAITS_AMID_ITS_FILES], {**os.environ, "OF_TEST": str(tmp_path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as main:
        assert main.stdin is not None and main.stdout is not None
        wait_for(lambda: len(processes_with(str(tmp_path))) >= 4)  # itself, its server, two that decode
        main.kill()
    wait_for(lambda: not processes_with(str(tmp_path)))


def processes_with(value: str) -> list[str]:
    """The processes in whose environment there is a value."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found += [path.parent.name] if value.encode() in path.read_bytes() else []
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)

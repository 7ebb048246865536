"""Decodes image files ahead of the network, in workers: of thousands of files only a few blocks are in memory."""

import multiprocessing
import os
import pickle
import signal
import stat
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnets.data.image_files import decode_into, formats
from cifar_resnets.data.resize import Resize
from cifar_resnets.errors import ResourceError
from cifar_resnets.inference.paths import Found

Pixels = NDArray[np.uint8]
BLOCK = 32  # files of a task
FEW = 256  # files up to which threads decode: processes take a second to start


@dataclass(frozen=True)
class Batch:
    """Files that the network classifies together."""

    found: Sequence[Found]  # n; with the problem of each file that could not be read
    pixels: Pixels  # (m, size, size, 3) of the m others


def decode_batches(
    found: Sequence[Found],
    parts: Sequence[slice],
    image_size: int,
    background: str,
    resize: Resize = "squash",
    num_workers: int | None = None,
) -> Iterator[Batch]:
    """Decodes the files of each part while the caller works on the one before.

    Args:
        found: all files.
        parts: of them, one batch each, in order.
        image_size: height and width in pixels, to which each image is resized.
        background: color behind transparent pixels.
        resize: how an image becomes a square, see `resize_to_square`.
        num_workers: as many as this process may use cores if not given.

    Raises:
        ResourceError: when the system has killed a worker, most likely because the memory is full.
    """
    workers = num_workers or num_cores()
    largest = max(part.stop - part.start for part in parts)
    ahead = max(2 * workers, -(-largest // BLOCK))  # blocks: enough for the workers while a batch is classified
    with _pool(workers, len(found)) as submit:
        blocks = ((part, start) for part in parts for start in range(part.start, part.stop, BLOCK))
        tasks = (
            (part, submit(found[start : min(start + BLOCK, part.stop)], image_size, background, resize))
            for part, start in blocks
        )
        try:
            yield from _collected(_results(tasks, ahead))
        except BrokenProcessPool as error:  # of a result, or of the next task
            what = "a process that decodes images was killed, perhaps because the memory is full"
            raise ResourceError(f"{what}: give --workers 1, or leave out the largest images") from error


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Task = tuple[slice, "Future[Any]"]  # of a batch, or of the file that a process has written it to


def _results(tasks: Iterator[Task], ahead: int) -> Iterator[tuple[slice, Batch]]:
    """Returns the results of tasks in order, with so many of them begun before they are needed."""
    begun: deque[Task] = deque()
    for task in tasks:
        begun.append(task)
        if len(begun) > ahead:
            yield _result(begun.popleft())
    while begun:
        yield _result(begun.popleft())


def _result(task: Task) -> tuple[slice, Batch]:
    answer = task[1].result()
    if isinstance(answer, Batch):
        return task[0], answer
    with open(answer, "rb") as file:
        batch: Batch = pickle.load(file)
    os.unlink(answer)
    return task[0], batch


def _collected(results: Iterator[tuple[slice, Batch]]) -> Iterator[Batch]:
    """Joins the blocks of each part."""
    blocks: list[Batch] = []
    for part, block in results:
        blocks.append(block)
        if sum(len(each.found) for each in blocks) == part.stop - part.start:
            files = [found for each in blocks for found in each.found]
            yield Batch(files, np.concatenate([each.pixels for each in blocks]))
            blocks = []


@contextmanager
def _pool(num_workers: int, num_files: int) -> Iterator[Callable[..., "Future[Any]"]]:
    """Starts workers: threads for few files; processes for many, because decoding small images holds Python's lock."""
    if num_workers == 1 or num_files <= FEW:
        threads = ThreadPoolExecutor(num_workers)
        try:
            yield lambda *args: threads.submit(decode_files, *args)
        finally:
            threads.shutdown(cancel_futures=True)
        return
    # not forks of this process, which has threads, but of a server that has imported what they need
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory(prefix="cifar-resnets-") as folder, ThreadPoolExecutor(num_workers + 1) as threads:
        processes = ProcessPoolExecutor(num_workers, context, initializer=_start_worker)
        starting = threads.submit(lambda: [processes.submit(int) for _ in range(num_workers)])

        def submit(*args: Any) -> "Future[Any]":
            if starting.done():
                return processes.submit(_decode_to_file, folder, *args)
            return threads.submit(decode_files, *args)  # until the processes are there

        try:
            yield submit
        finally:
            threads.shutdown(cancel_futures=True)
            processes.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leaves the cores to the network and Ctrl-C to the main process; silences Pillow's warnings about metadata."""
    os.nice(5)  # all threads of a convolution wait for the slowest
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the main one was killed; the queue of its tasks would never end."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)


def _decode_to_file(folder: str, *args: Any) -> str:
    """Writes a batch to a new file: of a process that is killed within a large answer the end would never come."""
    descriptor, path = tempfile.mkstemp(dir=folder)
    with open(descriptor, "wb") as file:
        pickle.dump(decode_files(*args), file)
    return path


def decode_files(found: Sequence[Found], image_size: int, background: str, resize: Resize = "squash") -> Batch:
    """Decodes files one after another as the training does; damaged ones become problems."""
    pixels, known = np.empty((len(found), image_size, image_size, 3), np.uint8), formats()
    problems = [each.problem or problem_of(each.path) for each in found]
    for index, each in enumerate(found):
        if not problems[index]:
            problems[index] = decode_into(pixels[index], Path(each.path), known, background, resize).failure
    files = [Found(each.path, problem) for each, problem in zip(found, problems, strict=True)]
    return Batch(files, pixels[[not problem for problem in problems]])


def problem_of(path: str) -> str:
    """Returns why a path cannot hold an image, or an empty text: opening a pipe would wait for its other end."""
    try:
        status = os.stat(path)
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:  # for a name with a zero byte
        return str(error)
    if not stat.S_ISREG(status.st_mode):
        return "no regular file"
    return "" if status.st_size else "the file is empty"

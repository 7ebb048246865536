from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support import TINY, Result, write_images

from cifar_resnets.__main__ import main

IMAGES_VARIABLE = "CIFAR_RESNETS_IMAGES"
pytest_plugins = ["faults.table"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets each process of pytest-xdist begin with tests that take long: at the end, quick ones keep all of them busy.

    Its `worksteal` gives each process an equal part of the list, in order; a module's tests stay together.
    """
    items.sort(key=lambda item: item.get_closest_marker("process") is None)
    parts: list[list[pytest.Item]] = [[] for _ in range(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))]
    for _, group in itertools.groupby(items, key=lambda item: item.path):
        min(parts, key=len).extend(group)
    items[:] = itertools.chain.from_iterable(parts)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps decoded images out of the user's cache."""
    monkeypatch.setenv("CIFAR_RESNETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Takes back what Lightning leaves in the environment, such as MASTER_PORT: later tests start jobs."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from a second thread, and a forked process may hang after one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command line in this process, in an empty folder: no import to wait for."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Result:
        capfd.readouterr()
        status = 0
        try:
            main(args)
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Result(status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def checkpoint(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny network with `model.tta`, trained on `image_folder`; outside of a run's folder."""
    folder = tmp_path_factory.mktemp("trained")
    model = TINY.partition("data:")[0].replace("model:", "model:\n  tta: [mirror, shift1]")
    data = f"{{root: {image_folder}, image_size: 16, batch_size: 8, eval_batch_size: 10}}"
    trainer = f"{{accelerator: cpu, max_epochs: 2, default_root_dir: {folder}}}"
    recipe = f"{model}data: {{class_path: ImageFolder, init_args: {data}}}\ntrainer: {trainer}\nexplain: null"
    (folder / "recipe.yaml").write_text(recipe)
    main(["fit", "-c", str(folder / "recipe.yaml")])
    return shutil.copy(folder / "tiny/version_0/checkpoints/best.ckpt", folder / "best.ckpt")


@pytest.fixture(scope="session")
def real_images() -> Path:
    """CIFAR-10 as image files, where the machine has them."""
    folder = os.environ.get(IMAGES_VARIABLE)
    if not folder:
        pytest.skip(
            f"NOT TESTED ON REAL IMAGES: {IMAGES_VARIABLE} names no folder with train/<class>/* and test/<class>/*"
        )
    return Path(folder)

"""Checkpoints that are damaged, missing or malicious: named and refused, and what is good stays."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import differences
from faults.matrix import fault, files_in, leaves_nothing, one_line
from faults.runs import TINY_RUN, is_as_if_uninterrupted, resumed, started, uninterrupted, write_recipe
from processes import run

from cifar_resnets.runs.checkpoint_file import read_checkpoint_file, write_checkpoint

pytestmark = pytest.mark.process

SAVES = ["--last_checkpoint.every_n_steps", "1"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uninterrupted(tmp_path_factory.mktemp("reference") / "run", *SAVES, epochs=8)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    process = started(folder, *SAVES, epochs=8)
    process.signal(15)
    assert process.wait(30).status == 143
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A folder with a run that was stopped within its training."""
    return shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_the_end(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(place: float) -> Callable[[Path], None]:
    def flip_a_bit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return flip_a_bit


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [
    pytest.param(truncate, marks=fault("truncated checkpoint"), id="truncated"),
    pytest.param(cut_the_end, marks=fault("truncated checkpoint"), id="last byte"),
    pytest.param(empty, marks=fault("empty checkpoint"), id="empty"),
    *(pytest.param(flip(p), marks=fault("bit-flipped checkpoint"), id=f"bit at {p}") for p in (0, 0.5, 1)),
    pytest.param(remove, marks=fault("missing checkpoint"), id="missing"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_last_is_refused_and_auto_falls_back(damage: Callable[[Path], None], stopped: Path, reference: Path) -> None:
    last = stopped / TINY_RUN / "checkpoints/last.ckpt"
    damage(last)
    before = files_in(stopped)
    one_line(resumed(stopped, *SAVES), 4, "last.ckpt", "auto")
    leaves_nothing(stopped, before)
    result = resumed(stopped, *SAVES, how="auto")
    assert (result.status, result.err) == (0, "")
    assert damage is remove or "previous.ckpt" in result.out.splitlines()[0], result.out
    is_as_if_uninterrupted(stopped, reference)


@pytest.mark.parametrize("damage", [DAMAGES[0], DAMAGES[3]])
def test_an_evaluation_never_takes_random_weights(damage: Callable[[Path], None], stopped: Path) -> None:
    path = f"{TINY_RUN}/checkpoints/last.ckpt"
    damage(stopped / path)
    before = files_in(stopped)
    for command in ("test", "validate", "predict"):
        one_line(run(command, "--ckpt_path", path, cwd=stopped), 4, "last.ckpt")
    one_line(run("test", "--ckpt_path", "missing.ckpt", cwd=stopped), 4, "missing.ckpt")
    leaves_nothing(stopped, before)


@fault("all checkpoints damaged: auto says so, and starts anew")
def test_auto_without_a_good_checkpoint(stopped: Path, reference: Path) -> None:
    checkpoints = list((stopped / TINY_RUN / "checkpoints").iterdir())
    for path in checkpoints:
        empty(path)
    result = resumed(stopped, *SAVES, how="auto")
    assert (result.status, result.err) == (0, "")
    assert result.out.count("starting anew") == len(checkpoints)
    is_as_if_uninterrupted(stopped, reference)


class _Payload:
    """What a pickle executes when it is read without care."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


def _refused_everywhere(folder: Path, path: Path, sentinel: Path, *culprits: str) -> None:
    for args in (
        ["fit", "-c", "tiny.yaml", "--ckpt_path", str(path)],
        ["test", "--ckpt_path", str(path)],
        ["fit", "-c", "tiny.yaml", "--model.weights", str(path)],
    ):
        result = run(*args, cwd=folder)
        assert not sentinel.exists(), args
        one_line(result, 4, path.name, *culprits)


@fault("malicious checkpoint: pickle payload")
def test_a_pickle_payload_is_not_executed(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {}, "data": {}, "x": _Payload(sentinel)}, path)
    _refused_everywhere(tmp_path, path, sentinel)
    path.write_bytes(pickle.dumps(_Payload(sentinel)))
    _refused_everywhere(tmp_path, path, sentinel)


@fault("malicious checkpoint: pickle payload")
def test_a_pickle_payload_with_a_checksum_is_not_executed(stopped: Path) -> None:
    sentinel, path = stopped / "sentinel", stopped / "evil.ckpt"
    torch.save({"x": _Payload(sentinel)}, path)
    _refused_everywhere(stopped, path, sentinel)
    # whoever makes the payload can make the checksum as well
    data = path.read_bytes()[:-2] + (71).to_bytes(2, "little")
    path.write_bytes(data + b"sha256:" + hashlib.sha256(data).hexdigest().encode())
    _refused_everywhere(stopped, path, sentinel, "Python objects")


@fault("malicious checkpoint: _instantiator payload")
def test_an_instantiator_payload_is_not_executed(stopped: Path, reference: Path) -> None:
    (stopped / "evil_module.py").write_text(
        "import os\nos.mkdir('sentinel')\n\n\ndef make(*args, **kwargs):\n    pass\n"
    )
    content = read_checkpoint_file(stopped / TINY_RUN / "checkpoints/last.ckpt")
    for place in ("hyper_parameters", "datamodule_hyper_parameters"):
        content.setdefault(place, {})["_instantiator"] = "evil_module.make"
    content["hyper_parameters"]["_class_path"] = "evil_module.make"
    write_checkpoint(content, stopped / "evil.ckpt")
    env = {"PYTHONPATH": str(stopped)}
    for args in (["test"], ["fit", "-c", "tiny.yaml", *SAVES]):
        result = run(*args, "--ckpt_path", "evil.ckpt", cwd=stopped, env=env)
        assert not (stopped / "sentinel").exists()
        assert result.status in (0, 2, 4)
        assert result.err.count("\n") <= 1


@pytest.mark.parametrize("place", ["data", "schedule", "nested"])
@fault("malicious checkpoint: class_path of a module beside it")
def test_a_class_path_is_not_imported(place: str, stopped: Path) -> None:
    (stopped / "evil_module.py").write_text("import os\nos.mkdir('sentinel')\n")
    content = read_checkpoint_file(stopped / TINY_RUN / "checkpoints/last.ckpt")
    evil = {"class_path": "evil_module.Evil", "init_args": {}}
    if place == "data":
        content["data"] |= evil
    elif place == "schedule":
        content["hyper_parameters"]["schedule"] = evil
    else:
        content["data"]["init_args"]["augment"] = evil
    write_checkpoint(content, stopped / "evil.ckpt")
    result = run("test", "--ckpt_path", "evil.ckpt", cwd=stopped, env={"PYTHONPATH": str(stopped)})
    assert not (stopped / "sentinel").exists()
    one_line(result, 4, "evil_module.Evil")


@fault("checkpoint of another network or other classes: one line with both")
def test_a_checkpoint_of_another_network(stopped: Path) -> None:
    path = f"{TINY_RUN}/checkpoints/last.ckpt"
    before = files_in(stopped)
    network = ["--model.network_args", "{depths: [2], widths: [8], stem_width: 8}", "--model.network", "cifar_resnet32"]
    line = one_line(run("fit", "-c", "tiny.yaml", *network, "--ckpt_path", path, cwd=stopped), 4)
    assert "cifar_resnet20 with 10 classes" in line
    assert "cifar_resnet32 with 10 classes" in line
    classes = ["--data.classes", "[0, 1, 2]", "--data.num_train", "100"]
    line = one_line(run("fit", "-c", "tiny.yaml", *classes, "--ckpt_path", path, cwd=stopped), 4)
    assert "10 classes" in line
    assert "3 classes" in line
    shutil.rmtree(stopped / "logs/tiny/version_1", ignore_errors=True)
    shutil.rmtree(stopped / "logs/tiny/version_2", ignore_errors=True)
    leaves_nothing(stopped, before)


@fault("what the user types wins over the checkpoint, also on fit")
def test_what_is_typed_wins(stopped: Path) -> None:
    result = resumed(stopped, *SAVES, "--model.lr", "0.001", "--model.weight_decay", "0.1")
    assert (result.status, result.err) == (0, "")
    assert "resumed with other settings: model.lr 0.05 -> 0.001, model.weight_decay 0.0005 -> 0.1" in result.out
    group = read_checkpoint_file(stopped / TINY_RUN / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == 0.001
    assert group["weight_decay"] == 0.1


@fault("a run is continued from another folder, by an absolute path")
def test_resumed_from_another_folder(stopped: Path, reference: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    recipe = ["-c", str(stopped / "tiny.yaml"), "--trainer.default_root_dir", str(stopped / "logs")]
    result = run("fit", *recipe, *SAVES, "--ckpt_path", "last", cwd=elsewhere)
    assert (result.status, result.err) == (0, "")
    assert differences(reference, stopped / TINY_RUN) == []


@fault("a file is continued in a folder of its own; the first one stays")
def test_a_file_is_continued_in_a_folder_of_its_own(stopped: Path, reference: Path) -> None:
    before = files_in(stopped / TINY_RUN)
    result = resumed(stopped, *SAVES, how=f"{TINY_RUN}/checkpoints/previous.ckpt")
    assert (result.status, result.err) == (0, "")
    assert files_in(stopped / TINY_RUN) == before
    assert differences(reference, stopped / "logs/tiny/version_1") == []

"""Checkpoints of strangers: they name files and addresses, or are made to exhaust a reader; nothing is touched."""

from __future__ import annotations

import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from faults.matrix import fault, one_line
from support import Result

from cifar_resnets.runs.checkpoint_file import KEY, read_checkpoint_file, write_checkpoint

GROUP = "checkpoint"
FIXTURE = Path(__file__).parent.parent / "fixtures/v0.1.0"
GOOD = FIXTURE / "checkpoints/last.ckpt"


def truncates(content: dict[str, Any], victim: Path) -> None:
    content[KEY]["logged"]["events"][str(victim)] = 0


def plants(content: dict[str, Any], victim: Path) -> None:
    content[KEY]["logged"]["events"]["../../../planted.py"] = 10**6


def deletes(content: dict[str, Any], victim: Path) -> None:
    state = next(each for name, each in content["callbacks"].items() if name.startswith("ModelCheckpoint"))
    path = f"{state['dirpath']}/../../../../{victim.name}"
    state |= {"best_k_models": {path: torch.tensor(-1.0)}, "best_model_path": path, "kth_best_model_path": path}


def requests(content: dict[str, Any], victim: Path) -> None:
    args = {"pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:9/x"}}
    content["hyper_parameters"] |= {"network": "resnet10t", "network_args": args}


def reads(content: dict[str, Any], victim: Path) -> None:
    content["hyper_parameters"]["network_args"]["checkpoint_path"] = str(victim)


def calls(content: dict[str, Any], victim: Path) -> None:
    content["hyper_parameters"]["schedule"] = {"class_path": "os.system", "init_args": {}}


OUTSIDE, WEIGHTS = (
    fault("malicious checkpoint: a path out of the run's folder"),
    fault("malicious checkpoint: weights elsewhere"),
)
CHANGES = [
    *(pytest.param(change, marks=OUTSIDE) for change in (truncates, plants, deletes)),
    *(pytest.param(change, marks=WEIGHTS) for change in (requests, reads)),
    pytest.param(calls, marks=fault("malicious checkpoint: class_path of no schedule")),
]


def run_on(evil: Path, command: str, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Result:
    """Runs a command on a checkpoint, and asserts that nothing beside it is read, written or asked for."""
    victim = evil.with_name("thesis.txt")
    victim.write_text("precious")
    config = yaml.safe_load((FIXTURE / "config.yaml").read_text())
    recipe = {name: config[name] for name in ("model", "data")} | {"trainer": {"accelerator": "cpu", "max_epochs": 2}}
    evil.with_name("r.yaml").write_text(yaml.safe_dump(recipe))
    before = sorted(evil.parent.rglob("*"))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("a request"))
    result = cli(command, *(["-c", "r.yaml"] if command == "fit" else []), "--ckpt_path", "evil.ckpt")
    assert victim.read_text() == "precious"
    assert sorted(evil.parent.rglob("*")) == before
    return result


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_touched(
    command: str,
    change: Callable[[dict[str, Any], Path], None],
    cli: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = read_checkpoint_file(GOOD)
    change(content, tmp_path / "thesis.txt")
    write_checkpoint(content, tmp_path / "evil.ckpt")
    one_line(
        run_on(tmp_path / "evil.ckpt", command, cli, monkeypatch), 4, "os.system" if change is calls else "evil.ckpt"
    )


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "no regular file"


def bomb(path: Path) -> str:
    with zipfile.ZipFile(GOOD) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
        target.writestr("archive/data/99999", b"\0" * 2**26)
    return "compressed records"


def saved_again(path: Path) -> str:
    torch.save(read_checkpoint_file(GOOD), path)
    return "--model.weights"


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(pipe, marks=fault("a pipe in the place of a checkpoint")),
        pytest.param(bomb, marks=fault("a deflate bomb in the place of a checkpoint")),
        pytest.param(saved_again, marks=fault("a checkpoint saved again by torch.save")),
    ],
)
def test_a_file_of_another_kind(
    command: str,
    make: Callable[[Path], str],
    cli: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make(tmp_path / "evil.ckpt")
    one_line(run_on(tmp_path / "evil.ckpt", command, cli, monkeypatch), 4, "evil.ckpt", problem)

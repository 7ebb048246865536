"""How often a command reads its checkpoint, and loads the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run
from support import TINY, Result

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.runs import checkpoint_file, checkpoint_io

Run = Callable[..., Result]
CHECKPOINTS = "logs/tiny/version_0/checkpoints"
ONCE = ["hashed", "unpickled", "loaded"]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trains a run of one epoch in another process; returns the list of what happens to checkpoints in this one."""
    (tmp_path / "r.yaml").write_text(TINY + "explain: null\n")
    assert run("fit", "-c", "r.yaml", cwd=tmp_path).status == 0
    found: list[str] = []

    def note(owner: Any, name: str, text: Callable[..., str | None]) -> None:
        original = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            found.extend(filter(None, [text(*args)]))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    note(Path, "read_bytes", lambda path: path.name if path.suffix == ".ckpt" else None)
    note(checkpoint_io, "write_checkpoint", lambda content, path: f"wrote {path.name}")
    note(hashlib, "sha256", lambda data=b"": "hashed" if isinstance(data, memoryview) else None)
    note(torch, "load", lambda *args: "unpickled")
    note(ImageClassifier, "load_state_dict", lambda *args: "loaded")
    return found


def test_a_resumed_fit(calls: list[str], cli: Run) -> None:
    result = cli("fit", "-c", "r.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert (result.status, result.err) == (0, "")
    end = calls.index(next(call for call in calls if call.startswith("wrote")))
    assert calls[:end] == ["last.ckpt", *ONCE]
    saved = sum(call.startswith("wrote") for call in calls)
    assert [call for call in calls[end:] if not call.startswith("wrote")] == [
        *["hashed"] * saved, "best.ckpt", *ONCE,  # the test at the end
    ]  # fmt: skip


def test_a_fit_that_goes_on_from_a_file(calls: list[str], cli: Run) -> None:
    result = cli("fit", "-c", "r.yaml", "--ckpt_path", f"{CHECKPOINTS}/best.ckpt", "--trainer.max_epochs", "2")
    assert (result.status, result.err) == (0, "")
    end = calls.index(next(call for call in calls if call.startswith("wrote")))
    # to the new run's folder, the file is copied as it is
    assert calls[:end] == ["best.ckpt", "hashed", "unpickled", "best.ckpt", "loaded"]


def test_auto_reads_a_damaged_file_and_then_the_next(calls: list[str], cli: Run) -> None:
    Path(CHECKPOINTS, "last.ckpt").write_bytes(b"damaged")
    result = cli("fit", "-c", "r.yaml", "--ckpt_path", "auto")
    assert (result.status, result.err) == (0, "")
    assert calls == ["last.ckpt", "best.ckpt", *ONCE, "best.ckpt", *ONCE]  # nothing was left to train but the test


def test_the_rates_of_a_resumed_fit_are_set_once(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = "{accelerator: cpu, callbacks: [{class_path: LRFinder, init_args: {num_steps: 50, min_lr: 0.001}}], "
    (tmp_path / "r.yaml").write_text(TINY.replace("{accelerator: cpu, ", finder) + "explain: null\n")
    assert run("fit", "-c", "r.yaml", cwd=tmp_path).status == 0
    found: list[float] = []
    monkeypatch.setattr(ImageClassifier, "set_rates", lambda self, lr, lr_min=None: found.append(lr))
    result = cli("fit", "-c", "r.yaml", "--ckpt_path", "last")
    assert (result.status, result.err) == (0, "")
    saved = checkpoint_file.read_checkpoint_file(tmp_path / CHECKPOINTS / "last.ckpt")
    assert found == [saved["hyper_parameters"]["lr"]]
    assert found != [0.05]  # as configured


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation(command: str, calls: list[str], cli: Run) -> None:
    result = cli(command, "--ckpt_path", f"{CHECKPOINTS}/best.ckpt")
    assert (result.status, result.err) == (0, "")
    assert calls == ["best.ckpt", *ONCE]

"""Paths in the state of a ModelCheckpoint, which deletes files at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_resnets.callbacks.exact_resume import _relocate_checkpoints

OLD = "logs/tiny/version_0/checkpoints"


def state(*paths: str) -> dict[str, Any]:
    scores = {path: torch.tensor(0.1 * number) for number, path in enumerate(paths)}
    best, kth = paths[-1], paths[0]
    more = {
        "best_model_path": best,
        "kth_best_model_path": kth,
        "last_model_path": "",
        "best_model_score": scores[best],
    }
    return {"dirpath": OLD, "best_k_models": scores, **more}


def test_paths_are_those_of_the_runs_folder(tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / name).touch()
    found = state(f"{OLD}/a.ckpt", f"{OLD}/b.ckpt")
    _relocate_checkpoints(found, str(tmp_path), "max")
    assert list(found["best_k_models"]) == [f"{tmp_path}/a.ckpt", f"{tmp_path}/b.ckpt"]
    assert (found["dirpath"], found["last_model_path"]) == (str(tmp_path), "")
    assert (found["kth_best_model_path"], found["best_model_path"]) == (f"{tmp_path}/a.ckpt", f"{tmp_path}/b.ckpt")


@pytest.mark.parametrize("path", ["/victims/thesis.txt", f"{OLD}/../../thesis.txt", f"{OLD}/..", "..", "/", ""])
def test_no_path_leads_elsewhere(path: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (tmp_path / "thesis.txt").touch()
    found = state(path)
    _relocate_checkpoints(found, str(folder), "max")
    assert found["best_k_models"] == {}
    assert {found[name] for name in ("best_model_path", "kth_best_model_path", "last_model_path")} == {""}


def test_the_worst_of_those_that_are_left_is_deleted_first(tmp_path: Path) -> None:
    for name in ("b.ckpt", "c.ckpt"):
        (tmp_path / name).touch()
    for mode, worst in (("max", "b.ckpt"), ("min", "c.ckpt")):
        found = state(f"{OLD}/a.ckpt", f"{OLD}/b.ckpt", f"{OLD}/c.ckpt")
        _relocate_checkpoints(found, str(tmp_path), mode)
        assert found["kth_best_model_path"] == f"{tmp_path}/{worst}"

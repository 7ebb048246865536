from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cifar_resnets.errors import ConfigurationError, OutputError
from cifar_resnets.runs.run_dir import (
    claim_checkpoints,
    claim_run_dir,
    lock_run_dir,
    missing_folders,
    name_of_run,
    remove_links,
    remove_unused,
    run_dirs,
)


def test_each_claim_is_a_new_folder_after_the_last(tmp_path: Path) -> None:
    assert claim_run_dir(tmp_path, "a") == tmp_path / "a" / "version_0"
    (tmp_path / "a" / "version_7").mkdir()
    (tmp_path / "a" / "version_x").mkdir()
    assert claim_run_dir(tmp_path, "a") == tmp_path / "a" / "version_8"
    assert claim_run_dir(tmp_path, "b") == tmp_path / "b" / "version_0"


def test_claims_at_the_same_time_never_share_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda _: claim_run_dir(tmp_path, "a"), range(64)))
    assert len(set(claimed)) == 64
    assert all(path.is_dir() for path in claimed)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        claim_run_dir(tmp_path / "file", "a")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)  # root writes anywhere
    try:
        with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
            claim_run_dir(tmp_path, "a")
    finally:
        if was_root:
            os.seteuid(0)
        tmp_path.chmod(0o755)


def test_the_newest_run_comes_first(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        (tmp_path / f"x/version_{number}").mkdir(parents=True)
    (tmp_path / "x/version_best").mkdir()
    assert [path.name for path in run_dirs(tmp_path, "x")] == ["version_10", "version_9", "version_2"]
    assert run_dirs(tmp_path, "y") == []


def test_a_folder_is_locked_once_and_left_without_a_trace(tmp_path: Path) -> None:
    lock = lock_run_dir(tmp_path)
    assert lock is not None
    assert lock_run_dir(tmp_path) is None
    os.close(lock)
    again = lock_run_dir(tmp_path)
    assert again is not None
    os.close(again)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_checkpoints_is_claimed_by_one_run(tmp_path: Path) -> None:
    claim_checkpoints(tmp_path / "new/deep", "checkpoint.dirpath")
    assert list((tmp_path / "new/deep").iterdir()) == []
    with pytest.raises(ConfigurationError, match="^checkpoint.dirpath: .*deep is not allowed, another run is writing"):
        claim_checkpoints(tmp_path / "new/deep", "checkpoint.dirpath")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/notes.txt").touch()
    claim_checkpoints(tmp_path / "old", "last_checkpoint.dirpath")
    (tmp_path / "old/best.ckpt").touch()
    with pytest.raises(ConfigurationError, match="old is not allowed, it holds best.ckpt of another run: give another"):
        claim_checkpoints(tmp_path / "old", "checkpoint.dirpath")
    claim_checkpoints(tmp_path / "old/notes.txt", "checkpoint.dirpath")  # reported before the first step


def test_a_run_that_has_come_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    parents = missing_folders(tmp_path / "logs/a")
    assert parents == [tmp_path / "logs/a", tmp_path / "logs"]
    run_dir = claim_run_dir(tmp_path / "logs", "a")
    for name in ("run.json", "config.yaml", "events.out.tfevents.1"):
        (run_dir / name).touch()
    (run_dir / "checkpoints").mkdir()
    remove_unused(run_dir, parents)
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_has_written_stays_and_so_do_its_neighbours(tmp_path: Path) -> None:
    first = claim_run_dir(tmp_path, "a")
    (first / "metrics.csv").touch()
    remove_unused(first, [])
    second = claim_run_dir(tmp_path, "a")
    (second / "copied.ckpt").touch()
    remove_unused(second, [tmp_path / "a"], [second / "copied.ckpt"])
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", first, first / "metrics.csv"]


@pytest.mark.parametrize(
    ("path", "recorded", "name"),
    [
        ("logs/b/version_3/checkpoints/best.ckpt", "logs/a/version_0", "b"),  # the folder was renamed
        ("best.ckpt", "logs/a/version_0", "a"),
        ("moved/checkpoints/best.ckpt", "logs/a/version_0", "a"),
        ("best.ckpt", "../version_0", None),
        ("best.ckpt", "logs/a", None),
        ("best.ckpt", "logs/a\n/version_0", None),
        ("best.ckpt", 7, None),
        ("best.ckpt", None, None),
    ],
)
def test_the_name_of_a_checkpoint_s_run(path: str, recorded: object, name: str | None) -> None:
    assert name_of_run(Path(path), {"run_dir": recorded}) == name
    assert name_of_run(Path("best.ckpt"), None) is None


def test_links_where_lightning_writes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for name in ("hparams.yaml", "fit-profile.txt", "notes.txt"):
        (tmp_path / name).symlink_to("thesis.txt" if name != "hparams.yaml" else "not_there.py")
    remove_links(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "precious"

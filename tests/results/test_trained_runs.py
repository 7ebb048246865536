from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweep_runs import CONFIG, FINDER, ONE_CYCLE, configuration, write_trained

from cifar_resnets.cli.collect import collect
from cifar_resnets.errors import DataError
from cifar_resnets.results.comparison import flat_settings
from cifar_resnets.results.trained_runs import comparable_settings, find_runs, read_trained

SAME = {
    *("seed_everything", "name", "ckpt_path", "weights_only", "explain.report", "last_checkpoint.dirpath"),
    *("checkpoint.dirpath", "trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes"),
    *("trainer.logger", "trainer.log_every_n_steps", "trainer.benchmark", "trainer.default_root_dir"),
    "data.init_args.root",  # of CIFAR10, which is the same everywhere
}
STARTED = "2026-11-21T10:00:00+0000"


# What was trained.


@pytest.mark.parametrize("key", sorted(set(flat_settings(CONFIG)) - {"trainer.callbacks", "data.class_path"}))
def test_every_setting_counts_but_those_that_change_no_result(key: str) -> None:
    settings = comparable_settings(configuration(**{key: "another"}))
    assert (settings == comparable_settings(CONFIG)) == (key in SAME)


def test_another_image_folder_is_other_data() -> None:
    folders = [
        configuration(**{"data.class_path": "cifar_resnets.data.image_folder.ImageFolder", "data.init_args.root": root})
        for root in "ab"
    ]
    assert comparable_settings(folders[0]) != comparable_settings(folders[1])


def test_where_the_archive_came_from_is_no_setting() -> None:
    mirrored = configuration(**{"data.init_args.urls": ["https://host/file"]})
    assert comparable_settings(mirrored) == comparable_settings(CONFIG)


def test_a_rate_that_was_found_is_no_setting() -> None:
    def settings(callbacks: list[Any], lr: float, lr_min: float | None) -> dict[str, str]:
        schedule = {**ONE_CYCLE, "init_args": {**ONE_CYCLE["init_args"], "lr_min": lr_min}}
        return comparable_settings(
            configuration(**{"trainer.callbacks": callbacks, "model.lr": lr, "model.schedule": schedule})
        )

    found = settings([FINDER], 0.05, 0.001)
    assert found == settings([FINDER], 0.07, 0.002)
    assert found != settings([FINDER], 0.05, None)  # where the cycle starts was not searched
    assert found != settings([], 0.05, 0.001)
    assert found != settings([{**FINDER, "init_args": {**FINDER["init_args"], "num_steps": 300}}], 0.05, 0.001)
    assert settings([], 0.05, None) != settings([], 0.07, None)


def test_callbacks_count_in_their_order() -> None:
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/acc"}}
    several = [None, [stop], [FINDER], [stop, FINDER], [FINDER, stop], [stop, stop]]
    settings = [comparable_settings(configuration(**{"trainer.callbacks": each})) for each in several]
    assert all(one != other for index, one in enumerate(settings) for other in settings[:index])
    assert settings[0] == comparable_settings(configuration(**{"trainer.callbacks": []}))


# What a folder holds.


def test_a_finished_run(tmp_path: Path) -> None:
    found = read_trained(write_trained(tmp_path / "version_0", seed=3, accuracy=0.25, val_accuracy=0.5))
    assert (found.problem, found.notes) == ("", [])
    assert (found.accuracy, found.val_accuracy, found.commit) == (0.25, 0.5, "0123456789abcdef")
    assert found.started == 1795255200  # date --date 2026-11-21T10:00:00Z +%s
    assert found.setup is not None
    assert (found.setup.name, found.setup.network, found.setup.seed) == ("tiny", "cifar_resnet20", 3)


def test_the_network_is_the_name_of_a_run_without_one(tmp_path: Path) -> None:
    found = read_trained(write_trained(tmp_path / "version_0", name=None))
    assert found.setup is not None
    assert found.setup.name == "cifar_resnet20"


DAMAGE = [b"", b"\xff\xfe\x00garbage", b"[1, 2]", b'"\n', b"{", b"!!python/object:os.system {}", b"half"]


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "test.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_a_problem(tmp_path: Path, name: str, damage: bytes) -> None:
    folder = write_trained(tmp_path / "version_0")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
    found = read_trained(folder)
    assert found.problem.startswith(f"{name} cannot be read: ")
    assert "\n" not in found.problem
    assert math.isnan(found.accuracy)


def test_a_configuration_that_was_cut_off_anywhere_is_a_problem_or_whole(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "version_0")
    path, expected = folder / "config.yaml", read_trained(folder).setup
    lines = path.read_text().splitlines(keepends=True)
    for end in range(len(lines)):
        path.write_text("".join(lines[:end]))
        found = read_trained(folder)
        assert "config.yaml" in found.problem if found.setup is None else found.setup == expected


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_a_missing_file_is_a_problem(tmp_path: Path, name: str) -> None:
    folder = write_trained(tmp_path / "version_0")
    (folder / name).unlink()
    assert read_trained(folder).problem == f"there is no {name}"


def test_a_folder_that_was_claimed_only(tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()
    assert [each.problem for each in find_runs([tmp_path])] == ["there is no config.yaml and no run.json"]


@pytest.mark.parametrize("seed", [None, True, "zero", 1.5])
def test_a_seed_that_is_no_number_is_a_problem(tmp_path: Path, seed: Any) -> None:
    folder = write_trained(tmp_path / "version_0")
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(seed_everything=seed)))
    assert "seed_everything" in read_trained(folder).problem


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_an_evaluation_is_no_run_of_a_seed(tmp_path: Path, command: str) -> None:
    found = read_trained(write_trained(tmp_path / "version_0", command=command))
    assert found.problem == f"it was made by `{command}`, which trains nothing"
    assert found.setup is None


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "version_0", accuracy=None)
    os.utime(folder / "metrics.csv", (4e9, 4e9))
    found = read_trained(folder)
    assert found.problem.startswith("it has not finished: there is no test.json; last written 2096-10-02 ")
    assert found.setup is not None


def test_a_run_that_was_tested_and_goes_on(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "version_0", started=STARTED)
    seconds = read_trained(folder).started
    os.utime(folder / "test.json", (seconds - 1, seconds - 1))
    assert "test.json is older than its last start" in read_trained(folder).problem
    os.utime(folder / "test.json", (seconds, seconds))  # within the same second
    assert read_trained(folder).problem == ""


def test_a_run_that_was_resumed_is_as_new_as_its_last_start(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "version_0", started=STARTED)
    record = json.loads((folder / "run.json").read_text())
    resumed = [{**record, "started": f"2026-11-21T1{hour}:00:00+0000"} for hour in (1, 2)]
    (folder / "run.json").write_text(json.dumps({**record, "resumed": resumed}))
    assert read_trained(folder).started == 1795255200 + 2 * 3600
    os.utime(folder / "test.json", (1795255200 + 3600, 1795255200 + 3600))
    assert "it has not finished" in read_trained(folder).problem


@pytest.mark.parametrize("started", ["", "yesterday", "2026-11-21", None, 5])
def test_a_run_of_which_nobody_knows_when_it_started_is_a_problem(tmp_path: Path, started: Any) -> None:
    assert "run.json" in read_trained(write_trained(tmp_path / "version_0", started=started)).problem


def test_a_test_of_a_part_of_the_images_is_no_result(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "version_0")
    result = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps({**result, "complete": True}))
    assert read_trained(folder).problem == ""
    (folder / "test.json").write_text(json.dumps({**result, "complete": False}))
    assert read_trained(folder).problem == "test.json is about 1,000 images, not all, by trainer.limit_test_batches"


def test_a_test_of_no_images(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "version_0")
    result = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps({**result, "accuracy": None, "interval": None}))
    assert read_trained(folder).problem == "test.json is about no images"


@pytest.mark.parametrize("text", ["", "epoch,step,val/acc\n", "epoch,step,val/acc\n0,9,1.7e308\n", "epoch,step\n0,9\n"])
def test_a_result_counts_without_a_validation_accuracy(tmp_path: Path, text: str) -> None:
    folder = write_trained(tmp_path / "version_0", accuracy=0.25)
    (folder / "metrics.csv").write_text(text)
    found = read_trained(folder)
    assert (found.problem, found.accuracy, found.val_accuracy) == ("", 0.25, None)
    assert bool(found.notes) == (text == "")


# Where the runs are.


def test_runs_are_found_at_any_depth_and_each_once(tmp_path: Path) -> None:
    names = ["a/version_0", "a/version_2", "a/version_10", "b/c/version_0", "best run of all"]
    for name in names:
        write_trained(tmp_path / name)
    (tmp_path / "a/version_0/checkpoints/version_0").mkdir(parents=True)  # is inside a run
    (tmp_path / "b/version_x").mkdir()
    (tmp_path / "b/loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a/version_2")
    roots = [tmp_path, tmp_path / "a", tmp_path / "a/version_2", tmp_path / "b/.."]
    assert [str(each.folder.relative_to(tmp_path)) for each in find_runs(roots)] == names
    assert [each.folder for each in find_runs([tmp_path / "a/version_2"])] == [tmp_path / "a/version_2"]


def test_links_are_followed_within_the_folders(tmp_path: Path) -> None:
    write_trained(tmp_path / "elsewhere/version_0")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/archive").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "logs/processes").symlink_to("/proc")
    (tmp_path / "linked").symlink_to(tmp_path / "logs")
    for logs in (tmp_path / "logs", tmp_path / "linked"):
        archive, processes = find_runs([logs])
        assert archive.problem == processes.problem == f"it is a link out of {logs}, give it as well"
    assert [each.folder for each in find_runs([tmp_path])] == [
        tmp_path / "elsewhere/version_0", tmp_path / "linked/processes",
    ]  # fmt: skip


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(os.getuid() != 0, reason="takes root, who can become a user that may not read")
def test_folders_and_files_without_permission() -> None:
    # not pytest's folder, which nobody else may enter
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for number in range(5):
            write_trained(root / f"version_{number}", seed=number)
        (root / "private/version_0").mkdir(parents=True)
        for name, mode in (("version_0", 0), ("version_1", 0o744), ("version_2", 0o711), ("private", 0o700)):
            (root / name).chmod(mode)
        (root / "version_3/test.json").chmod(0o600)
        with another_user():
            found = {run.folder.name: run for run in find_runs([root])}
            with pytest.raises(DataError, match="private cannot be read: Permission denied"):
                collect([root / "private"])
    for name in ("private", "version_0", "version_1", "version_2"):
        assert found[name].problem == "it cannot be read: Permission denied"
    assert found["version_3"].problem == "test.json cannot be read: Permission denied"
    assert found["version_4"].problem == ""


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\n" + "".join(f"a{n}: &a{n} [{'*a, ' * 9}]\na: &a [*a{n}]\n" for n in range(9)),
        "- " * 3000,
        "#" * 2**21,
    ],
)
def test_one_hostile_run_does_not_stop_the_others(tmp_path: Path, text: str) -> None:
    write_trained(tmp_path / "version_0")
    (write_trained(tmp_path / "version_1") / "config.yaml").write_text(text)
    good, hostile = find_runs([tmp_path])
    assert good.problem == ""
    assert hostile.problem.startswith("config.yaml cannot be read")

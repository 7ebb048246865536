"""Flags that did not do what they say, in one fit that has them all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from support import TINY, Result, read_json

from cifar_resnets.__main__ import main
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
# the rate explodes after the second epoch
WORSE = (
    "lr: 50.0\n  schedule: {class_path: Constant, init_args: {warmup_epochs: 2, warmup_factor: 0.0001, "
    "warmup_shape: constant}}"
)
OTHERS = """
    - {class_path: ModelCheckpoint, init_args: {filename: newest}}
    - {class_path: OnExceptionCheckpoint, init_args: {dirpath: failed}}
"""
FLAGS = (
    *("--explain", "null", "--trainer.max_epochs", "4", "--checkpoint.save_top_k", "2"),
    *("--checkpoint.dirpath", "kept", "--trainer.profiler", "simple"),
    *("--data.eval_batch_size", "50", "--trainer.limit_test_batches", "1"),
    *("--trainer.logger+=CSVLogger", "--trainer.logger.save_dir", "added"),
)


class Fitted(NamedTuple):
    """A finished fit: the folder that it ran in, that of the run, and what it has printed."""

    folder: Path
    run: Path
    out: str


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder, out = tmp_path_factory.mktemp("fitted"), io.StringIO()
    content = yaml.safe_load(TINY.replace("lr: 0.05", WORSE))
    content["trainer"]["callbacks"] = yaml.safe_load(OTHERS)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(folder)
        main(["fit", "-c", "tiny.yaml", *FLAGS])
    return Fitted(folder, folder / "logs/tiny/version_0", out.getvalue())


def test_the_best_of_several_checkpoints_is_tested_whatever_other_callbacks_save(fitted: Fitted) -> None:
    with (fitted.run / "metrics.csv").open() as file:
        figures = [float(row["val/acc"]) for row in csv.DictReader(file) if row["val/acc"]]
    best = max(range(4), key=figures.__getitem__)
    assert best < 3  # so that the newest one is another
    [path] = (fitted.folder / "kept").glob(f"best-epoch={best}-step={5 * (best + 1)}-val_acc={figures[best]:.4f}.ckpt")
    assert f"best checkpoint: {path}\n" in fitted.out
    assert read_json(fitted.run / "test.json")["checkpoint"] == str(path)
    assert read_checkpoint_file(path)["val_acc"] == pytest.approx(figures[best])
    assert len(list((fitted.folder / "kept").iterdir())) == 2
    assert (fitted.run / "checkpoints/newest.ckpt").exists()


def test_the_mode_of_the_best_is_recorded(fitted: Fitted) -> None:
    assert yaml.safe_load((fitted.run / "config.yaml").read_text())["checkpoint"]["mode"] == "max"


@pytest.mark.parametrize("key", ["checkpoint", "last_checkpoint"])
def test_a_folder_with_the_checkpoints_of_another_run_is_refused(
    fitted: Fitted, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(fitted.folder)
    before = {path: path.stat().st_mtime_ns for path in fitted.folder.rglob("*")}
    result = cli("fit", "-c", "tiny.yaml", "--trainer.max_epochs", "4", f"--{key}.dirpath", "kept")
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert f"{key}.dirpath: {fitted.folder}/kept is not allowed, it holds best-epoch=" in result.err
    assert {path: path.stat().st_mtime_ns for path in fitted.folder.rglob("*")} == before


def test_two_callbacks_that_keep_the_same_checkpoints_are_refused(
    fitted: Fitted, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fitted.folder)
    again = "[{class_path: ModelCheckpoint, init_args: {monitor: val/acc, mode: max}}]"
    result = cli("fit", "-c", "tiny.yaml", "--trainer.max_epochs", "4", "--trainer.callbacks", again)
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert "trainer.callbacks: ModelCheckpoint is `checkpoint`, which is there by default: give its " in result.err
    assert [path.name for path in fitted.run.parent.iterdir()] == ["version_0"]


def test_a_test_of_a_part_of_the_images_says_so_and_is_no_result_of_collect(
    fitted: Fitted, cli: Callable[..., Result]
) -> None:
    num_images = read_json(fitted.run / "test.json")["images"]
    assert f"Test images, only {num_images} of them" in fitted.out
    assert " % of 1 test batches\n" in fitted.out
    collected = cli("collect", str(fitted.folder / "logs")).out
    assert "without a result: 1 of 1 folders" in collected
    assert f"test.json is about {num_images} images, not all, by trainer.limit_test_batches" in collected


def test_an_added_logger_leaves_the_others_in_place(fitted: Fitted) -> None:
    assert list(fitted.folder.glob("added/*/*/metrics.csv"))
    assert list(fitted.run.glob("events.out.tfevents.*"))


def test_a_profiler_leaves_its_report(fitted: Fitted) -> None:
    for stage in ("fit", "test"):
        assert "run_t" in (fitted.run / f"{stage}-profile.txt").read_text()


def test_predictions_are_written_without_explanations(fitted: Fitted) -> None:
    rows = (fitted.run / "test_predictions.csv").read_text().splitlines()
    assert len(rows) - 1 == read_json(fitted.run / "test.json")["images"]
    assert not (fitted.run / "figures").exists() and not (fitted.run / "report.html").exists()


def test_the_weights_that_a_fit_tests_are_the_averaged_ones_of_its_checkpoint(
    tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    assert cli("fit", "-c", "tiny.yaml", "--explain", "null", "--trainer.callbacks+=EMAWeightAveraging").status == 0
    tested = cli("test", "--ckpt_path", "logs/tiny/version_0/checkpoints/best.ckpt", "--explain", "null")
    assert tested.status == 0
    in_fit, alone = (read_json(Path(f"logs/tiny/version_{number}/test.json")) for number in (0, 1))
    assert (in_fit["loss"], in_fit["correct"]) == (alone["loss"], alone["correct"])
    assert not [each for each in recwarn if "Please add the following" in str(each.message)]


OWN = """
import timm
def net(num_classes):
    return timm.create_model("cifar_resnet20", num_classes=num_classes, depths=[1], widths=[8], stem_width=8)
"""


def test_a_network_of_the_users_is_resumed_by_the_command_that_names_it(
    tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_network.py").write_text(OWN)
    Path("tiny.yaml").write_text(TINY)
    args = ("fit", "-c", "tiny.yaml", "--explain", "null", "--model.network", "own_network:net")
    args += ("--model.network_args", "null")
    assert cli(*args).status == 0
    again = cli(*args, "--ckpt_path", "logs/tiny/version_0/checkpoints/last.ckpt", "--trainer.max_epochs", "2")
    assert (again.status, again.err) == (0, "") and "going on after step 5 of 10" in again.out

"""What every run shows of its mistakes: on by default, off by one key, and nothing of the training changes."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from processes import interpreter
from support import TINY, Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnets.__main__ import main
from cifar_resnets.callbacks.confusion import Confusion, EvaluationWriter
from cifar_resnets.callbacks.exact_resume import Continuation
from cifar_resnets.callbacks.misclassified import Misclassified
from cifar_resnets.callbacks.nonfinite_guard import NonfiniteGuard
from cifar_resnets.callbacks.progress import EpochLines
from cifar_resnets.callbacks.report_writer import ReportWriter
from cifar_resnets.callbacks.sync_buffers import AgreeingBuffers
from cifar_resnets.cli.default_callbacks import Explanations, callbacks, trainer_arguments
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs.log_files import MetricsFile

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
Cli = Callable[..., Result]

FIGURES = {"matrix", "class_accuracy", "pairs", "calibration", "precision_recall"}
GALLERIES = {"val_misclassified/most_confident", "val_misclassified/same_images", "test_misclassified/most_confident"}
CONFUSIONS = {f"{stage}_confusion/{name}" for stage in ("val", "test") for name in FIGURES}


@pytest.fixture
def fit(cli: Cli) -> Callable[..., Path]:
    """Runs a tiny fit with some arguments; the run's folder."""
    Path("tiny.yaml").write_text(TINY)

    def run(name: str, *args: str) -> Path:
        result = cli("fit", "-c", "tiny.yaml", "--name", name, *args)
        assert (result.status, result.err) == (0, ""), result.err
        return Path(f"logs/{name}/version_0")

    return run


def images(run_dir: Path) -> set[str]:
    return set(EventAccumulator(str(run_dir)).Reload().Tags()["images"])


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that explains itself."""
    folder = tmp_path_factory.mktemp("on")
    (folder / "tiny.yaml").write_text(TINY)
    with contextlib.chdir(folder):
        main(["fit", "-c", "tiny.yaml"])
    return folder / "logs/tiny/version_0"


def test_all_is_on_by_default_off_by_one_key_and_the_weights_are_the_same(on: Path, fit: Callable[..., Path]) -> None:
    off = fit("off", "--explain", "null")
    assert images(on) == GALLERIES | CONFUSIONS
    assert {path.stem for path in (on / "figures").iterdir()} == {
        tag.replace("/", "_") for tag in GALLERIES | CONFUSIONS
    }
    assert (on / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert images(off) == set()
    extra = {path.name for path in on.iterdir()} - {path.name for path in off.iterdir()}
    files = {
        "report.html",
        "layers.csv",
        "gallery.npz",
        "mistakes.npz",
    }
    assert {name for name in extra if not name.startswith("events")} == files | {"figures"}
    for numbers in ("test_predictions.csv", "test_calibration.json"):  # they are no pictures
        assert (on / numbers).read_bytes() == (off / numbers).read_bytes()
    with_it, without = weights(on), weights(off)
    assert all(torch.equal(with_it[key], without[key]) for key in without)


@pytest.mark.parametrize("command", [("test",), ("fit", "-c", "tiny.yaml")])
def test_a_checkpoint_of_a_run_that_had_it_is_read_without_it_in_silence(
    on: Path, cli: Cli, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(on.parents[2])  # a finished run tests its best checkpoint again, whose path is relative
    result = cli(*command, "--ckpt_path", str(on / "checkpoints/best.ckpt"), "--explain", "null")
    assert (result.status, result.err) == (0, "")
    assert not [each for each in recwarn if "ckpt_path" in str(each.message)]


def test_a_part_is_turned_off_by_its_own_key(fit: Callable[..., Path]) -> None:
    assert images(fit("a", "--explain.confusion", "null", "--explain.report", "false")) == GALLERIES
    assert not Path("logs/a/version_0/report.html").exists()
    assert images(fit("b", "--explain.misclassified", "null")) == CONFUSIONS


def test_what_a_run_saved_can_be_trained_again(fit: Callable[..., Path], cli: Cli) -> None:
    others = ("--explain.confusion", "null", "--explain.report", "false")
    run = fit(
        "first", "--explain.misclassified.num_samples", "3", "--explain.misclassified.method", "layercam", *others
    )
    again = fit("again", "-c", str(run / "config.yaml"), "--name", "again")
    one, two = (yaml.safe_load((each / "config.yaml").read_text())["explain"] for each in (run, again))
    assert one == two
    assert two["misclassified"]["init_args"]["num_samples"] == 3


def test_bad_values_end_in_a_line_before_anything_is_trained(cli: Cli) -> None:
    Path("tiny.yaml").write_text(TINY)
    cases = {
        "--explain.misclassified.method=gradcamm": "gradcamm is not allowed, give one of gradcam",
        "--explain.misclassified.num_samples=0": "num_samples: 0 is not allowed",
        "--explain.confusion.every_n_epochs=0": "every_n_epochs: 0 is not allowed",
        "--explain.misclassified.layers=[layer9]": "layer9",
        "--explain.misclassified.sampels=4": "sampels",
    }
    for arg, named in cases.items():
        result = cli("fit", "-c", "tiny.yaml", *arg.split("=", 1))
        assert (result.status, result.err.count("\n")) == (2, 1), result.err
        assert named in result.err
        assert "epoch" not in result.out


def config(*named: Callback, explain: Explanations | None = None, **trainer: Any) -> Namespace:
    given = {
        "callbacks": list(named),
        "enable_progress_bar": False,
        "plugins": None,
        "sync_batchnorm": False,
        "logger": None,
        "profiler": None,
        **trainer,
    }
    section = Namespace(**given)
    more = {"on_nonfinite": "stop", "max_skipped_steps": 10, "on_changed_data": "refuse"}
    return Namespace(trainer=section, explain=explain, **more)


def types(found: Sequence[Any]) -> list[type]:
    return [type(each) for each in found]


def test_a_callback_of_the_recipe_takes_the_place_of_the_same_one(tmp_path: Path) -> None:
    named, own = Misclassified(num_samples=4), Explanations(Misclassified(), Confusion())
    found = callbacks(config(named, explain=own), tmp_path, None)
    assert types(found)[-3:] == [Confusion, ReportWriter, NonfiniteGuard]
    assert [each for each in found if isinstance(each, Misclassified)] == [named]
    assert named.run_dir == own.confusion.run_dir == tmp_path
    with pytest.raises(ConfigurationError, match="Misclassified is there twice"):
        callbacks(config(named, Misclassified(), explain=own), tmp_path, None)


@pytest.mark.parametrize("own", [NonfiniteGuard("skip"), type("MyLines", (EpochLines,), {})()])
def test_every_default_callback_can_be_replaced(tmp_path: Path, own: Callback) -> None:
    without, found = callbacks(config(), tmp_path, None), callbacks(config(own), tmp_path, None)
    assert len(found) == len(without)
    assert [each for each in found if isinstance(own, type(each))] == [own]


def test_a_run_without_a_folder_has_the_callbacks_that_write_no_files(tmp_path: Path) -> None:
    on = Explanations(Misclassified(), Confusion())
    assert types(callbacks(config(explain=on), None, None)) == [
        AgreeingBuffers,
        EpochLines,
        Continuation,
        NonfiniteGuard,
    ]
    assert "logger" not in trainer_arguments(config(), None, None)


def test_a_single_callback_or_plugin_needs_no_list(tmp_path: Path) -> None:
    callback, plugin = LearningRateMonitor(), AsyncCheckpointIO()
    section = config(callbacks=callback, plugins=plugin)
    arguments = trainer_arguments(section, tmp_path, None)
    assert callback in arguments["callbacks"] and plugin in arguments["plugins"]


def test_the_user_s_loggers_and_bar_are_left_alone(tmp_path: Path) -> None:
    arguments = trainer_arguments(config(logger=False), tmp_path, None)
    assert not {"logger", "enable_progress_bar"} & arguments.keys()
    arguments = trainer_arguments(config(logger=True, enable_progress_bar=None), tmp_path, None)
    assert types(arguments["logger"]) == [TensorBoardLogger, MetricsFile]
    assert arguments["enable_progress_bar"] is False  # no terminal
    assert arguments["default_root_dir"] == tmp_path / "checkpoints"


def test_loggers_that_are_added_come_after_the_default_ones(tmp_path: Path) -> None:
    one, other = CSVLogger(tmp_path), CSVLogger(tmp_path)
    assert trainer_arguments(config(logger=one), tmp_path, None)["logger"][2:] == [one]
    both = trainer_arguments(config(logger=[one, other]), tmp_path, None)["logger"]
    assert types(both[:2]) == [TensorBoardLogger, MetricsFile] and both[2:] == [one, other]
    assert Path(both[0].log_dir) == Path(both[1].log_dir) == tmp_path


@pytest.mark.parametrize(("name", "cls"), [("simple", SimpleProfiler), ("Advanced", AdvancedProfiler)])
def test_a_profiler_that_is_named_reports_in_the_run_s_folder(tmp_path: Path, name: str, cls: type) -> None:
    profiler = trainer_arguments(config(profiler=name), tmp_path, None)["profiler"]
    assert type(profiler) is cls
    profiler.setup("fit", local_rank=0)
    with profiler.profile("a step"):
        pass
    profiler.describe()
    assert "a step" in (tmp_path / "fit-profile-0.txt").read_text()
    own = SimpleProfiler()
    assert "profiler" not in trainer_arguments(config(profiler=own), tmp_path, None)
    assert "profiler" not in trainer_arguments(config(profiler=name), None, None)


def test_what_writes_the_predictions_is_there_once(tmp_path: Path) -> None:
    for section in (
        config(),
        config(explain=Explanations(Misclassified())),
        config(explain=Explanations(None, Confusion())),
    ):
        found = callbacks(section, tmp_path, None)
        assert [each.run_dir for each in found if isinstance(each, EvaluationWriter)] == [tmp_path]
    own = Confusion()
    assert [each for each in callbacks(config(own), tmp_path, None) if isinstance(each, EvaluationWriter)] == [own]


@pytest.mark.parametrize("bar", [TQDMProgressBar(), RichProgressBar()])
def test_a_bar_of_the_recipe_is_left_out_where_there_is_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bar: Callback
) -> None:
    assert bar not in callbacks(config(bar, enable_progress_bar=None), tmp_path, None)
    name = type(bar).__name__
    line = f"{name} is left out, there is no terminal: --trainer.enable_progress_bar true shows it\n"
    assert capfd.readouterr().out == line
    assert bar in callbacks(config(bar, enable_progress_bar=True), tmp_path, None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    found = callbacks(config(bar, enable_progress_bar=None), tmp_path, None)
    assert [each for each in found if isinstance(each, ProgressBar)] == [bar]


@pytest.mark.process
def test_the_memory_of_many_validations_with_all_callbacks_is_flat() -> None:
    # in a process of its own: this one has freed memory of other tests to give
    with interpreter() as python:
        command = [python, Path(__file__).parents[1] / "many_validations.py"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    assert float(done.stdout.splitlines()[-1]) < 3  # MB, less than the pixels of a gallery in each

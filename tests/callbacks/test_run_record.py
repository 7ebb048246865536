from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import WITHOUT_PICTURES, Result, read_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from cifar_resnets.callbacks.run_record import git_state, run_record, write_record


def git(folder: Path, *args: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run(["git", "-C", str(folder), *identity, *args], check=True, capture_output=True)


def test_git_state_names_commit_and_changes(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["changed"] == []
    (tmp_path / "code.py").write_text("2\n")
    changed = git_state(tmp_path)
    assert changed is not None
    assert [line.split()[-1] for line in changed["changed"]] == ["code.py"]


def test_an_installed_package_has_no_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "code.py").touch()
    assert git_state(tmp_path / "site-packages") is None  # inside a repository that does not track it


def test_versions_are_those_that_run() -> None:
    record = run_record()
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert None not in record["packages"].values()


def test_hparams_tab_and_tags(cli: Callable[..., Result], tmp_path: Path) -> None:
    result = cli(
        *("fit", "--data", "Digits", "--data.num_train", "60", "--data.batch_size", "30", "--trainer.max_epochs", "2"),
        *("--model.network_args", "{depths: [1], widths: [8], stem_width: 8}", "--model.schedule", "OneCycle"),
        *WITHOUT_PICTURES,
    )
    assert result.status == 0, result.err
    run = tmp_path / "logs/cifar_resnet20/version_0"
    events = EventAccumulator(str(run))
    events.Reload()
    tags = {
        "train/loss",
        "train/acc",
        "lr",
        "momentum",
        "val/loss",
        "val/acc",
        "val/acc_top5",
        "val_class_acc/3",
        "test/acc",
    }
    assert tags <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val/acc")] == [1, 3]  # the last step of each epoch
    assert len(events.Scalars("test/acc")) == 1
    assert abs(events.Scalars("test/acc")[0].value - read_json(run / "test.json")["accuracy"]) < 1e-6
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["network"].string_value == "cifar_resnet20"
    assert start.hparams["schedule"].string_value == "OneCycle"
    assert start.hparams["data.batch_size"].number_value == 30
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    columns = [info.name.tag for info in experiment.metric_infos]
    assert columns == [
        "val/acc_best",
        "test/acc",
        "val/loss",
        "test/loss",
        "val/acc",
    ]
    assert set(columns) - {"val/acc_best"} <= set(events.Tags()["scalars"])  # that is of Dashboard
    # as tensorboard/plugins/hparams/backend_context.py sorts them
    infos = sorted(experiment.hparam_infos, key=lambda info: (not info.differs, info.name))
    assert [info.name for info in infos[:5]] == ["lr", "max_epochs", "network", "schedule", "seed"]
    assert len(infos) > 20


def test_an_evaluation_has_the_columns_of_a_fit(cli: Callable[..., Result], tmp_path: Path) -> None:
    data = ("--data", "Digits", "--data.num_train", "60", "--data.batch_size", "30")
    network = ("--model.network_args", "{depths: [1], widths: [8], stem_width: 8}")
    assert cli("fit", *data, *network, "--trainer.max_epochs", "1", *WITHOUT_PICTURES).status == 0
    checkpoint = str(tmp_path / "logs/cifar_resnet20/version_0/checkpoints/best.ckpt")
    assert cli("validate", "--ckpt_path", checkpoint, *WITHOUT_PICTURES).status == 0
    assert cli("test", "--ckpt_path", checkpoint, *WITHOUT_PICTURES).status == 0
    contents = []
    for version in range(3):
        events = EventAccumulator(str(tmp_path / f"logs/cifar_resnet20/version_{version}")).Reload()
        content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
        contents.append(plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos)
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("content", ['{"resumed": 5}', "[" * 100_000])
def test_a_record_of_something_else_does_not_keep_a_run_from_going_on(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    write_record(tmp_path, {}, None)
    assert json.loads((tmp_path / "run.json").read_text())

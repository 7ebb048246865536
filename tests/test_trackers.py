"""Weights & Biases and MLflow beside the logs of a run, offline, with the real packages where they are installed."""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import TINY, Result

pytestmark = pytest.mark.usefixtures("one_thread")
PICTURES = ("val_confusion/matrix", "test_confusion/matrix", "val_confusion/pairs")
BLOCK = 2**15  # bytes
OWN = """
from lightning.pytorch.loggers.logger import DummyLogger


class NoAccount(DummyLogger):
    def log_hyperparams(self, *args, **kwargs):
        raise LookupError("no account\\nlog in")


class NoFolder(DummyLogger):
    def __init__(self):
        raise OSError("there is no folder")
"""


@pytest.fixture
def fit(cli: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    content = yaml.safe_load(TINY) | {"explain": {"misclassified": None, "report": False}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "mine.py").write_text(OWN)
    return lambda *args: cli("fit", "-c", "tiny.yaml", *args)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    package = pytest.importorskip("wandb", reason="NOT TESTED WITH WANDB: pip install '.[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield package
    package.finish()


def columns(run: Path) -> dict[str, str]:
    """The last value of each column of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return {name: value for row in csv.DictReader(file) for name, value in row.items() if value}


def records(file: Path) -> Iterator[bytes]:
    """The records of a file of wandb, which has the format of LevelDB's log behind seven bytes."""
    data, start, record = file.read_bytes(), 7, b""
    while start < len(data):
        if (left := BLOCK - start % BLOCK) < 7:  # no header fits
            start += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, start)
        record += data[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def logged(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last value of each figure, and the hyperparameters."""
    from wandb.proto import wandb_internal_pb2

    history, config = {}, {}
    for data in records(file):
        record = wandb_internal_pb2.Record.FromString(data)
        for items, found in ((record.history.item, history), (record.config.update, config)):
            found |= {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items}
    return history, config


def test_wandb_gets_scalars_hyperparameters_and_pictures(fit: Callable[..., Result], tmp_path: Path, wandb) -> None:
    result = fit("--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true")
    assert result.status == 0, result
    wandb.finish()
    run = tmp_path / "logs/tiny/version_0"
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history, config = logged(file)
    known = columns(run)
    for name in ("test/acc", "test/acc_balanced", "val/loss", "val_class_acc/3"):
        assert history[name] == pytest.approx(float(known[name])), name
    assert config["network"] == "cifar_resnet20"
    assert (tmp_path / config["run_dir"]).samefile(run)
    files = file.parent / "files"
    pictures = {str(path.relative_to(files / "media/images")) for path in files.glob("media/images/**/*.png")}
    for name in PICTURES:
        assert any(picture.startswith(name) for picture in pictures), (name, pictures)
    assert list(run.glob("events.out.tfevents.*"))


def test_mlflow_gets_scalars_hyperparameters_and_pictures(fit: Callable[..., Result], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="NOT TESTED WITH MLFLOW: pip install '.[mlflow]'")
    pytest.importorskip("sqlalchemy", reason="NOT TESTED WITH MLFLOW: pip install '.[mlflow]'")
    database = "sqlite:///mlflow.db"
    result = fit("--trainer.logger", "MLFlowLogger", "--trainer.logger.tracking_uri", database)
    assert result.status == 0, result
    run, client = tmp_path / "logs/tiny/version_0", mlflow.MlflowClient(database)
    [found] = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    known = columns(run)
    for name in ("test/acc", "test/f1_macro", "train/loss", "val_class_acc/3"):
        assert found.data.metrics[name] == pytest.approx(float(known[name])), name
    assert found.data.params["optimizer"] == "SGD"
    assert Path(found.data.params["run_dir"]).samefile(run)
    assert found.info.status == "FINISHED"
    pictures = [each.path for each in client.list_artifacts(found.info.run_id, "images")]
    for name in PICTURES:
        assert any(name.split("/")[1] in picture and picture.endswith(".png") for picture in pictures), pictures


def test_a_folder_of_mlflow_is_refused_with_the_remedy(
    fit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="NOT TESTED WITH MLFLOW: pip install '.[mlflow]'")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    one, two = ["--trainer.logger", "MLFlowLogger"], ["--trainer.logger+=CSVLogger", "--trainer.logger.save_dir", "a"]
    for flags in (one, [*two, "--trainer.logger+=MLFlowLogger"]):
        result = fit(*flags)
        assert result.status == 2
        assert result.err.rstrip().endswith("give --trainer.logger.tracking_uri sqlite:///mlflow.db"), result.err
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--trainer.logger", "mine.NoAccount"], "NoAccount: no account log in"),
        (["--trainer.logger", "mine.NoFolder"], "there is no folder"),
        (["--trainer.logger+=mine.NoFolder"], "there is no folder"),
    ],
)
def test_a_tracker_that_cannot_begin_is_one_line(fit: Callable[..., Result], flags: list[str], line: str) -> None:
    result = fit(*flags)
    assert result.status == 2
    assert len(result.err.splitlines()) == 1 and line in result.err, result.err
    assert not os.path.isdir("logs") or not list(Path("logs").rglob("test.json"))

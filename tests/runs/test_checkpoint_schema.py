"""Checkpoints that hold something else than they should: each is refused, and the line names the key."""

from __future__ import annotations

import inspect
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.errors import CheckpointError
from cifar_resnets.runs.checkpoint_file import EVALUATE, KEY, RESUME, read_checkpoint_file, write_checkpoint
from cifar_resnets.runs.checkpoint_schema import HYPER_PARAMETERS, problem_of

GOOD = Path(__file__).parent.parent / "fixtures/v0.1.0/checkpoints/last.ckpt"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.ckpt"


def refused(path: Path, problem: str) -> None:
    for use in (EVALUATE, RESUME):
        with pytest.raises(CheckpointError, match=problem) as error:
            read_checkpoint_file(path, use)
        line = str(error.value)
        assert "x.ckpt" in line
        assert len(line) < 600
        assert line.isprintable()


def hparams(**changes: Any) -> Change:
    return lambda c: c["hyper_parameters"].update(changes)


def network(**args: Any) -> Change:
    return hparams(network="resnet10t", network_args=args)


def state(**changes: Any) -> Change:
    return lambda c: c[KEY].update(changes)


def events(name: str, size: int) -> Change:
    return lambda c: c[KEY]["logged"]["events"].update({name: size})


def best(c: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(each for name, each in c["callbacks"].items() if name.startswith("ModelCheckpoint"))
    return found


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def bomb(c: dict[str, Any]) -> None:
    value: list[Any] = [0] * 9
    for _ in range(12):
        value = [value] * 9
    c["more"] = value


def itself(c: dict[str, Any]) -> None:
    c["more"] = [0]
    c["more"].append(c["more"])


def huge(c: dict[str, Any]) -> None:
    c["optimizer_states"][0]["state"][0]["momentum_buffer"] = torch.zeros(1).expand(10**11)


ESCAPES = [f"\x1b[31m{n}\u2028\x85" for n in range(10)]
HOSTILE: list[tuple[str, Change, str]] = [
    ("truncates a file", events("/tmp/thesis", 0), r"continuation\.logged\.events"),
    ("plants a file", events("../../../events.out.tfevents.py", 9), "not the name of a file"),
    ("another file of the folder", events("config.yaml", 9), "events"),
    ("a size below 0", events("events.out.tfevents.1", -1), "tfevents.1 is -1"),
    (
        "deletes a file",
        lambda c: best(c)["best_k_models"].update({f"{best(c)['dirpath']}/../../x": torch.tensor(-1.0)}),
        "outside",
    ),
    (
        "requests an address",
        network(pretrained=True, pretrained_cfg={"url": "http://127.0.0.1:9/x"}),
        "pretrained_cfg names weights",
    ),
    ("reads a file", network(checkpoint_path="/etc/passwd"), "checkpoint_path names weights"),
    ("asks a hub", network(pretrained_cfg_overlay={"hf_hub_id": "a/b"}), "pretrained_cfg_overlay names weights"),
    ("a text as pretrained", network(pretrained="yes"), "pretrained names weights"),
    ("an address further inside", network(block=[{"file": "x"}]), r"block\.0\.file names weights"),
    ("tensor as lr", hparams(lr=torch.tensor(0.1)), r"hyper_parameters\.lr is a tensor \(\), not a number"),
    ("NaN as lr", hparams(lr=float("nan")), r"hyper_parameters\.lr is nan"),
    ("null as network", hparams(network=None), r"hyper_parameters\.network is null, not a text"),
    ("a hyperparameter too many", hparams(_instantiator="os.system"), "_instantiator is unknown"),
    ("list as hyperparameters", lambda c: c.update(hyper_parameters=[1, 2]), "hyper_parameters is a list"),
    ("no data", lambda c: c.update(data=None), "data is null"),
    ("text as arguments of the data", lambda c: c["data"].update(init_args="x"), r"data\.init_args is 'x'"),
    (
        "an address of the data",
        lambda c: c["data"]["init_args"].update(urls=["https://host/file"]),
        r"data\.init_args\.urls is a list of 1 values, not null",
    ),
    ("number as weights", lambda c: c.update(state_dict=5), "state_dict is 5"),
    ("text as a weight", lambda c: c["state_dict"].update(x="y"), r"state_dict\.x is 'y', not a tensor"),
    ("deep nesting", hparams(network_args={"depths": nested(400)}), "nested too deeply"),
    ("values without end", bomb, "nested too deeply, or too large"),
    ("a list that holds itself", itself, "nested too deeply"),
    (
        "a number of many digits",
        hparams(optimizer_args={"x": 2**70}),
        r"optimizer_args\.x is of type int, no plain",
    ),
    ("escapes in class names", hparams(class_names=ESCAPES), r"class_names .* are not data.init_args.classes"),
    ("empty training state", state(training={}), r"continuation\.training is a mapping"),
    ("no training state", state(training=[]), r"continuation\.training is a list of 0"),
    ("another place", state(place="nowhere"), r"continuation\.place is 'nowhere'"),
    ("no loops", lambda c: c.update(loops={}), r"loops\.fit_loop is missing"),
    (
        "text as counter",
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(ready="x"),
        "epoch_progress.total.ready is 'x'",
    ),
    (
        "number as a method of a counter",
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["total"].update(increment_ready=5),
        "epoch_progress.total.increment_ready is unknown",
    ),
    (
        "tensor in a setting",
        hparams(network_args={"depths": [torch.ones(1)]}),
        r"depths\.0 is a tensor \(1,\), not a sett",
    ),
    (
        "a text as weights",
        hparams(class_weights="rare"),
        r"class_weights is 'rare', not balanced, or a list of numbers",
    ),
    ("no number as a weight", hparams(class_weights=[1.0, "x"]), r"class_weights is a list of 2 values, not balanced"),
    ("weights of other classes", hparams(class_weights=[1.0, 2.0]), "class_weights are 2 numbers for 10 classes"),
    ("rate below 0", hparams(lr=-1), r"hyper_parameters\.lr is -1, not a number above 0"),
    ("no optimizer", lambda c: c.update(optimizer_states=[]), "optimizer_states is a list of 0"),
    ("text as a step", lambda c: c["lr_schedulers"][0].update(last_epoch="x"), r"lr_schedulers\.0\.last_epoch"),
    (
        "another version of Lightning",
        lambda c: c.update({"pytorch-lightning_version": "0.1"}),
        "pytorch-lightning_version",
    ),
    ("number as a callback's state", lambda c: c["callbacks"].update(Dashboard=3), r"callbacks\.Dashboard is 3"),
    ("huge momentum", huge, r"momentum_buffer is a tensor \(100000000000,\), larger than the file"),
    ("sparse weights", lambda c: c["state_dict"].update(x=torch.eye(2).to_sparse()), "x is no plain tensor"),
    (
        "weights without values",
        lambda c: c["state_dict"].update(x=torch.empty(2, device="meta")),
        "x is no plain tensor",
    ),
]


@pytest.mark.parametrize(("change", "problem"), [pytest.param(*rest, id=name) for name, *rest in HOSTILE])
def test_it_is_refused_with_the_key(change: Change, problem: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = read_checkpoint_file(GOOD)
    change(content)
    # a stranger writes what he likes, with a right checksum
    monkeypatch.setattr("cifar_resnets.runs.checkpoint_file._leaves", lambda *_: ())
    write_checkpoint(content, path)
    refused(path, problem)


def test_a_file_of_torch_is_called_so(path: Path) -> None:
    content = read_checkpoint_file(GOOD)
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        for saved in (content, content["state_dict"]):
            torch.save(saved, path, **options)
            refused(path, "written by torch.save, not by .* its weights to `fit` as --model.weights")


def test_a_compressed_archive_is_refused_unread(path: Path) -> None:
    with zipfile.ZipFile(GOOD) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
        target.writestr("archive/data/99999", b"\0" * 2**26)
    refused(path, "compressed records")


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    refused(path, "is no regular file")


def test_good_checkpoints_pass() -> None:
    for name in ("last.ckpt", "best.ckpt"):
        for use in (EVALUATE, RESUME):
            assert read_checkpoint_file(GOOD.with_name(name), use)["epoch"] == 1


def test_a_network_that_was_pretrained_stands_alone(path: Path) -> None:
    content = read_checkpoint_file(GOOD)
    content["hyper_parameters"]["network_args"]["pretrained"] = True
    write_checkpoint(content, path)
    assert "pretrained" not in read_checkpoint_file(path, EVALUATE)["hyper_parameters"]["network_args"]


def test_the_table_has_all_hyperparameters() -> None:
    known = {name.removesuffix("?") for name in HYPER_PARAMETERS}
    assert known == inspect.signature(ImageClassifier).parameters.keys() - {"weights", "weights_strict", "pretrained"}


@pytest.mark.parametrize("args", [{"depths": [10**7]}, {"depths": [100] * 10}, {"widths": [10**6]}, {"depth": 10**5}])
def test_a_network_without_end_is_not_built(args: dict[str, Any]) -> None:
    content = read_checkpoint_file(GOOD)
    assert problem_of(content) is None
    content["hyper_parameters"]["network_args"] = {**content["hyper_parameters"]["network_args"], **args}
    assert "is larger than the network that the weights are of" in str(problem_of(content))

"""Arguments that come from a checkpoint; the commands that use them are in test_train.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.cli.checkpoint_args import blame, check_fits, given_checkpoint, names_root, on_top_of, read_evaluable
from cifar_resnets.cli.config_checks import seed_of
from cifar_resnets.cli.parse_errors import user_error
from cifar_resnets.errors import CheckpointError, ConfigurationError, DataError
from cifar_resnets.runs.checkpoint_file import write_checkpoint
from cifar_resnets.runs.resume import Start

DIGITS = "cifar_resnets.data.digits.Digits"


def content(data: str = DIGITS, **model: Any) -> dict[str, Any]:
    hparams = {
        "class_names": ["a"],
        "network": "cifar_resnet20",
        "lr": 0.1,
        "schedule": {"class_path": "cifar_resnets.training.schedules.Step"},
        **model,
    }
    return {"hyper_parameters": hparams, "data": {"class_path": data, "init_args": {"batch_size": 7}}, "state_dict": {}}


def merged(args: list[str]) -> dict[str, Any]:
    assert args[:2] == ["test", "--config"]
    merged: dict[str, Any] = json.loads(args[2])
    return merged


def test_what_is_typed_comes_after_what_the_checkpoint_says() -> None:
    args = on_top_of(content(), ["test", "--model.lr", "1"])
    assert args[3:] == ["--model.lr", "1"]
    assert merged(args)["data"]["init_args"] == {"batch_size": 7}
    assert "class_names" not in merged(args)["model"]


@pytest.mark.parametrize(
    "checkpoint",
    [
        content("evil.Module"),
        content(schedule={"class_path": "evil.Schedule"}),
        content(network_args={"deep": [{"class_path": "evil.Thing"}]}),
        content("cifar_resnets_evil.Module"),
        content(7),  # type: ignore[arg-type]  # on purpose
    ],
)
def test_a_class_of_another_package_is_not_imported_unless_it_is_named(checkpoint: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="names the class (evil|cifar_resnets_evil|7)"):
        on_top_of(checkpoint, ["test"])


@pytest.mark.parametrize(("key", "name"), [("network", "mine:net"), ("optimizer", "mine.SGD")])
def test_what_the_network_and_the_optimizer_need_of_another_package_is_said(key: str, name: str) -> None:
    checkpoint = content(**{key: name})
    with pytest.raises(CheckpointError, match=f"names the class {name} .* if you trust it, give --model.{key} {name}"):
        on_top_of(checkpoint, ["test"])
    assert on_top_of(checkpoint, ["test", f"--model.{key}", name])
    assert on_top_of(content(optimizer="torch.optim.AdamW"), ["test"])


def test_a_class_that_a_recipe_names_is_taken(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {class_path: mine.Source}\n")
    assert on_top_of(content("mine.Source"), ["test", "-c", str(tmp_path / "r.yaml")])
    with pytest.raises(CheckpointError, match="names the class mine.Other"):
        on_top_of(content("mine.Other"), ["test", "-c", str(tmp_path / "r.yaml")])


def test_a_class_that_the_user_names_is_taken() -> None:
    for args in (["test", "--data", "mine.Source"], ["test", "--data=mine.Source"]):
        assert merged(on_top_of(content("mine.Source"), args))["data"]["class_path"] == "mine.Source"
        assert merged(on_top_of(content("evil.Source"), args))["data"]["class_path"] == "mine.Source"


def test_a_class_of_each_part_is_trusted_by_its_own_option_or_by_a_recipe(tmp_path: Path) -> None:
    checkpoint = content("mine.Source", network="mine:net", schedule={"class_path": "mine.Schedule"})
    options = {"--data": "mine.Source", "--model.schedule": "mine.Schedule", "--model.network": "mine:net"}
    args = ["test"]
    for option, name in options.items():
        line = rf"names the class(es)? .*{name}.* if you trust (it|them), give .*{option} {name}"
        with pytest.raises(CheckpointError, match=line):
            on_top_of(checkpoint, args)
        args += [option, name]
    assert merged(on_top_of(checkpoint, args))["model"]["network"] == "mine:net"
    recipe = {"data": {"class_path": "mine.Source"}, "model": {"network": "mine:net", "schedule": "mine.Schedule"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert merged(on_top_of(checkpoint, ["test", "-c", str(tmp_path / "recipe.yaml")]))["data"]


def test_a_recipe_names_the_checkpoint(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_checkpoint(content(), tmp_path / f"{name}.ckpt")
    (tmp_path / "config.yaml").write_text(f"ckpt_path: {tmp_path}/x.ckpt\n")
    args = ["test", "-c", str(tmp_path / "config.yaml")]
    assert given_checkpoint(args).checkpoint == tmp_path / "x.ckpt"
    assert given_checkpoint([*args, "--ckpt_path", str(tmp_path / "y.ckpt")]).checkpoint == tmp_path / "y.ckpt"


def test_only_an_evaluation_needs_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(content(), tmp_path / "x.ckpt")
    assert given_checkpoint(["fit", "--ckpt_path", str(tmp_path / "x.ckpt")]) == Start()
    start = given_checkpoint(["test", f"--ckpt_path={tmp_path}/x.ckpt"])
    assert (start.checkpoint, start.content) == (tmp_path / "x.ckpt", content())
    assert given_checkpoint(["test", "--help"]) == Start()
    with pytest.raises(ConfigurationError, match="validate: --ckpt_path is missing"):
        given_checkpoint(["validate"])


def test_what_fit_has_not_written_is_refused(tmp_path: Path) -> None:
    write_checkpoint({"state_dict": {}}, tmp_path / "x.ckpt")
    torch.save(content(), tmp_path / "y.ckpt")
    for name in ("x.ckpt", "y.ckpt", "z.ckpt"):
        with pytest.raises(CheckpointError, match=rf"--ckpt_path: .*{name}"):
            read_evaluable(tmp_path / name)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"0.weight": torch.ones(2, 3)},
        {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(2)},
        {"0.weight": 1, "0.bias": torch.ones(2)},
        {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2), "1.bias": torch.ones(2)},
    ],
)
def test_tensors_of_other_names_or_shapes_do_not_fit(state: dict[str, Any]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    hparams: dict[str, Any] = {"network": "a", "class_names": ["x", "y"]}
    check_fits({"hyper_parameters": hparams, "state_dict": model.state_dict()}, model, hparams)
    for args, message in (
        ({"depths": [1, 1]}, r"model.network_args.depths is \[1, 1\] in the checkpoint, \[1\] here"),
        ({"depths": [1]}, r"weights are not of its network: [01].\w+ is .*, the network has "),
    ):
        hparams["network_args"], theirs = {"depths": [1]}, {**hparams, "network_args": args}
        with pytest.raises(CheckpointError, match=message):
            check_fits({"hyper_parameters": theirs, "state_dict": state}, model, hparams)
    other = {"hyper_parameters": {"network": "b", "class_names": ["x"]}, "state_dict": state}
    message = "--ckpt_path: the checkpoint is of b with 1 classes, the network is a with 2 classes"
    with pytest.raises(CheckpointError, match=message):
        check_fits(other, model, hparams)


def test_other_arguments_of_the_network_have_to_be_those_of_the_weights() -> None:
    args = {"depths": [1], "widths": [8], "stem_width": 8}
    model = ImageClassifier(["a", "b"], network_args=args)
    hparams = dict(model.hparams)
    good = {**hparams, "network_args": {**args, "drop_path_rate": 0.1}}
    check_fits({"hyper_parameters": good, "state_dict": model.state_dict()}, model, hparams)
    for depths in ([1, 1], [2], "x"):
        other = {**hparams, "network_args": {**args, "depths": depths}}
        with pytest.raises(CheckpointError, match=r"network_args.depths is .* in the checkpoint, \[1\] here"):
            check_fits({"hyper_parameters": other, "state_dict": model.state_dict()}, model, hparams)


def test_the_culprit_is_found_behind_the_errors_of_others() -> None:
    try:
        try:
            raise DataError("cat/7.png")
        except DataError as error:
            raise TypeError("of the parser") from error
    except TypeError as error:
        assert str(user_error(error)) == "cat/7.png"
    assert isinstance(user_error(MisconfigurationException("devices")), ConfigurationError)
    assert user_error(TypeError("a bug")) is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["test", "--ckpt_path", "x"], CheckpointError),
        (["test", "--ckpt_path", "x", "--model.lr=-1"], ConfigurationError),
        (["test", "--ckpt_path", "x", "-c", "r.yaml"], ConfigurationError),
        (["fit"], ConfigurationError),
    ],
)
def test_a_wrong_value_that_nobody_typed_is_the_checkpoints(args: list[str], expected: type) -> None:
    assert type(blame(ConfigurationError("model.lr: -1 is not allowed"), args)) is expected
    other = ConfigurationError("trainer.devices: 0")
    assert blame(other, args) is other


def test_images_that_are_no_longer_where_the_checkpoint_says_are_missing_data() -> None:
    missing = DataError("data.root: /photos is no folder")
    said = blame(missing, ["test", "--ckpt_path", "x"])
    assert type(said) is DataError and str(said).endswith("give --data.root if they are elsewhere")
    assert blame(missing, ["test", "--ckpt_path", "x", "--data.root", "y"]) is missing


def test_who_says_where_the_images_are() -> None:
    assert not names_root(["test", "--ckpt_path", "x"])
    assert all(names_root(["test", *args]) for args in (["--data.root", "d"], ["--data.init_args.root=d"], ["-c", "r"]))


@pytest.mark.parametrize("seed", [-1, True, False])
def test_a_seed_that_numbers_no_images(seed: bool | int) -> None:
    with pytest.raises(ConfigurationError, match="seed_everything"):
        seed_of(seed)
    assert seed_of(3) == 3

"""What no parser refuses; `tests/faults/test_usage_faults.py` does the same from the command line."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from cifar_resnets.callbacks.lr_finder import LRFinder
from cifar_resnets.cli.checkpoint_args import given_checkpoint
from cifar_resnets.cli.config_checks import PATHS, check_recipes, check_values, make_paths_local, recipe_value
from cifar_resnets.data.cifar import CIFAR10
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.schedules import OneCycle

GOOD = "name: x\nmodel: {lr: 0.1}\ndata: Digits\nexplain:\ntrainer: {max_epochs: 1}\n"


def refusal(check: Any, *args: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        check(*args)
    assert "\n" not in " ".join(str(error.value).split())
    return str(error.value)


def recipe(folder: Path, content: str | bytes) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return ["fit", "--config", str(path)]


# Recipes.


@pytest.mark.parametrize("flags", [["-c", "PATH"], ["--config", "PATH"], ["--config=PATH"], ["-cPATH"]])
def test_each_way_to_give_a_recipe(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    check_recipes(["fit", *(flag.replace("PATH", str(tmp_path / "good.yaml")) for flag in flags)])
    bad = [flag.replace("PATH", str(tmp_path / "gone.yaml")) for flag in flags]
    assert "gone.yaml cannot be read (No such file" in refusal(check_recipes, ["fit", "--model.lr", "1", *bad])


def test_what_is_no_file_is_left_to_the_parser() -> None:
    check_recipes(["fit", "-c", '{"model": {"lr": 1}}'])
    check_recipes(["fit", "-c"])
    check_recipes(["fit"])


def test_anchors_and_merged_keys_are_no_repetition(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nmodel: {<<: *base, a: 3}\ntrainer: {<<: [*base, *base]}\n"
    check_recipes(recipe(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("- a", "is a list"),
        ("model: {lr: 1}\nmodel: {lr: 2}\n", "the key model is there twice, in lines 1 and 2"),
        ("model:\n  deep:\n    a: 1\n    b: 1\n    a: 1\n", "the key a is there twice, in lines 3 and 5"),
        ("model:\n", "model: nothing is not allowed"),
        ("trainer: [1]\n", "trainer: [1] is not allowed"),
        ("a: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        ("day: 2026-02-31\n", "is not valid YAML"),
        ("a: &a [*a]\n", "contains itself"),
        (
            "a: &a [1]\n" + "".join(f"b{n}: &b{n} [{f'*b{n - 1}, ' * 9 if n else '*a'}]\n" for n in range(9)),
            "its aliases stand for",
        ),
    ],
)
def test_bad_recipes(tmp_path: Path, content: str | bytes, said: str) -> None:
    line = refusal(check_recipes, recipe(tmp_path, content))
    assert line.startswith(f"--config: {tmp_path}/recipe.yaml") and said in line


def test_a_list_is_not_made_a_set_of_keys(tmp_path: Path) -> None:
    check_recipes(recipe(tmp_path, "model: {widths: [8, 8, 8]}\n"))


# Paths.


def test_a_leading_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = {"trainer.default_root_dir": "~/logs", "ckpt_path": "~/a.ckpt", "model.weights": "w.th", "plot": None}
    config = Namespace(given)
    config["csv"] = Path("~/lr.csv")
    config["trainer.logger"] = [Namespace(class_path="CSVLogger", init_args=Namespace(save_dir="~/csv", name="~"))]
    make_paths_local(config)
    assert config.trainer.logger[0].init_args == Namespace(save_dir="/home/me/csv", name="~")
    assert config.trainer.default_root_dir == "/home/me/logs" and config.ckpt_path == "/home/me/a.ckpt"
    assert config.model.weights == "w.th" and config.plot is None and config.csv == Path("/home/me/lr.csv")


@pytest.mark.parametrize("key", PATHS)
def test_an_address_is_no_path(key: str) -> None:
    line = refusal(make_paths_local, Namespace({key: "s3://bucket/x"}))
    assert line == f"{key}: s3://bucket/x is an address, give a path on this machine, or mount it"


def test_recipes_and_checkpoints_are_paths_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe(tmp_path, GOOD)
    check_recipes(["fit", "--config=~/recipe.yaml"])
    assert "--config: s3://a is an address" in refusal(check_recipes, ["fit", "-c", "s3://a"])
    assert "--ckpt_path: s3://a is an address" in refusal(given_checkpoint, ["test", "--ckpt_path=s3://a"])


@pytest.mark.parametrize("flags", [["-c", "PATH"], ["--config=PATH"], ["-cPATH"]])
def test_a_pipe_is_read_once_and_replaced_by_its_content(tmp_path: Path, flags: list[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = "model: {lr: 1e-3, schedule: null}\nname: '07'\n"
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    args = check_recipes(["fit", *(flag.replace("PATH", str(pipe)) for flag in flags), "--name", "x"])
    writer.join()
    assert (args[0], args[-2:]) == ("fit", ["--name", "x"])
    content = args[-3].removeprefix("--config=").removeprefix("-c")
    assert content == "{model: {lr: 1e-3, schedule: null}, name: '07'}"
    assert yaml.safe_load(content) == yaml.safe_load(text)
    assert check_recipes(args) == args  # as in a process that Lightning starts


def test_the_last_recipe_with_a_value_counts(tmp_path: Path) -> None:
    args = [*recipe(tmp_path, "ckpt_path: a.ckpt\nmodel: {lr: 1}\n"), "-c", '{"model": {"lr": null}}', "-c", "{broken"]
    assert recipe_value(args, "ckpt_path") == "a.ckpt"
    assert recipe_value(args, "model.lr") == 1
    assert recipe_value(args, "model.lr.deep") is None
    assert recipe_value(["fit"], "model.lr") is None


# Values.


def values(**trainer: Any) -> dict[str, Any]:
    return {"seed_everything": 0, "model": {"schedule": None}, "data": None, "trainer": trainer}


@pytest.mark.parametrize(
    ("key", "allowed", "refused"),
    [
        ("max_epochs", [1, -1, None], [0, -2]),
        ("max_steps", [1, -1], [0, -2]),
        ("accumulate_grad_batches", [1], [0]),
        ("check_val_every_n_epoch", [1, None], [0]),
        ("limit_train_batches", [1, 0.1, None], [0, 0.0, -1]),
        ("limit_val_batches", [0, 0.5], [-1]),
        ("gradient_clip_val", [None, 0, 1.5], [-1]),
        ("val_check_interval", [0.5, 100, "00:00:10:00"], [0]),
        ("devices", ["auto", "0,1", "1", 2, -1, [0]], [0, "0"]),
        ("barebones", [False], [True]),
        ("enable_checkpointing", [None, True], [False]),
    ],
)
def test_numbers_of_the_trainer(key: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        check_values("fit", values(**{key: value}))
    for value in refused:
        assert refusal(check_values, "fit", values(**{key: value})).startswith(f"trainer.{key}: ")


def test_seeds() -> None:
    check_values("fit", {"seed_everything": 2**32 - 1})
    assert "4294967295" in refusal(check_values, "fit", {"seed_everything": 2**32})


@pytest.mark.parametrize("section", ["trainer", "model", "checkpoint"])
def test_sections_have_keys(section: str) -> None:
    assert refusal(check_values, "fit", {section: 5}).startswith(f"{section}: 5 is not allowed")


def spec(cls: type, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def test_null_is_refused_where_a_class_does_not_take_it() -> None:
    check_values("fit", {"data": spec(CIFAR10, num_train=None, classes=None, augment=None, mean=None)})
    for name in ("root", "batch_size", "val_fraction"):  # its own, and its base's
        line = refusal(check_values, "fit", {"data": spec(CIFAR10, **{name: None})})
        assert line.startswith(f"data.{name}: null is not allowed")
    both = [spec(LRFinder), spec(LRFinder, num_steps=None)]
    assert refusal(check_values, "fit", values(callbacks=both)).startswith("trainer.callbacks.num_steps: null")
    check_values("fit", {"data": {"class_path": "no.such.Class", "init_args": {"a": None}}})


def test_rare_classes_are_not_balanced_twice() -> None:
    data = spec(CIFAR10, balance=True)
    both = {"model": {"class_weights": "balanced"}, "data": data}
    for command in ("fit", "find_lr"):
        line = refusal(check_values, command, both)
        assert line == "model.class_weights: data.balance true shows each class equally often: leave one of them out"
    check_values("test", both)
    check_values("fit", {"model": {"class_weights": [1.0] * 10}, "data": data})
    check_values("fit", {"model": {"class_weights": "balanced"}, "data": spec(CIFAR10, balance=False)})


def test_strict_weights_take_a_file() -> None:
    line = refusal(check_values, "fit", {"model": {"weights_strict": True, "weights": None, "pretrained": True}})
    assert line == "model.weights_strict: true is about the file of model.weights, give it as well"
    for model in ({"weights_strict": True, "weights": "a.pt"}, {"weights_strict": False}):
        check_values("fit", {"model": model})
    check_values("fit", {"model": {"weights_strict": True}, "ckpt_path": "last"})


class Own(LRFinder):
    """A finder of a user's own."""


def test_a_rate_to_be_found_needs_a_finder() -> None:
    wanted = {"model": {"schedule": spec(OneCycle, lr_min="found")}, "ckpt_path": None}
    assert "LRFinder" in refusal(check_values, "fit", {**wanted, "trainer": {"callbacks": None}})
    for enough in ({"callbacks": [spec(LRFinder)]}, {"callbacks": [spec(Own)]}, {"fast_dev_run": True}):
        check_values("fit", {**wanted, "trainer": enough})
    check_values("fit", {**wanted, "ckpt_path": "last.ckpt"})
    check_values("find_lr", wanted)

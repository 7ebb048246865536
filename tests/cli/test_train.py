"""The command line in this process: errors, merging of recipes, checkpoints."""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import PLAIN, TINY, TINY_NETWORK, WITHOUT_PICTURES, Result, needs_compiler, read_json
from torch._dynamo.exc import InternalTorchDynamoError
from torch._inductor.exc import InvalidCxxCompiler

pytestmark = pytest.mark.long

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the logs of one fit."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "tiny.yaml").write_text(TINY)
        from cifar_resnets.__main__ import main

        main(["fit", "-c", "tiny.yaml"])
    yield folder


def tiny(folder: Path, text: str = PLAIN) -> str:
    (folder / "tiny.yaml").write_text(text)
    return str(folder / "tiny.yaml")


@pytest.mark.parametrize(
    ("args", "status", "culprit"),
    [
        (["train"], 2, "'train' is not a command"),
        (["fit"], 2, "data"),
        (["fit", "-c", "missing.yaml"], 2, "missing.yaml"),
        # other tests of the same process may have sources of their own, which are named, too
        (["fit", "--data", "Digit"], 2, "data: Digit is not allowed, give one of "),
        (["fit", "--data", "Digit"], 2, "CIFAR10, CIFAR100, Digits, "),
        (["fit", "--data", "Digits", "--trainer.max_epoch", "1"], 2, "did you mean trainer.max_epochs"),
        (["fit", "--data", "Digits", "--trainer.max_epochs", "one"], 2, "trainer.max_epochs: one"),
        (["fit", "--data", "Digits", "--data.batchsize", "1"], 2, "did you mean data.batch_size"),
        (["fit", "--data", "Digits", "--explain.misclasified", "null"], 2, "did you mean explain.misclassified"),
        (
            ["fit", "--data", "Digits", "--explain.misclassified.num_sample", "3"],
            2,
            "did you mean explain.misclassified.num_samples",
        ),
        (["fit", "--data", "Digits", "--data.batch_size", "0"], 2, "data.batch_size: 0"),
        (["fit", "--data", "Digits", "--data.batch_size", "-3"], 2, "data.batch_size: -3"),
        (["fit", "--data", "Digits", "--data.batch_size", "9999"], 2, "batch_size: 9999 is more than"),
        (["fit", "--data", "Digits", "--data.val_fraction", "1.5"], 2, "data.val_fraction: 1.5"),
        (["fit", "--data", "Digits", "--data.classes", "[0,11]"], 2, "data.classes: ['11']"),
        (["fit", "--data", "Digits", "--data.augment.cutout_size", "-1"], 2, "augment.cutout_size: -1"),
        (["fit", "--data", "Digits", "--model.network", "cifar_resnet21"], 2, "did you mean cifar_resnet"),
        (["fit", "--data", "Digits", "--model.network_args", "{shortcut: D}"], 2, "shortcut='D'"),
        (["fit", "--data", "Digits", "--model.network_args", "{short: B}"], 2, "model.network_args of cifar_resnet20"),
        (["fit", "--data", "Digits", "--model.lr", "-1"], 2, "model.lr: -1"),
        (["fit", "--data", "Digits", "--model.optimizer", "SDG"], 2, "did you mean SGD"),
        (["fit", "--data", "Digits", "--model.schedule", "Cosin"], 2, "give one of Constant, Cosine, OneCycle, Step"),
        (["fit", "--data", "Digits", "--seed_everything", "-1"], 2, "seed_everything: -1"),
        (["fit", "--data", "Digits", "--trainer.accelerator", "abacus"], 2, "abacus"),
        (["fit", "--data", "Digits", "--trainer.max_epochs", "-1"], 2, "max_epochs or max_steps"),
        (["fit", "--data", "ImageFolder", "--data.root", "nowhere"], 3, "nowhere"),
        (["fit", "--data", "CIFAR10", "--data.root", "empty.txt"], 6, "empty.txt"),
        (["fit", "--data", "Digits", "--trainer.default_root_dir", "empty.txt"], 6, "empty.txt"),
        (["fit", "--data", "Digits", "--ckpt_path", "missing.ckpt"], 4, "missing.ckpt"),
        (["test"], 2, "--ckpt_path is missing"),
        (["test", "--ckpt_path", "missing.ckpt"], 4, "missing.ckpt"),
        (["test", "--ckpt_path", "last"], 4, "last"),
        (["predict", "--ckpt_path=empty.txt"], 4, "empty.txt"),
    ],
)
def test_errors_are_one_line_with_a_status(cli: Run, args: list[str], status: int, culprit: str) -> None:
    Path("empty.txt").touch()
    result = cli(*args)
    assert result.status == status, result
    assert culprit in result.err
    assert result.err.count("\n") == 1, result.err


def test_a_recipe_that_is_no_yaml_is_named(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("trainer: [")
    result = cli("fit", "-c", "broken.yaml")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "broken.yaml is not valid YAML" in result.err


def test_debug_shows_the_traceback(cli: Run) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size"):
        cli("fit", "--data", "Digits", "--data.batch_size", "0", "--debug")


def test_recipes_merge_left_to_right_and_the_command_line_wins(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "second.yaml").write_text("model: {lr: 0.02, weight_decay: 0.001}\ntrainer: {limit_test_batches: 1}\n")
    result = cli("fit", "-c", tiny(tmp_path), "-c", "second.yaml", "--model.lr", "0.03", "--data.num_train", "80")
    assert result.status == 0, result.err
    config = yaml.safe_load((tmp_path / "logs/tiny/version_0/config.yaml").read_text())
    assert config["model"]["lr"] == 0.03  # the command line
    assert config["model"]["weight_decay"] == 0.001  # the second recipe
    assert config["model"]["network_args"]["depths"] == [1]  # the first recipe
    assert config["data"]["init_args"]["num_train"] == 80


def test_another_source_keeps_the_rest_of_the_recipe(cli: Run, tmp_path: Path, image_folder: Path) -> None:
    recipe = PLAIN.replace("num_train: 200", "augment: {cutout_size: 3}")
    result = cli(
        "fit",
        "-c",
        tiny(tmp_path, recipe),
        "--data",
        "ImageFolder",
        "--data.root",
        str(image_folder),
        "--data.image_size=16",
    )
    assert result.status == 0, result.err
    config = yaml.safe_load((tmp_path / "logs/tiny/version_0/config.yaml").read_text())["data"]
    assert config["class_path"].endswith("ImageFolder")
    assert config["init_args"]["batch_size"] == 40
    assert config["init_args"]["augment"]["cutout_size"] == 3


def test_fit_writes_everything_beside_the_logs(fitted: Path) -> None:
    run = fitted / "logs/tiny/version_0"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "run.json", "test.json", "metrics.csv", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    record = read_json(run / "run.json")
    assert record["seed"] == 0
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]


def test_test_needs_nothing_but_the_checkpoint(cli: Run, fitted: Path) -> None:
    run = fitted / "logs/tiny/version_0"
    result = cli("test", "--ckpt_path", str(run / "checkpoints/best.ckpt"))
    assert result.status == 0, result.err
    # under the name of the run
    again, first = read_json(Path("logs/tiny/version_0/test.json")), read_json(run / "test.json")
    for figure in ("accuracy", "correct", "images", "loss", "top5", "classes", "interval"):
        assert again[figure] == first[figure]
    assert "95 % interval" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_a_saved_configuration_runs_a_test_again(cli: Run, fitted: Path) -> None:
    best = str(fitted / "logs/tiny/version_0/checkpoints/best.ckpt")
    assert cli("test", "--ckpt_path", best, *WITHOUT_PICTURES).status == 0
    result = cli("test", "-c", "logs/tiny/version_0/config.yaml")
    assert (result.status, result.err) == (0, "")
    first, again = (read_json(Path(f"logs/tiny/version_{number}/test.json")) for number in range(2))
    assert again == first


def test_a_recipe_behind_the_checkpoint_does_not_replace_it(cli: Run, fitted: Path) -> None:
    run = fitted / "logs/tiny/version_0"
    best, saved = str(run / "checkpoints/best.ckpt"), str(run / "config.yaml")  # of the fit: ckpt_path is null there
    assert cli("test", "--ckpt_path", best, "-c", saved, *WITHOUT_PICTURES).status == 0
    assert read_json(Path("logs/tiny/version_0/test.json"))["checkpoint"] == best


def test_the_checkpoint_is_what_was_tested(fitted: Path) -> None:
    run = fitted / "logs/tiny/version_0"
    assert read_json(run / "test.json")["checkpoint"].endswith("best.ckpt")
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["data"]["init_args"]["classes"] == [str(digit) for digit in range(10)]
    assert len(checkpoint["data"]["init_args"]["mean"]) == 3


def test_what_is_typed_wins_over_the_checkpoint(cli: Run, fitted: Path) -> None:
    best = fitted / "logs/tiny/version_0/checkpoints/best.ckpt"
    args = ("--data.eval_batch_size", "7", "--name", "mine", *WITHOUT_PICTURES)
    assert cli("test", "--ckpt_path", str(best), *args).status == 0
    config = yaml.safe_load(Path("logs/mine/version_0/config.yaml").read_text())
    assert config["data"]["init_args"]["eval_batch_size"] == 7
    assert config["data"]["init_args"]["batch_size"] == 40  # the checkpoint's
    assert config["model"]["network_args"]["depths"] == [1]


def test_lightning_does_not_put_the_checkpoint_over_what_is_typed(cli: Run, fitted: Path) -> None:
    # notices when LightningCLI no longer calls the private method that the CLI overrides
    best = fitted / "logs/tiny/version_0/checkpoints/best.ckpt"
    args = ("--model.lr", "0.77", "--name", "mine", *WITHOUT_PICTURES)
    assert cli("test", "--ckpt_path", str(best), *args).status == 0
    assert yaml.safe_load(Path("logs/mine/version_0/config.yaml").read_text())["model"]["lr"] == 0.77


def test_validate_gives_the_figure_of_the_fit(cli: Run, fitted: Path) -> None:
    best = fitted / "logs/tiny/version_0/checkpoints/best.ckpt"
    assert cli("validate", "--ckpt_path", str(best), *WITHOUT_PICTURES).status == 0
    figures = read_json(Path("logs/tiny/version_0/val.json"))
    assert figures["accuracy"] == torch.load(best, weights_only=True)["val_acc"]


def test_predict_writes_a_row_an_image(cli: Run, fitted: Path) -> None:
    run = fitted / "logs/tiny/version_0"
    result = cli("predict", "--ckpt_path", str(run / "checkpoints/best.ckpt"))
    assert (result.status, result.out.splitlines()[-1]) == (0, "predictions: logs/tiny/version_0/predictions.csv")
    header, *rows = Path("logs/tiny/version_0/predictions.csv").read_text().splitlines()
    assert header == "index,predicted," + ",".join(f"p({digit})" for digit in range(10))
    images = read_json(run / "test.json")["images"]
    assert [int(row.split(",")[0]) for row in rows] == list(range(images))
    assert all(abs(sum(map(float, row.split(",")[2:])) - 1) < 1e-4 for row in rows)


def test_another_network_than_the_checkpoint_s_is_named(cli: Run, fitted: Path) -> None:
    best = fitted / "logs/tiny/version_0/checkpoints/best.ckpt"
    result = cli("test", "--ckpt_path", str(best), "--model.class_names", "['1','2']")
    assert (result.status, result.err.count("\n")) == (4, 1)
    assert "cifar_resnet20 with 10 classes" in result.err
    assert "cifar_resnet20 with 2 classes" in result.err


@pytest.mark.parametrize("damage", ["truncated", "text", "plain", "code"])
def test_damaged_checkpoints_are_refused(cli: Run, fitted: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged.ckpt"
    shutil.copy(fitted / "logs/tiny/version_0/checkpoints/best.ckpt", path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "text":
        path.write_text("no checkpoint")
    elif damage == "plain":
        torch.save({"weight": torch.ones(1)}, path)
    else:
        torch.save({"payload": Payload()}, path)
    result = cli("test", "--ckpt_path", str(path))
    assert (result.status, result.err.count("\n")) == (4, 1), result.err
    assert "damaged.ckpt" in result.err
    assert not Path("sentinel").exists()


class Payload:
    """Unpickled, it would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("sentinel", "w"))


def test_the_last_checkpoint_is_of_the_last_epoch_and_the_best_of_the_best(cli: Run, tmp_path: Path) -> None:
    # the rate explodes after the first epoch, so that the second is worse
    text = PLAIN.replace(
        "lr: 0.05",
        "lr: 50.0\n  schedule: {class_path: Constant, init_args: {warmup_epochs: 1, "
        "warmup_factor: 0.0001, warmup_shape: constant}}",
    )
    assert cli("fit", "-c", tiny(tmp_path, text), "--trainer.max_epochs", "2").status == 0
    best, last = (
        torch.load(tmp_path / f"logs/tiny/version_0/checkpoints/{name}.ckpt", weights_only=True)
        for name in ("best", "last")
    )
    assert (best["epoch"], last["epoch"]) == (0, 1)


def test_a_run_that_ends_within_an_epoch_is_validated_and_tested(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", "-c", tiny(tmp_path), "--trainer.max_steps", "7", "--trainer.max_epochs", "-1")
    assert result.status == 0, result.err
    run = tmp_path / "logs/tiny/version_0"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 7  # an epoch has 5 steps
    assert (run / "test.json").is_file()
    assert "epoch 2/2" in result.out


def test_a_cycle_is_resumed_with_another_length(cli: Run, fitted: Path, tmp_path: Path) -> None:
    text = PLAIN.replace("lr: 0.05", "lr: 0.05\n  schedule: {class_path: OneCycle}")
    assert cli("fit", "-c", tiny(tmp_path, text)).status == 0
    last = "logs/tiny/version_0/checkpoints/last.ckpt"
    result = cli("fit", "-c", tiny(tmp_path, text), "--ckpt_path", last, "--trainer.max_epochs", "2")
    assert (result.status, result.err) == (0, "")
    assert "resumed with other settings: the run's length 5 -> 10 steps" in result.out
    assert "epoch 2/2" in result.out


def test_test_time_augmentation_is_told_beside_the_figure_without(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", "-c", tiny(tmp_path), "--model.tta", "[mirror, shift1]")
    assert (result.status, result.err) == (0, "")
    run = tmp_path / "logs/tiny/version_0"
    with (run / "metrics.csv").open() as file:
        assert "val/acc_tta" in next(csv.reader(file))
    report = read_json(run / "test.json")
    figures = (f"{part['accuracy']:.2%}".replace("%", " %") for part in (report, report["tta"]))
    assert "test {}, test by model.tta {}\n".format(*figures) in result.out
    # a checkpoint says that it was evaluated so, and what is typed wins
    last = str(run / "checkpoints/best.ckpt")
    assert "all, by model.tta" in cli("test", "--ckpt_path", last, *WITHOUT_PICTURES).out
    assert "all, by model.tta" not in cli("test", "--ckpt_path", last, "--model.tta", "[]", *WITHOUT_PICTURES).out
    refused = cli("test", "--ckpt_path", last, "--model.tta", "[shift99]")
    assert refused.status == 2
    assert refused.err == "cifar-resnets: model.tta: shift99 is not allowed for images of 32x32 pixels\n"


def test_all_images_are_trained_on_where_none_is_to_validate(cli: Run, tmp_path: Path) -> None:
    text = PLAIN.replace("num_train: 200", "num_train: null, val_fraction: 0")
    result = cli("fit", "-c", tiny(tmp_path, text))
    assert (result.status, result.err) == (0, ""), result
    assert "Digits: 1,433 training and 0 validation images" in result.out
    run = tmp_path / "logs/tiny/version_0"
    assert "last checkpoint: logs/tiny/version_0/checkpoints/last.ckpt" in result.out
    assert (run / "test.json").is_file() and not (run / "checkpoints/best.ckpt").exists()
    refused = cli("validate", "--ckpt_path", str(run / "checkpoints/last.ckpt"))
    assert refused.status == 2
    assert refused.err == "cifar-resnets: data.val_fraction: 0 is not allowed, give a number above 0 to `validate`\n"


def test_a_fit_without_a_test_says_what_it_knows(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", "-c", tiny(tmp_path), "--trainer.limit_test_batches", "0")
    assert (result.status, result.err) == (0, "")
    last = result.out.splitlines()[-2]
    assert last.startswith("accuracy: validation ") and last.endswith(" %") and "test" not in last


PEAK = ("--model.schedule", "OneCycle", "--model.schedule.peak_epoch", "5")


@pytest.mark.parametrize("command", ["fit", "find-lr"])
@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            (*PEAK, "--data.batch_size", "64", "--trainer.max_epochs", "5"),
            "schedule.peak_epoch: 5 .* give --model.schedule.peak_epoch below 5, .*",
        ),
        (("--data.batch_size", "66"), "data.batch_size: 66 is more than the 65 training images, give .*_size 64"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_images_are_decoded_and_a_folder_is_made(
    cli: Run, image_folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, args: tuple[str, ...], line: str
) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("images are decoded")

    monkeypatch.setattr("cifar_resnets.data.image_folder.decode", fail)
    source = ("--data", "ImageFolder", "--data.root", str(image_folder))
    result = cli(command, *source, *args)
    assert result.status == 2
    assert re.fullmatch(rf"cifar-resnets: .*{line}\n", result.err), result.err
    assert not Path("logs").exists()


def test_a_command_that_fails_on_its_arguments_leaves_no_folder(cli: Run, tmp_path: Path) -> None:
    tiny(tmp_path)
    for args in (["--model.optimizer", "SDG"], ["--data.batch_size", "201"], ["--trainer.devices", "abc"]):
        assert cli("fit", "-c", "tiny.yaml", *args).status == 2
        assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_auto_says_why_it_starts_anew(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", "-c", tiny(tmp_path), "--ckpt_path", "auto", "--trainer.limit_train_batches", "1")
    assert (result.status, result.err) == (0, "")
    assert "--ckpt_path auto: no run in logs/tiny can be resumed: there is none; starting anew\n" in result.out


MINE = """
import lightning.pytorch as pl, timm, torch
from cifar_resnets.data.digits import Digits

class Hello(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        print("hello from", type(trainer.optimizers[0]).__name__)

class Shapes(Digits):
    pass

class MySGD(torch.optim.SGD):
    pass

def net(num_classes):
    return timm.create_model("cifar_resnet20", num_classes=num_classes, depths=[1], widths=[8], stem_width=8)
"""


def test_code_of_the_current_folder(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "code_of_a_user.py").write_text(MINE)
    recipe = tiny(tmp_path, TINY.replace(f"network_args: {TINY_NETWORK}", "network_args: {}"))
    network = ("--model.network", "code_of_a_user:net")
    source = ("--data", "code_of_a_user.Shapes")
    more = ("--model.optimizer", "code_of_a_user.MySGD", "--trainer.callbacks+=code_of_a_user.Hello")
    result = cli("fit", "-c", recipe, *network, *source, *more)
    assert (result.status, result.err) == (0, "")
    assert "hello from MySGD" in result.out and "Shapes: 200 training" in result.out
    best = "logs/tiny/version_0/checkpoints/best.ckpt"
    refused = cli("test", "--ckpt_path", best)
    assert (refused.status, refused.err.count("\n")) == (4, 1)
    assert refused.err.endswith(
        "if you trust them, give --data code_of_a_user.Shapes --model.network code_of_a_user:net "
        "--model.optimizer code_of_a_user.MySGD\n"
    )
    assert cli("test", "--ckpt_path", best, *network, *source, *more[:2], *WITHOUT_PICTURES).status == 0


@pytest.mark.parametrize(
    ("args", "package"),
    [(["--trainer.callbacks+=DeviceStatsMonitor"], "psutil"), (["--trainer.logger", "WandbLogger"], "wandb")],
)
def test_a_package_that_is_not_installed_is_named(cli: Run, tmp_path: Path, args: list[str], package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"NOT TESTED: {package} is installed")
    result = cli("fit", "-c", tiny(tmp_path), *args)
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert f"pip install -U '{package}" in result.err
    assert not Path("logs").exists()


def test_a_run_that_a_timer_has_ended_goes_on_with_more_time(cli: Run, tmp_path: Path) -> None:
    timer = "--trainer.callbacks+=Timer", "--trainer.callbacks.duration"
    recipe = ("fit", "-c", tiny(tmp_path), "--trainer.max_epochs", "2")
    assert cli(*recipe, *timer, "{microseconds: 1}").status == 0
    last = "logs/tiny/version_0/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] < 10
    result = cli(*recipe, *timer, "00:01:00:00", "--ckpt_path", last)
    assert (result.status, result.err) == (0, "")
    assert "epoch 2/2" in result.out


@pytest.mark.parametrize("fast", ["false", "true"])
def test_an_optimizer_that_calls_the_network_several_times_a_step(cli: Run, tmp_path: Path, fast: str) -> None:
    lbfgs = ("--model.optimizer", "LBFGS", "--model.weight_decay", "0")
    args = (*lbfgs, "--model.fast", fast, "--trainer.limit_train_batches", "2")
    assert "model.channels_last: true does not suit" in cli("fit", "-c", tiny(tmp_path), *args).err
    result = cli("fit", "-c", "tiny.yaml", *args, "--model.channels_last", "false")
    assert (result.status, result.err) == (0, "")


def test_repeating_a_command_takes_a_new_folder(cli: Run, tmp_path: Path) -> None:
    first = tmp_path / "logs/tiny/version_0/config.yaml"
    for _ in range(2):
        assert cli("fit", "-c", tiny(tmp_path), "--trainer.limit_train_batches", "1").status == 0
        stamp = first.stat().st_mtime_ns
    assert sorted(path.name for path in (tmp_path / "logs/tiny").iterdir()) == ["version_0", "version_1"]
    assert first.stat().st_mtime_ns == stamp


def test_fast_dev_run_leaves_nothing(cli: Run, tmp_path: Path) -> None:
    text = PLAIN.replace("lr: 0.05", "lr: 0.05\n  schedule: {class_path: OneCycle, init_args: {peak_epoch: 5}}")
    assert cli("fit", "-c", tiny(tmp_path, text), "--trainer.fast_dev_run", "true").status == 0
    assert not (tmp_path / "logs").exists()


def test_fit_without_a_logger_still_has_its_own_folder(cli: Run, tmp_path: Path) -> None:
    assert cli("fit", "-c", tiny(tmp_path), "--trainer.logger", "false").status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "logs"}
    run = tmp_path / "logs/tiny/version_0"
    assert (run / "checkpoints/best.ckpt").is_file() and not (run / "metrics.csv").exists()
    assert cli("report", str(run)).status == 0
    assert "cifar_resnet20" in cli("collect", "logs").out


def test_a_diverging_run_ends_with_5(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", "-c", tiny(tmp_path), "--model.lr", "1e30", "--trainer.max_epochs", "3")
    assert (result.status, result.err.count("\n")) == (5, 1), result.err
    assert "became infinite or NaN in step" in result.err


def test_plain_lines_where_there_is_no_terminal(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", "-c", tiny(tmp_path), "--trainer.max_epochs", "2")
    assert "\r" not in result.out + result.err
    assert result.err == ""
    assert "cifar_resnet20: " in result.out
    assert "epoch 1/2  loss " in result.out
    assert "ETA 0:" in result.out
    assert "epoch 2/2  loss " in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_a_user_s_callbacks_come_beside_ours(cli: Run, tmp_path: Path) -> None:
    text = PLAIN.replace(
        "max_epochs: 1}", "max_epochs: 1, callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/loss}}]}"
    )
    assert cli("fit", "-c", tiny(tmp_path, text)).status == 0
    assert (tmp_path / "logs/tiny/version_0/test.json").is_file()


def test_a_network_that_does_not_take_the_images_is_named(cli: Run, tmp_path: Path) -> None:
    result = cli("fit", "--data", "Digits", "--model.network", "vit_tiny_patch16_224")
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert "vit_tiny_patch16_224 does not take images of 32x32 pixels" in result.err


def test_without_a_network_cifar10_says_what_to_put_where(cli: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    result = cli("fit", "--data", "CIFAR10", "--data.root", "images")
    assert (result.status, result.err.count("\n")) == (3, 1), result.err
    assert "put cifar-10-python.tar.gz (md5 c58f30108f718f92721af3b95e74349a)" in result.err
    assert str(tmp_path / "images") in result.err
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("cls", [InvalidCxxCompiler, InternalTorchDynamoError])
def test_what_cannot_be_compiled_is_told_in_a_line(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type[Exception]
) -> None:
    def fail(*args: object) -> None:
        raise cls("first line\nand much more") if cls is InternalTorchDynamoError else cls()

    monkeypatch.setattr(torch, "compile", lambda function, mode: fail)
    result = cli("fit", "-c", tiny(tmp_path), "--model.compile", "default")
    line = "first line" if cls is InternalTorchDynamoError else r"No working C\+\+ compiler found.*"
    assert result.status == 2
    assert re.fullmatch(
        rf"cifar-resnets: model\.compile: {line}; leave it out, or install what is missing\n", result.err
    )


@pytest.mark.process  # of the compiler
@needs_compiler
def test_the_fast_way_leaves_what_the_ordinary_one_does(cli: Run, tmp_path: Path) -> None:
    recipe, figures = tiny(tmp_path), []
    for more in ([], ["--model.fast", "true", "--model.compile", "default"]):
        result = cli("fit", "-c", recipe, *more)
        assert result.status == 0, result.err
        figures.append(read_json(Path(f"logs/tiny/version_{len(figures)}/test.json")))
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-3)
    assert figures[0]["images"] == figures[1]["images"]
    assert cli("test", "--ckpt_path", "logs/tiny/version_1/checkpoints/best.ckpt", *WITHOUT_PICTURES).status == 0

"""What a stranger types: keys, values and recipes that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults.matrix import ends_well, fault, files_in, leaves_nothing, one_line
from processes import run
from support import PLAIN, TINY

pytestmark = pytest.mark.process

GROUP = "usage"
FINDER = ("--trainer.callbacks+=LRFinder",)


def refused(folder: Path, *args: str) -> str:
    """The line with which a command is refused before it begins: not even a run's folder is made."""
    (folder / "tiny.yaml").write_text(TINY)
    before = files_in(folder)
    line = one_line(run(*args, cwd=folder), 2)
    leaves_nothing(folder, before)
    return line


def row(what: str, args: str, *culprits: str) -> Any:
    """A row: options after `fit -c tiny.yaml`, and what the line has to say."""
    return pytest.param(args, culprits, marks=fault(what), id=f"{what}: {args}")


UNKNOWN = [
    row("a misspelt key", "--trainer.max_epoch 3", "trainer.max_epoch: there is no such key", "trainer.max_epochs"),
    row("a misspelt key", "--ckpt_pth x", "ckpt_pth: there is no such key", "did you mean ckpt_path"),
    row("a misspelt key", "--data.batchsize 3", "data.batchsize", "did you mean data.batch_size"),
    row("a misspelt key", "--model.schedule OneCycle --model.schedule.peak 3", "model.schedule.peak", "peak_epoch"),
    row("a misspelt key", "--data.augment.crop 4", "data.augment.crop", "data.augment.crop_padding"),
    row("an abbreviated key", "--trainer.max_e 3", "trainer.max_e: there is no such key", "trainer.max_epochs"),
    row("an abbreviated key", "--seed 3", "seed: there is no such key"),
    row("a key with one hyphen", "-data.batch_size 3", "unrecognized arguments: -data.batch_size"),
    row("a key with a dash in the place of hyphens", "—data.batch_size 3", "—data.batch_size"),
    row("a key of no class", "--model.schedule.peak_epoch 3", "model.schedule: peak_epoch='3'", "Step"),
    row("an argument without a key", "recipe.yaml", "unrecognized arguments: recipe.yaml"),
    row("an argument without a key", "--data.batch_size 10 20", "unrecognized arguments: 20"),
    row("a missing value", "--data.batch_size", "--data: expected one argument"),
    row("a missing value", "-c", "-c/--config: expected one argument"),
    row("a missing value", "--data.batch_size=", "data.batch_size: an empty value"),
    row("an unknown network", "--model.network cifar_resnet21", "'cifar_resnet21'", "cifar_resnet20"),
    row("an unknown network argument", "--model.network_args.shortcuts B", "network_args", "shortcuts"),
    row("an unknown source", "--data Digit", "data: Digit is not allowed", "Digits"),
    row("an unknown callback", "--trainer.callbacks+=Nothing", "trainer.callbacks: Nothing is not allowed"),
    row("an unknown callback", "--trainer.callbacks Nothing", "trainer.callbacks: Nothing is not allowed"),
    row("an unknown argument of a callback", "--trainer.callbacks.methd valley", "methd", "trainer.callbacks.method"),
    row(
        "an unknown value of a callback", "--trainer.callbacks.method vally", "trainer.callbacks.method: vally", "steep"
    ),
    row("a value of a callback out of range", "--trainer.callbacks.num_steps 3", "LRFinder.num_steps: 3", "20 or more"),
    row(
        "a callback that lacks an argument",
        "--trainer.callbacks+=EarlyStopping",
        "trainer.callbacks.monitor is missing",
    ),
    row("a source that lacks its folder", "--data ImageFolder", "data.root is missing"),
]


@pytest.mark.parametrize(("args", "culprits"), UNKNOWN)
def test_unknown_key(tmp_path: Path, args: str, culprits: tuple[str, ...]) -> None:
    finder = FINDER if args.startswith("--trainer.callbacks.") else ()
    line = refused(tmp_path, "fit", "-c", "tiny.yaml", *finder, *args.split())
    assert all(culprit in line for culprit in culprits), line


WRONG = [
    row("a wrong type", "--trainer.max_epochs 1.5", "trainer.max_epochs: 1.5", "int"),
    row("a wrong type", "--trainer.max_epochs many", "trainer.max_epochs: many", "int"),
    row("a wrong type", "--data.batch_size 1e2", "data.batch_size: 100.0", "int"),
    row("a wrong type", "--model.lr 0,1", "model.lr: 0,1", "float"),
    row("a wrong type", "--model.lr nan", "model.lr: nan"),
    row("a wrong type", "--data.augment.flip maybe", "data.augment.flip: maybe", "bool"),
    row("a wrong type", "--data.classes 3", "data.classes: 3", "list"),
    row("a wrong type", "--trainer.precision 17", "trainer.precision: 17", "bf16"),
    row("a value in the place of keys", "--trainer 5", "trainer: ", "5"),
    row("a value in the place of keys", "--model 5", "model: ", "5"),
    row("a value in the place of keys", "--data.augment 5", "data.augment: 5", "keys below data.augment"),
    row("a value in the place of keys", "--explain 5", "explain: 5", "keys below explain"),
    row("null where a value is needed", "--data.batch_size null", "data.batch_size: null"),
    row("null where a value is needed", "--data CIFAR10 --data.root null", "data.root: null"),
    row(
        "null where a value is needed", "--trainer.callbacks+=LRFinder --trainer.callbacks.num_steps null", "num_steps"
    ),
    row("null where a value is needed", "--model.lr null", "model.lr: None", "float"),
    row("a size of 0", "--data.num_train 0", "data.num_train: 0", "1 or more"),
    row("a size of 0", "--data.batch_size 0", "data.batch_size: 0", "1 or more"),
    row("a size of 0", "--trainer.max_epochs 0", "trainer.max_epochs: 0", "1 or more"),
    row("a size of 0", "--trainer.max_steps 0", "trainer.max_steps: 0", "1 or more"),
    row("a size of 0", "--trainer.devices 0", "trainer.devices: 0", "1 or more"),
    row("a size of 0", "--trainer.limit_train_batches 0", "trainer.limit_train_batches: 0", "above 0"),
    row("a size of 0", "--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches: 0", "1 or more"),
    row("a size of 0", "--trainer.check_val_every_n_epoch 0", "trainer.check_val_every_n_epoch: 0", "1 or more"),
    row("a negative size", "--trainer.max_epochs -5", "trainer.max_epochs: -5", "-1 for no limit"),
    row("a negative size", "--trainer.max_steps -5", "trainer.max_steps: -5", "-1 for no limit"),
    row("a negative size", "--data.batch_size -40", "data.batch_size: -40", "1 or more"),
    row("a negative size", "--data.num_train -40", "data.num_train: -40", "1 or more"),
    row("a negative size", "--trainer.limit_val_batches -1", "trainer.limit_val_batches: -1", "0 or more"),
    row("a negative size", "--trainer.gradient_clip_val -1", "trainer.gradient_clip_val: -1", "0 or more"),
    row("a negative size", "--model.lr -1", "model.lr: -1", "above 0"),
    row("a negative seed, or none", "--seed_everything -1", "seed_everything: -1"),
    row("a negative seed, or none", "--seed_everything false", "seed_everything: False"),
    row("a seed that is too large", "--seed_everything 99999999999", "seed_everything: 99999999999", "4294967295"),
    row("barebones", "--trainer.barebones true", "trainer.barebones: true"),
    row("a rate to be found and no finder", "--model.schedule OneCycle --model.schedule.lr_min found", "LRFinder"),
]


@pytest.mark.parametrize(("args", "culprits"), WRONG)
def test_wrong_value(tmp_path: Path, args: str, culprits: tuple[str, ...]) -> None:
    line = refused(tmp_path, "fit", "-c", "tiny.yaml", *args.split())
    assert all(culprit in line for culprit in culprits), line
    assert len(line) < 300, line


# What is known only when the run has a folder: it is removed.
LATER = [
    row("an unknown optimizer", "--model.optimizer SDG", "'SDG'", "did you mean SGD"),
    row("a batch larger than the data", "--data.batch_size 201", "data.batch_size: 201 is more than the 200"),
    row("fewer images than classes", "--data.num_train 9", "data.num_train: 9", "give 10 to"),
    row("more images than there are", "--data.num_train 99999", "data.num_train: 99999", "give 10 to"),
    row("an unknown optimizer argument", "--model.optimizer_args.momentom 1", "model.optimizer", "momentom"),
    row("a validation that never comes", "--trainer.val_check_interval 1000", "val_check_interval", "1000"),
    row(
        "the same callback twice",
        "--trainer.callbacks+=LRFinder --trainer.callbacks+=LRFinder",
        "LRFinder is there twice",
    ),
    row("no such device", "--trainer.accelerator cpu --trainer.devices abc", "devices"),
    row("an unknown strategy", "--trainer.strategy deepspeeed", "deepspeeed"),
    row("an unknown profiler", "--trainer.profiler banana", "profiler"),
    row(
        "padding as wide as the images",
        "--data.augment.crop_padding 32",
        "data.augment.crop_padding: 32",
        "less than 32",
    ),
]


@pytest.mark.parametrize(("args", "culprits"), LATER)
def test_refused_later(tmp_path: Path, args: str, culprits: tuple[str, ...]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    before = files_in(tmp_path)
    one_line(run("fit", "-c", "tiny.yaml", *args.split(), cwd=tmp_path), 2, *culprits)
    leaves_nothing(tmp_path, before)


@fault("a figure to stop by that there is not")
def test_early_stopping_by_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(PLAIN)
    before = files_in(tmp_path)
    stop = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/accuracy")
    one_line(run("fit", "-c", "tiny.yaml", *stop, cwd=tmp_path), 2, "val/accuracy", "did you mean val/acc")
    leaves_nothing(tmp_path, before, run="logs/tiny/version_0")


@fault("a figure to choose the best checkpoint by that there is not")
def test_best_by_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(PLAIN)
    before = files_in(tmp_path)
    best = ("--checkpoint.monitor", "accuracy")
    one_line(run("fit", "-c", "tiny.yaml", *best, cwd=tmp_path), 2, "monitor", "accuracy", "such as val/loss, val/acc")
    leaves_nothing(tmp_path, before, run="logs/tiny/version_0")


# Recipes.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "is empty", marks=fault("an empty recipe")),
        pytest.param(b"# trainer: {}\n", "is empty", marks=fault("an empty recipe")),
        pytest.param(b"- trainer\n", "is a list", marks=fault("a recipe that is a list")),
        pytest.param(b"trainer: &a {callbacks: *a}\n", "contains itself", marks=fault("a recipe that contains itself")),
        pytest.param(b"trainer\n", "is a str", marks=fault("a recipe that is a word")),
        pytest.param(bytes(range(128, 256)), "is not valid YAML", marks=fault("a binary recipe")),
        pytest.param(b"\x00\x01\x02", "is not valid YAML", marks=fault("a binary recipe")),
        pytest.param(b"trainer: [", "is not valid YAML", marks=fault("a recipe with a bracket left open")),
        pytest.param(b"trainer:\n\tmax_epochs: 1\n", "line 2", marks=fault("a recipe indented with tabs")),
        pytest.param(b"trainer: {a: 1}\ntrainer: {b: 1}\n", "trainer is there twice", marks=fault("a key twice")),
        pytest.param(b"model:\n  lr: 1\n  lr: 2\n", "lr is there twice, in lines 2 and 3", marks=fault("a key twice")),
        pytest.param(b"trainer:\n", "trainer: nothing", marks=fault("a section without keys")),
        pytest.param(b"trainer: 5\n", "trainer: 5", marks=fault("a section that is a number")),
        pytest.param(b"model: [1]\n", "model: [1]", marks=fault("a section that is a list")),
        pytest.param(b"checkpoint: 5\n", "checkpoint: 5", marks=fault("a section that is a number")),
        pytest.param(b"a: !!python/name:os.system\n", "is not valid YAML", marks=fault("a recipe with code")),
    ],
)
def test_bad_recipe(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "second.yaml").write_bytes(content)
    line = refused(tmp_path, "fit", "-c", "tiny.yaml", "-c", "second.yaml")
    assert "second.yaml" in line and said in line, line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(
            "trainer: {max_epoch: 1}\n", "trainer.max_epoch: there", marks=fault("a misspelt key in a recipe")
        ),
        pytest.param("trainr: {max_epochs: 1}\n", "trainr.max_epochs: there", marks=fault("a misspelt section")),
        pytest.param("model: {lr: fast}\n", "model.lr: fast", marks=fault("a wrong type in a recipe")),
        pytest.param("data: 5\n", "data: 5 is not allowed", marks=fault("a source that is a number")),
        pytest.param("5: 5\n", "5", marks=fault("a key that is a number")),
    ],
)
def test_bad_key_in_a_recipe(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "second.yaml").write_text(content)
    line = refused(tmp_path, "fit", "-c", "tiny.yaml", "-c", "second.yaml")
    assert said in line, line


@fault("a recipe that is missing")
@pytest.mark.parametrize("args", [("-c", "missing.yaml"), ("--config", "missing.yaml"), ("--config=missing.yaml",)])
def test_missing_recipe(tmp_path: Path, args: tuple[str, ...]) -> None:
    assert "missing.yaml cannot be read (No such file or directory)" in refused(tmp_path, "fit", *args)


@fault("a folder in the place of a recipe")
def test_folder_as_recipe(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml cannot be read (Is a directory)" in refused(tmp_path, "fit", "-c", "folder.yaml")


@pytest.mark.parametrize(
    ("args", "culprit"),
    [
        pytest.param(("train", "-c", "tiny.yaml"), "'train' is not a command", marks=fault("an unknown subcommand")),
        pytest.param(("-c", "tiny.yaml"), "'-c' is not a command", marks=fault("no subcommand")),
        pytest.param(("fit",), "data is missing", marks=fault("no source")),
        pytest.param(("test",), "--ckpt_path is missing", marks=fault("no checkpoint to test")),
        pytest.param(("find-lr", "-c", "tiny.yaml", "--num_step", "30"), "num_steps", marks=fault("a misspelt key")),
        pytest.param(("summary", "cifar_resnet21"), "cifar_resnet21", marks=fault("an unknown network")),
        pytest.param(("summary", "cifar_resnet20", "--verif"), "--verif", marks=fault("an abbreviated key")),
    ],
)
def test_bad_command(tmp_path: Path, args: tuple[str, ...], culprit: str) -> None:
    assert culprit in refused(tmp_path, *args)


@fault("a name with spaces, quotes and letters of other scripts")
def test_odd_name(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    before = files_in(tmp_path)
    ends_well(run("fit", "-c", "tiny.yaml", "--name", "a 'b' ü 東", cwd=tmp_path), "accuracy: ")
    leaves_nothing(tmp_path, before, run="logs/a 'b' ü 東/version_0")

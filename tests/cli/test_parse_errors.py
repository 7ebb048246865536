"""Messages of the real parser, made short; `test_train.py` does the same from the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.demos.boring_classes import BoringModel

from cifar_resnets.cli.parse_errors import BASES, explain, is_of_trainer, unknown_metric, user_error
from cifar_resnets.errors import CheckpointError
from cifar_resnets.runs.checkpoint_io import AtomicCheckpointIO

KEYS = ["trainer.max_epochs", "trainer.max_steps", "data.batch_size"]


def message(*args: str) -> str:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--trainer.max_epochs", type=int | None, default=None)
    parser.add_argument("--data.batch_size", type=int, default=1)
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(list(args))
    return error.value.message


def test_wrong_type_names_key_value_and_what_is_allowed() -> None:
    line = explain(message("--trainer.max_epochs", "many"), KEYS)
    assert line == "trainer.max_epochs: many is not allowed, give int or null"
    assert explain(message("--data.batch_size", "big"), KEYS) == "data.batch_size: big is not allowed, give int"


def test_unknown_argument_gets_a_suggestion() -> None:
    line = explain(message("--trainer.max_epoch", "3"), KEYS)
    assert line.startswith("trainer.max_epoch: there is no such key, did you mean trainer.max_epochs")


def test_unknown_key_without_a_neighbour() -> None:
    assert explain(message("--zzz", "3"), KEYS) == "zzz: there is no such key"


def test_the_inner_form_of_a_class_is_not_suggested() -> None:
    keys = ["data.init_args.batch_siz", "data.class_path", "data.batch_size"]
    assert explain(message("--data.batch_siz", "3"), keys).endswith(", did you mean data.batch_size?")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("something\n  else\n  happened", "something"),
        ("\n  several   spaces\nmore", "several spaces"),
        ('Parser key "trainer":\nUnable to load config \'5\'\n  - Parser key "trainer": Unable', None),
        ("", ""),
    ],
)
def test_anything_else_is_the_first_line_of_the_message_with_its_key(said: str, line: str | None) -> None:
    assert explain(said, KEYS) == ("trainer: Unable to load config '5'" if line is None else line)


# Nested keys and classes.


def explained(parser: ArgumentParser, *args: str) -> str:
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(list(args))
    line = explain(error.value.message, ["data.batch_size", "part.size", "part.name"])
    assert "\n" not in line
    return line


@dataclass
class Part:
    """A class with keys."""

    size: int = 1
    name: str = "a"


class Shape:
    """A class with others below it."""

    def __init__(self, side: int = 1) -> None:
        self.side = side


class Square(Shape):
    """A class that needs something."""

    def __init__(self, corner: int, side: int = 1) -> None:
        super().__init__(side)


def nested() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--part", type=Part)
    parser.add_argument("--shape", type=Shape | None)
    return parser


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["recipe.yaml"], "unrecognized arguments: recipe.yaml"),
        (["-part.size", "3"], "unrecognized arguments: -part.size 3"),
        (["--part.siz", "3"], "part.siz: there is no such key, did you mean part.size?"),
        (["--part"], "argument --part: expected one argument"),
        (["--part", "5"], "part: Unable to load config '5'"),
        (["--part.size", "x"], "part.size: x is not allowed, give int"),
        (["--part.size="], "part.size: an empty value is not allowed, give int"),
    ],
)
def test_keys_in_one_line(args: list[str], line: str) -> None:
    assert explained(nested(), *args) == line


def test_classes_in_one_line() -> None:
    name = f"{__name__}.Square"
    assert (
        explained(nested(), "--shape", name)
        == "shape.corner is missing: give --shape.corner, or a recipe with it by -c"
    )
    line = explained(nested(), "--shape", name, "--shape.cornre", "3")
    assert line.startswith("shape.cornre: there is no such key, did you mean shape.corner")
    line = explained(nested(), "--shape", "Sqare")
    assert line == "shape: Sqare is not allowed, give a class or keys below shape or null"


def test_few_classes_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASES, "shape", Shape)
    assert explained(nested(), "--shape", "Sqare") == "shape: Sqare is not allowed, give one of Square or null"


def test_what_lightning_refuses() -> None:
    def error_of(call: Callable[[], object]) -> Exception:
        with pytest.raises(Exception) as error:
            call()
        return error.value

    assert is_of_trainer(error_of(lambda: pl.Trainer(strategy="none", accelerator="cpu")))
    assert not is_of_trainer(error_of(lambda: pl.LightningModule().trainer))  # a RuntimeError, of our own doing
    assert not is_of_trainer(error_of(lambda: int("x")))
    assert not is_of_trainer(ValueError("never raised"))


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ("val/accuracy", "monitor: there is no metric val/accuracy, did you mean val/acc"),
        ("val_loss", "monitor: there is no metric val_loss, did you mean val/loss"),
        ("f1", "monitor: there is no metric f1, give one such as val/loss, val/acc"),
    ],
)
def test_metrics_that_callbacks_do_not_find(monitor: str, said: str) -> None:
    figures = {name: torch.tensor(0.5) for name in ("train/loss", "val/loss", "val/acc", "val_class_acc/cat")}
    with pytest.raises(RuntimeError) as stopping:
        EarlyStopping(monitor)._validate_condition_metric(figures)
    best = f"`ModelCheckpoint(monitor={monitor!r})` could not find the monitored key in the returned metrics: "
    for message in (str(stopping.value), f"{best}{list(figures)}. HINT: Did you call `log({monitor!r}, value)`?"):
        assert (unknown_metric(message) or "").startswith(said)
    assert unknown_metric("something else") is None


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("optimizer_states", [{}], "optimizers"),
        ("callbacks", {"Strict": {"x": 1}}, "callbacks"),
        ("loops", {}, "loops"),
    ],
)
def test_what_cannot_be_restored_is_the_checkpoints_fault(key: str, value: object, part: str, tmp_path: Path) -> None:
    class Strict(pl.Callback):
        state_key = "Strict"

        def load_state_dict(self, state_dict: dict[str, object]) -> None:
            state_dict["there"]

    options = {
        "max_steps": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(accelerator="cpu", plugins=[AtomicCheckpointIO()], callbacks=[Strict()], **options)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    content = {**AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt"), key: value}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "x.ckpt")
    with pytest.raises((LookupError, ValueError)) as error:
        trainer.fit(BoringModel(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    line = user_error(error.value)
    assert isinstance(line, CheckpointError)
    assert str(line).startswith(f"--ckpt_path: the checkpoint's {part} cannot be restored: KeyError: ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("`Monitor` needs `psutil`.\nTry pip"), "`Monitor` needs `psutil`. Try pip"),
        (
            ValueError(
                "Not any of the subtypes\n  - Problem with given class_path 'a.b.Log':\n      'wandb' not met\n"
            ),
            "Log: 'wandb' not met",
        ),
        (ValueError("Expected more than 1 value per channel when training, got"), "data.batch_size: 1 image on a rank"),
        (
            ValueError("You restored a checkpoint with current_epoch=4, but you have set Trainer(max_epochs=3)."),
            "trainer.max_epochs: 3 is not allowed, the checkpoint has 4 epochs behind it: give 4 or more",
        ),
        (
            ValueError("You requested to check 0.5 of the `val_dataloader` but 0.5 * 1 < 1. Please"),
            "trainer.limit_val_batches or overfit_batches: 0.5 of the batches is less than one",
        ),
        (RuntimeError("view size is not compatible with input tensor's size and stride"), "model.channels_last: true"),
        (RuntimeError("CUDA out of memory."), "memory is exhausted (CUDA out of memory.)"),
    ],
)
def test_what_callbacks_loggers_and_torch_raise_for_a_setting(error: Exception, said: str) -> None:
    assert str(user_error(error)).startswith(said)


def test_a_class_that_cannot_be_imported_is_named_with_the_reason() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[pl.Callback] | pl.Callback | None, default=None)
    for name, reason in (
        ("nowhere.Hello", "nowhere: No module named 'nowhere'"),
        ("json.Hello", "json: module 'json' has"),
    ):
        with pytest.raises(ArgumentError) as error:
            parser.parse_args(["--callbacks+", name])
        assert explain(error.value.message, []).startswith(f"callbacks: cannot import {reason}")

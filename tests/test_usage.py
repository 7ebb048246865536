"""Messages of the real parser, made short; `test_cli.py` does the same from the command line."""

from __future__ import annotations

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from cifar_resnets.usage import explain, unknown_key

KEYS = ["trainer.max_epochs", "trainer.max_steps", "data.batch_size"]


def message(*args: str) -> str:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--trainer.max_epochs", type=int | None, default=None)
    parser.add_argument("--data.batch_size", type=int, default=1)
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(list(args))
    return error.value.message


def test_wrong_type_names_key_value_and_what_is_allowed() -> None:
    line = explain(message("--trainer.max_epochs", "many"), KEYS, {})
    assert line == "trainer.max_epochs: many is not allowed, give int or null"
    assert explain(message("--data.batch_size", "big"), KEYS, {}) == "data.batch_size: big is not allowed, give int"


def test_unknown_argument_gets_a_suggestion() -> None:
    line = explain(message("--trainer.max_epoch", "3"), KEYS, {})
    assert line.startswith("trainer.max_epoch: there is no such key, did you mean trainer.max_epochs")


def test_unknown_key_without_a_neighbour() -> None:
    assert unknown_key("zzz", KEYS) == "zzz: there is no such key"


def test_a_key_is_not_suggested_for_itself() -> None:
    assert "did you mean trainer.max_steps" in unknown_key(
        "trainer.max_epochs", ["trainer.max_epochs", "trainer.max_steps"]
    )


def test_what_is_not_understood_stays_whole_on_one_line() -> None:
    assert explain("something\n  else\n  happened", KEYS, {}) == "something else happened"

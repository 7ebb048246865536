"""Text for terminals and tables."""

from __future__ import annotations

import csv
import io

import pytest

from cifar_resnets.support.text import csv_text, did_you_mean, markdown_table, no_formula, printable

ROWS = [{"name": "a, b", "size": "1"}, {"name": 'c|d "e"', "size": ""}]


def test_the_nearest_names_are_suggested_and_never_the_name_itself() -> None:
    assert did_you_mean("batchsize", ["batch_size", "zebra"]) == ", did you mean batch_size?"
    assert did_you_mean("max_epochs", ["max_epochs", "max_steps", "max_steps"]) == ", did you mean max_steps?"
    assert did_you_mean("cat", ["bat", "hat", "zebra"]) == ", did you mean hat or bat?"
    assert did_you_mean("zzz", ["batch_size"]) == ""
    assert did_you_mean("seed", ["seed_everything", "zebra"]) == ", did you mean seed_everything?"
    names = ["crop_scale", "crop_ratio", "drop", "crop_padding"]
    assert did_you_mean("crop", names) == ", did you mean crop_padding or crop_ratio or crop_scale?"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain 東 ü", "plain 東 ü"), ("a\nb\tc", r"a\nb\tc"), ("\x1b[31mred", r"\x1b[31mred"), ("", "")],
)
def test_what_steers_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_csv_is_read_back() -> None:
    text = csv_text(ROWS, ("name", "size"))
    assert list(csv.DictReader(io.StringIO(text))) == ROWS
    assert text.startswith("name,size\n")
    assert csv_text([], ("name", "size")) == "name,size\n"


def test_markdown_aligns_numbers_to_the_right_and_escapes_bars() -> None:
    assert markdown_table(ROWS, ("name", "size"), left=("name",)) == (
        '| name | size |\n| --- | ---: |\n| a, b | 1 |\n| c\\|d "e" |  |\n'
    )


def test_a_spreadsheet_computes_no_text() -> None:
    assert [no_formula(each) for each in ("=1+1", "-a", "@a", "a=1", "")] == ["'=1+1", "'-a", "'@a", "a=1", ""]

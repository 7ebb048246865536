from __future__ import annotations

import csv
import io
from collections.abc import Callable

import pytest
from support import Result

from cifar_resnets.reports.layers import MAX_ROWS, layer_table


def layers(cli: Callable[..., Result], *args: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(cli("summary", *args, "--format", "csv").out)))


def test_the_layers_of_a_network(cli: Callable[..., Result]) -> None:
    rows = layers(cli, "cifar_resnet20")
    table = layer_table(rows)
    assert table is not None
    shown = [dict(zip(table["headings"], row, strict=True)) for row in table["rows"]]
    assert [row["type"] for row in shown].count("Conv2d") == 19
    assert (shown[0]["layer"], shown[0]["field"]) == ("conv1", "3")
    assert (shown[-1]["layer"], shown[-1]["channels"]) == ("fc", "10")
    assert {"BatchNorm2d", "ReLU"}.isdisjoint(row["type"] for row in shown)
    assert next(row for row in shown if row["layer"] == "layer3.2.conv2")["parameters"] == "36,864"
    assert table["gap"] is None
    assert table["num_left_out"] == len(rows) - len(shown)


def test_of_a_deep_network_the_beginning_and_the_end(cli: Callable[..., Result]) -> None:
    rows = layers(cli, "cifar_resnet110")
    deep = [*rows[:-1], *rows[1:-1], rows[-1]]
    table = layer_table(deep)
    assert table is not None
    assert (len(table["rows"]), table["gap"]) == (MAX_ROWS, MAX_ROWS // 2)
    assert (table["rows"][0][0], table["rows"][-1][0]) == ("conv1", "fc")
    assert table["num_left_out"] == len(deep) - MAX_ROWS


def test_a_field_without_an_end(cli: Callable[..., Result]) -> None:
    rows = layers(cli, "cifar_resnet20")
    rows[0]["receptive_field_out"], rows[0]["parameters"] = "inf", "9" * 5000
    table = layer_table(rows)
    assert table is not None
    assert table["rows"][0][7] == "image"


@pytest.mark.parametrize("rows", [[], [{"layer": "conv1"}]])
def test_what_is_no_table(rows: list[dict[str, str]]) -> None:
    assert layer_table(rows) is None

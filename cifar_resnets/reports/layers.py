"""The receptive fields of a run's network, from `layers.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLUMNS = {
    "layer": "layer",
    "type": "type",
    "kernel": "kernel_size",
    "stride": "stride",
    "channels": "out_channels",
    "output": "image_size_out",
    "jump": "jump_out",
    "field": "receptive_field_out",
    "narrowest": "min_receptive_field_out",
    "parameters": "parameters",
}
MAX_ROWS = 120


@dataclass(frozen=True)
class LayerTable:
    """The layers that change the receptive field, or that have parameters other than a normalisation's.

    Args:
        headings: of the columns; the first two are text, the others figures.
        rows: a cell a column.
        gap: before which row some are left out.
        num_left_out: rows of `layers.csv` that are not shown.
    """

    headings: Sequence[str]
    rows: list[list[str]]
    gap: int | None
    num_left_out: int


def layer_table(layers: Sequence[Mapping[str, str]]) -> LayerTable | None:
    """Returns the table, of a very deep network its beginning and its end; None without any rows."""
    if not layers or not set(COLUMNS.values()) <= layers[0].keys():
        return None
    rows = [[_cell(row[name]) for name in COLUMNS.values()] for row in layers if _tells(row)]
    gap = MAX_ROWS // 2 if len(rows) > MAX_ROWS else None
    shown = rows if gap is None else rows[:gap] + rows[-gap:]
    return LayerTable(list(COLUMNS), shown, gap, len(layers) - len(shown))


def _tells(row: Mapping[str, str]) -> bool:
    """Returns whether a row is more than an activation, a normalisation or an addition."""
    multiplies = row.get("multiply_adds", "1") != "0"
    return multiplies or row["kernel_size"] != "1" or row["stride"] != "1"


def _cell(value: str) -> str:
    return "image" if value == "inf" else f"{int(value):,}" if value.isdecimal() and len(value) < 16 else value

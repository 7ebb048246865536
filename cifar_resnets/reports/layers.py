"""The receptive fields of a run's network, from `layers.csv`."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def layer_table(layers: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """Returns the layers that change the receptive field, or have parameters other than a normalisation's.

    Returns:
        `headings`, of which the first two are of text; `rows` of cells; `gap`, the row before which those in the middle
        of a very deep network are left out, or None; `num_left_out` of all rows. None without any rows.
    """
    if not layers or not set(COLUMNS.values()) <= layers[0].keys():
        return None
    rows = [[_cell(row[name]) for name in COLUMNS.values()] for row in layers if _is_shown(row)]
    gap = MAX_ROWS // 2 if len(rows) > MAX_ROWS else None
    shown = rows if gap is None else rows[:gap] + rows[-gap:]
    return {"headings": list(COLUMNS), "rows": shown, "gap": gap, "num_left_out": len(layers) - len(shown)}


def _is_shown(row: Mapping[str, str]) -> bool:
    """Returns whether a row is more than an activation, a normalisation or an addition."""
    return row.get("multiply_adds", "1") != "0" or row["kernel_size"] != "1" or row["stride"] != "1"


def _cell(value: str) -> str:
    return "image" if value == "inf" else f"{int(value):,}" if value.isdecimal() and len(value) < 16 else value

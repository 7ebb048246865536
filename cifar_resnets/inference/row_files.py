"""Writes predictions as CSV or JSON, row by row as they come."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np

from cifar_resnets.inference.rows import Row
from cifar_resnets.support.atomic_file import naming
from cifar_resnets.support.text import csv_line


class CsvFile:
    """A CSV file with a row for each image; a file that is there is never replaced.

    It is UTF-8; names of files that are not keep their bytes, so that the files can be found. Until its last row it has
    the ending `.partial`, and keeps it if the program is stopped: the next one begins it anew.

    Args:
        path: of the file.
        top_k: most probable classes of each image.
        has_heatmaps: whether there is a column with the names of the pictures.

    Raises:
        FileExistsError: when there is such a file.
    """

    def __init__(self, path: Path, top_k: int, has_heatmaps: bool = False) -> None:
        self._top_k = top_k
        more = [f"{what}_{rank}" for rank in range(2, top_k + 1) for what in ("class", "probability")]
        columns = ["path", "predicted", "probability", *more, "entropy", "margin", "error"]
        self._columns = [*columns, *(["heatmap"] if has_heatmaps else [])]
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._partial.unlink(missing_ok=True)  # it may be a link
        self._file = self._partial.open("x", encoding="utf-8", errors="surrogateescape", newline="")
        self._file.write(csv_line(self._columns))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with naming(self._path):
            self._file.close()
            if kind is None:
                self._partial.rename(self._path)

    def add(self, row: Row) -> None:
        """Writes a row."""
        if (prediction := row.prediction) is None:
            cells: dict[str, Any] = {"error": row.problem}
        else:
            cells = {"predicted": prediction.name, "probability": digits(prediction.probability)}
            for rank, (name, probability) in enumerate(prediction.top(self._top_k)[1:], 2):
                cells |= {f"class_{rank}": name, f"probability_{rank}": digits(probability)}
            cells |= {"entropy": f"{prediction.entropy:.6f}", "margin": f"{prediction.margin:.6f}"}
            cells |= {"heatmap": row.heatmap} if row.heatmap else {}
        cells["path"] = row.path
        with naming(self._path):
            self._file.write(csv_line(cells.get(column, "") for column in self._columns))


class JsonArray:
    """A JSON array with an object for each image, one a line.

    It is ASCII; a byte of a file's name that is no UTF-8 is a lone surrogate, as Python has it in names of files.

    Args:
        stream: that it is written to.
        top_k: most probable classes of each image.
    """

    def __init__(self, stream: TextIO, top_k: int) -> None:
        self._stream, self._top_k, self._separator = stream, top_k, "[\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._stream.write("\n]\n" if self._separator != "[\n" else "[]\n")

    def add(self, row: Row) -> None:
        """Writes a row."""
        self._stream.write(self._separator + json.dumps(as_json(row, self._top_k)))
        self._separator = ",\n"


def as_json(row: Row, top_k: int) -> dict[str, Any]:
    """Returns a row in primitives."""
    if (prediction := row.prediction) is None:
        return {"path": row.path, "error": row.problem}
    top = [{"class": name, "probability": _number(digits(p))} for name, p in prediction.top(top_k)]
    figures = {"entropy": _number(f"{prediction.entropy:.6f}"), "margin": _number(f"{prediction.margin:.6f}")}
    heatmap = {"heatmap": row.heatmap} if row.heatmap else {}
    best = {"predicted": prediction.name, "probability": top[0]["probability"]}
    return {"path": row.path, **best, "top": top, **figures, **heatmap}


def _number(text: str) -> float | None:
    """Returns a number for JSON, which has no NaN."""
    return value if math.isfinite(value := float(text)) else None


def digits(value: float) -> str:
    """Returns as many digits of a number in float32 as determine it."""
    return str(np.float32(value))

"""Single images: the gallery of a run, and those that only one of two runs classifies correctly."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cifar_resnets.figures.panels import Pixels, as_bytes, difference, heated, shrunk
from cifar_resnets.results.csv_files import Predictions
from cifar_resnets.results.json_files import Mistakes
from cifar_resnets.results.run_folder import Run
from cifar_resnets.support.text import elide, printable

MAX_THUMBNAILS = 24
LONGEST_NAME = 28  # letters


def gallery(run: Run) -> list[dict[str, Any]]:
    """Returns the most confidently wrong images of a run, with heatmaps where they were computed."""
    shown = run.gallery or run.mistakes
    if shown is None:
        return []
    # without a gallery there are many mistakes
    rows = range(min(len(shown.images), MAX_THUMBNAILS))
    return [_sample(run, shown, row) | {"pictures": panels(shown, row)} for row in rows]


def thumbnails(wrong: Run, indices: NDArray[np.int64]) -> dict[str, Any]:
    """Returns images that only another run classifies correctly, with the predictions of the run that was wrong.

    Args:
        wrong: the run.
        indices: positions of the images in the data (n,).

    Returns:
        `total`, the number of images; the `samples` that are shown, the most confidently wrong ones first; the
        `reason` why none are shown, or an empty one.
    """
    mistakes, reason = wrong.mistakes, ""
    if mistakes is None:
        reason = f"there is no mistakes.npz of {wrong.label}"
    elif wrong.predictions is None or not _agree(mistakes, wrong.predictions):
        reason = f"mistakes.npz of {wrong.label} is of another test than its predictions"
    if mistakes is None or reason:
        return {"total": len(indices), "samples": [], "reason": reason}
    rows = np.flatnonzero(np.isin(mistakes.index, indices))
    order = rows[np.argsort(-mistakes.p_predicted[rows], kind="stable")][:MAX_THUMBNAILS]
    samples = [_sample(wrong, mistakes, row) | {"address": thumbnail(mistakes, row)} for row in order]
    return {"total": len(indices), "samples": samples, "reason": ""}


def _agree(mistakes: Mistakes, predictions: Predictions) -> bool:
    """Returns whether the mistakes are among the predictions."""
    index = mistakes.index
    if len(index) and not (0 <= index.min() and index.max() < len(predictions.labels)):
        return False
    same = predictions.labels[index] == mistakes.label, predictions.predicted[index] == mistakes.predicted
    return bool(np.all(same))


def _sample(run: Run, mistakes: Mistakes, row: int) -> dict[str, Any]:
    """Returns what is said of an image.

    Returns:
        Its position in the data, the name of its file and the whole path, which are empty if it has none, its true and
        predicted class, and their probabilities.
    """
    names: Sequence[str] = run.predictions.class_names if run.predictions else ()
    if not run.predictions and run.evaluation:
        names = [each.name for each in run.evaluation.classes]
    true, predicted = int(mistakes.label[row]), int(mistakes.predicted[row])
    path = "" if mistakes.path is None else printable(str(mistakes.path[row]))
    return {
        "index": int(mistakes.index[row]),
        "file": elide(path.rpartition("/")[2], LONGEST_NAME),
        "path": path,
        "true": names[true] if 0 <= true < len(names) else f"class {true}",
        "predicted": names[predicted] if 0 <= predicted < len(names) else f"class {predicted}",
        "p_true": float(mistakes.p_label[row]),
        "p_predicted": float(mistakes.p_predicted[row]),
    }


def thumbnail(mistakes: Mistakes, row: int) -> str:
    """Returns the address of an image as it is, at most as large as a panel."""
    return address(shrunk(mistakes.images[row : row + 1])[0], optimize=True)


def panels(mistakes: Mistakes, row: int) -> list[tuple[str, str]]:
    """Returns names and addresses of the pictures of an image: itself, under both heatmaps, and their difference."""
    image = shrunk(mistakes.images[row : row + 1])
    shown = [("image", image)]
    if mistakes.heat is not None:
        predicted, true = (shrunk(as_bytes(heat[row : row + 1])) for heat in mistakes.heat)
        shown += [("predicted", heated(image, predicted)), ("true", heated(image, true))]
        shown += [("difference", difference(image, predicted, true))]
    return [(name, address(pixels[0], optimize=True)) for name, pixels in shown]


def address(image: Pixels, kind: str = "png", **options: Any) -> str:
    """Returns an image (h, w, 3) inside an address, as PNG or JPEG with options of Pillow; the browser enlarges it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

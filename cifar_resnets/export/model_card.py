"""The model card of a network: what was trained on what, how well it does, and how to use it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cifar_resnets.evaluation.calibration import confusion_counts, most_confused, reliability
from cifar_resnets.inference.classifier import TrainedClassifier
from cifar_resnets.results.run_folder import Run

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
SPECIAL = "\\`*_{}[]<>#|$~!"  # characters of Markdown
MOST_CLASSES = 20  # of a confusion matrix that is shown
MOST_PAIRS = 10
STAGES = {"test": "test", "val": "validation"}


@dataclass(frozen=True)
class Card:
    """What a model card is about, beside the network and its run.

    Args:
        checkpoint: file that was exported.
        licence: identifier of the weights' licence, as the Hugging Face hub has it; empty if none was given.
        folder: name of the folder that holds the card.
    """

    checkpoint: Path
    licence: str
    folder: str


def model_card(classifier: TrainedClassifier, run: Run | None, card: Card) -> str:
    """Returns the text of the model card, in Markdown with the head that the Hugging Face hub reads.

    Args:
        classifier: that is exported.
        run: whose files tell of its training and its test; None if they are not known.
        card: what else is to be said.
    """
    tested = run if run is not None and is_tested(run, card.checkpoint) else None
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"text": escape, "percent": percent}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    parameters = sum(each.numel() for each in classifier.network.parameters())
    return template.render(
        classifier=classifier,
        data=str(classifier.data["class_path"]).rpartition(".")[2],
        network=classifier.hyper_parameters["network"],
        network_args=classifier.hyper_parameters.get("network_args") or {},
        parameters=f"{parameters:,}",
        run=run,
        settings=_settings(run),
        evaluation=None if tested is None else tested.evaluation,
        stage=STAGES[tested.stage] if tested else "",
        **_of_predictions(tested),
        card=card,
    )


def is_tested(run: Run, checkpoint: Path) -> bool:
    """Returns whether the figures of a run are those of a checkpoint: both have the name and the folder of the run."""
    if run.evaluation is None or not run.evaluation.complete or run.evaluation.total.accuracy is None:
        return False
    theirs, ours = (path.absolute().parts for path in (Path(run.evaluation.checkpoint), checkpoint))
    return theirs[-4:] == ours[-4:]  # NAME/version_N/checkpoints/best.ckpt: the folders above may have moved


def _settings(run: Run | None) -> list[tuple[str, Any]]:
    """Returns what was trained, from the run's configuration."""
    if run is None:
        return []
    keys = {
        "epochs": "trainer.max_epochs",
        "batch size": "data.init_args.batch_size",
        "optimizer": "model.optimizer",
        "learning rate": "model.lr",
        "weight decay": "model.weight_decay",
        "label smoothing": "model.label_smoothing",
        "schedule": "model.schedule.class_path",
        "precision": "trainer.precision",
        "seed": "seed_everything",
    }
    found = [(name, run.setting(key)) for name, key in keys.items()]
    return [(name, _last_part(value)) for name, value in found if value is not None]


def _last_part(value: Any) -> str:
    """Returns the class of a class path, and other values as they are."""
    return value.rpartition(".")[2] if isinstance(value, str) else str(value)


def _of_predictions(run: Run | None) -> dict[str, Any]:
    """Returns calibration, confusion matrix and most confused pairs; None or nothing where they are not known."""
    if run is None or run.predictions is None:
        return {"ece": None, "confusion": None, "pairs": []}
    found = run.predictions
    names, known = found.class_names, np.isfinite(found.probabilities).all(axis=1)
    counts = confusion_counts(found.labels, found.predicted, len(names))
    pairs = [
        (names[pair.true], names[pair.predicted], pair.count, pair.percent / 100) for pair in most_confused(counts)
    ]
    return {
        "ece": reliability(found.labels[known], found.probabilities[known]).ece if known.any() else None,
        "confusion": list(zip(names, counts.tolist(), strict=True)) if len(names) <= MOST_CLASSES else None,
        "pairs": pairs[:MOST_PAIRS],
    }


def escape(value: object) -> str:
    """Returns a value as Markdown shows it, on one line: names of classes and files may hold anything."""
    line = " ".join(str(value).split())
    return "".join(f"\\{each}" if each in SPECIAL else each for each in line)


def percent(part: float | None | Sequence[float]) -> str:
    """Returns an accuracy from 0 to 1, or an interval of it, in percent."""
    if part is None:
        return "-"
    if isinstance(part, Sequence):
        return " to ".join(f"{100 * each:.2f}" for each in part) + " %"
    return f"{100 * part:.2f} %"

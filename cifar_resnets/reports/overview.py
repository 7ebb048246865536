"""The accuracy, settings and origin of a run: the numbers at the top of a report."""

import os.path
import shlex
from typing import Any

import numpy as np

from cifar_resnets.reports.classes import calibration
from cifar_resnets.reports.formatting import MISSING, SPACE, Fact, duration, interval, joined, number, percent
from cifar_resnets.results.csv_files import finite
from cifar_resnets.results.run_folder import Run

STAGES = {"test": "test", "val": "validation"}


def headline(run: Run) -> dict[str, str]:
    """Returns the accuracy of a run as text; nothing where it was not measured."""
    if run.evaluation is None or run.evaluation.total.accuracy is None or run.evaluation.total.interval is None:
        return {}
    total = run.evaluation.total
    return {
        "accuracy": percent(total.accuracy),
        "caption": f"{STAGES[run.stage]} accuracy",
        "interval": interval(total.interval),
        "images": f"{total.correct:,} of {total.images:,} images",
    }


def figures(run: Run) -> list[Fact]:
    """Returns the other figures of a run, those that are known."""
    facts = _validation(run)
    if run.evaluation is not None:
        means = {"balanced accuracy": run.evaluation.balanced_accuracy, "macro F1": run.evaluation.macro_f1}
        facts += [Fact(name, percent(value)) for name, value in means.items() if value is not None]
        facts += [Fact("top-5 accuracy", percent(run.evaluation.top5))] if run.evaluation.top5 is not None else []
        loss = number(run.evaluation.loss)
        facts.append(Fact(f"{STAGES[run.stage]} loss", loss if loss == MISSING else f"{loss}{SPACE}nats"))
    if reliability := calibration(run):
        facts.append(Fact("calibration error", percent(reliability.ece), "ECE in 15 bins"))
    return facts + timing(run)[:2]


def _validation(run: Run) -> list[Fact]:
    """Returns the best validation accuracy of the training, which chose the checkpoint."""
    curve = run.history.get("val/acc")
    if run.stage == "val" or curve is None or not len(finite(curve.y)):
        return []
    best = int(np.nanargmax(curve.y))
    return [Fact("best validation accuracy", percent(float(curve.y[best])), f"epoch {round(curve.x[best], 2):g}")]


def timing(run: Run) -> list[Fact]:
    """Returns time and throughput of the training."""
    curves = (run.history.get(f"time/{name}") for name in ("epoch_seconds", "images_per_second"))
    seconds, speed = (np.array([]) if curve is None else finite(curve.y) for curve in curves)
    facts = []
    if len(seconds):
        facts.append(Fact("training time", duration(float(seconds.sum())), _plural(len(seconds), "epoch")))
    if len(speed):
        facts.append(Fact("throughput", f"{np.median(speed):,.0f}{SPACE}images/s", "median over the epochs"))
    if len(seconds):
        facts.append(Fact("time of an epoch", duration(float(np.median(seconds))), "median, with validation"))
        facts.append(Fact("first epoch", duration(float(seconds[0])), "with what is done once"))
    return facts


def recipe(run: Run) -> list[Fact]:
    """Returns network, data, optimizer and length from the configuration."""
    steps = _counted(run, "trainer.max_steps", "step")
    facts = [
        Fact("network", joined(text(run.setting("model.network")), text(run.setting("model.network_args")))),
        Fact("parameters", _parameters(run)),
        Fact("data", joined(class_name(run.setting("data")), _counted(run, "data.init_args.num_train", "image"))),
        Fact("batch size", text(run.setting("data.init_args.batch_size"))),
        Fact("length", joined(_counted(run, "trainer.max_epochs", "epoch"), steps and f"{steps} at most")),
        Fact("optimizer", _optimizer(run)),
        Fact("schedule", class_name(run.setting("model.schedule"))),
        Fact("precision", text(run.setting("trainer.precision"))),
        Fact("checkpoint", run.evaluation.checkpoint if run.evaluation else "", "that was evaluated"),
    ]
    return [fact for fact in facts if fact.value]


def text(value: Any) -> str:
    """Formats a value of the configuration as the recipe has it; empty for none."""
    if isinstance(value, dict):
        return joined(*(f"{key}: {text(each) or 'null'}" for key, each in value.items()))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def class_name(value: Any) -> str:
    """Returns the class that a part of the configuration names."""
    return text(value.get("class_path")).rpartition(".")[2] if isinstance(value, dict) else text(value)


def _parameters(run: Run) -> str:
    counts = [row.get("parameters", "") for row in run.layers]
    known = counts and all(count.isdecimal() and len(count) < 16 for count in counts)
    return f"{sum(map(int, counts)):,}" if known else ""


def _counted(run: Run, key: str, what: str) -> str:
    value = run.setting(key)
    return _plural(value, what) if isinstance(value, int) and value > 0 else ""


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what if number == 1 else f'{what}s'}"


def _optimizer(run: Run) -> str:
    values = {"learning rate": run.setting("model.lr"), "weight decay": run.setting("model.weight_decay")}
    parts = (f"{name} {text(value)}" for name, value in values.items() if value is not None)
    return joined(class_name(run.setting("model.optimizer")), *parts)


def origin(run: Run) -> list[Fact]:
    """Returns when, with which code and with which versions a run was made."""
    record = run.record
    facts = [
        Fact("seed", record.seed or text(run.setting("seed_everything"))),
        Fact("started", record.started.replace("T", " ")),
        Fact("commit", record.commit, _changed(record.changed)),
        Fact("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        Fact("platform", record.platform),
    ]
    return [fact for fact in facts if fact.value]


def _changed(files: list[str]) -> str:
    if not files:
        return "no file was changed"
    return f"{len(files)} {'file was' if len(files) == 1 else 'files were'} not as in the commit"


def subtitle(run: Run) -> str:
    """Returns network, data and date in a line."""
    names = text(run.setting("model.network")), class_name(run.setting("data"))
    return " · ".join(part for part in (*names, run.record.started.partition("T")[0]) if part)


def command(run: Run) -> str:
    """Returns the shell command that makes the run again; empty if it is not known."""
    if not run.record.command:
        return ""
    program, *arguments = run.record.command
    programs = {"cifar-resnets": ["cifar-resnets"], "__main__.py": ["python", "-m", "cifar_resnets"]}
    return shlex.join([*programs.get(os.path.basename(program), [program]), *arguments])

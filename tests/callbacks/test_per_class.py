from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console

from cifar_resnets.callbacks.per_class import PerClassReport, class_table
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.evaluation.metrics import Evaluation


def shown(names: list[str], confusion: list[list[int]], tta_correct: int | None = None) -> list[str]:
    report = {"stage": "test", **Evaluation(0.5, torch.tensor(confusion), None, tta_correct).to_dict(names)}
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(class_table(report))
    return console.export_text().splitlines()


def test_table_shows_each_class_and_all() -> None:
    lines = shown(["cat", "dog"], [[8, 2], [0, 10]])
    assert any("cat" in line and " 80.00 %" in line and "49.02 % - 94.33 %" in line for line in lines)
    assert any("all" in line and "90.00 %" in line and " 18 " in line and " 20 " in line for line in lines)


def test_test_time_augmentation_is_a_line_of_its_own() -> None:
    lines = shown(["cat", "dog"], [[8, 2], [0, 10]], 19)
    assert any("all, by model.tta" in line and "95.00 %" in line and " 19 " in line for line in lines)


def test_balanced_accuracy_and_macro_f1_are_below_all() -> None:
    *_, balanced, f1, _ = shown(["cat", "dog"], [[8, 2], [0, 5]])
    assert "balanced accuracy" in balanced and " 90.00 % " in balanced
    assert "macro F1" in f1 and " 86.11 % " in f1  # of 16 / 18 and 10 / 12


def test_a_class_without_images_has_a_dash() -> None:
    lines = shown(["cat", "dog"], [[8, 2], [0, 0]])
    assert any("dog" in line and "│        - │" in line for line in lines)


def test_names_are_text_and_long_ones_fit() -> None:
    lines = shown(["[red]cat[/red]", "dog" * 40], [[1, 0], [0, 1]])
    assert any("[red]cat[/red]" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_names_do_not_steer_the_terminal() -> None:
    lines = shown(["\x1b[31mcat\u2028\x85", "dog"], [[1, 0], [0, 1]])
    assert any(r"\x1b[31mcat\u2028\x85" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_part_of_the_images_is_said_to_be_one() -> None:
    report = {"stage": "test", **Evaluation(0.5, torch.tensor([[8, 2], [0, 10]]), None).to_dict(["cat", "dog"])}
    assert class_table({**report, "complete": True}).title == "Test images"
    assert class_table({**report, "complete": False}).title == "Test images, only 20 of them"


def test_a_link_in_the_place_of_the_file_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("precious")
    (tmp_path / "val.json").symlink_to(victim)
    figures = {"val": Evaluation(0.5, torch.tensor([[8, 2], [0, 10]]), None)}
    module = ImageClassifier(["cat", "dog"], network_args={"depths": [1], "widths": [16]})
    module.evaluations.update(figures)
    trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"), is_global_zero=True, testing=False)
    trainer.ckpt_path, trainer.val_dataloaders, trainer.num_val_batches = "x.ckpt", [], []
    PerClassReport(tmp_path).on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert victim.read_text() == "precious"
    assert json.loads((tmp_path / "val.json").read_text())["correct"] == 18

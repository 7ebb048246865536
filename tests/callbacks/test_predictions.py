from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import torch

from cifar_resnets.callbacks.predictions import PredictionWriter, write_csv
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.loaders import EvalLoader
from cifar_resnets.results.csv_files import read_predictions


def test_csv_holds_the_most_probable_class(tmp_path: Path) -> None:
    write_csv(tmp_path / "p.csv", ["a,b", "c"], [[0.25, 0.75], [0.9, 0.1]])
    rows = list(csv.DictReader((tmp_path / "p.csv").open(newline="")))
    assert [row["predicted"] for row in rows] == ["c", "a,b"]
    assert float(rows[1]["p(a,b)"]) == 0.9


def test_labels_are_a_column_if_they_are_known(tmp_path: Path) -> None:
    write_csv(tmp_path / "p.csv", ["a,b", "c"], [[0.25, 0.75], [0.9, 0.1]], [0, 1])
    assert list(csv.reader((tmp_path / "p.csv").open(newline=""))) == [
        ["index", "label", "predicted", "p(a,b)", "p(c)"],
        ["0", "a,b", "c", "0.250000", "0.750000"],
        ["1", "c", "a,b", "0.900000", "0.100000"],
    ]


def test_ranks_are_put_back_in_order(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    # three ranks over ten images; each image's probability is its number
    images, labels = torch.zeros(10, 2, 2, 3, dtype=torch.uint8), torch.arange(10)
    one = {"batch_size": 4, "mean": [0.5] * 3, "std": [1.0] * 3, "world_size": 3}
    files = [f"test/a/{n}.png" for n in range(10)]
    loaders = [EvalLoader(images, labels, files, rank=rank, **one) for rank in range(3)]
    ranks = [[torch.stack([n / 10, 1 - n / 10], 1) for _, n in loader] for loader in loaders]
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda into, mine: into.__setitem__(slice(None), ranks))
    trainer = SimpleNamespace(world_size=3, is_global_zero=True, predict_dataloaders=loaders[0])
    module = ImageClassifier(["a", "b"], network_args={"depths": [1], "widths": [16]})
    PredictionWriter(tmp_path).write_on_epoch_end(trainer, module, ranks[0], [])  # type: ignore[arg-type]
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(newline="")))
    assert [float(row["p(a)"]) for row in rows] == [n / 10 for n in range(10)]
    assert [row["path"] for row in rows] == files


def test_names_of_files_come_back_whatever_is_in_them(tmp_path: Path) -> None:
    names = ["a b.png", 'c"d,e.png', "two\nlines\r.png", "猫\u2028.png", "'\\xff.png", "never reached.png"]
    write_csv(tmp_path / "p.csv", ["a", "b"], [[0.25, 0.75]] * 5, [0] * 5, names)
    rows = list(csv.DictReader((tmp_path / "p.csv").open(newline="", encoding="utf-8")))
    assert list(rows[0]) == ["index", "path", "label", "predicted", "p(a)", "p(b)"]
    assert [row["path"] for row in rows] == names[:5]
    assert read_predictions(tmp_path / "p.csv", []).paths == tuple(names[:5])


def test_a_link_in_the_place_of_the_file_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("precious")
    (tmp_path / "p.csv").symlink_to(victim)
    write_csv(tmp_path / "p.csv", ["a"], [[1.0]])
    assert victim.read_text() == "precious"
    assert (tmp_path / "p.csv").read_text() == "index,predicted,p(a)\n0,a,1.000000\n"

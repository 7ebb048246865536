from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_runs import ANIMALS, write_predictions

from cifar_resnets.results import csv_files
from cifar_resnets.results.csv_files import read_history, read_predictions, read_rows, read_search


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_metrics_as_lightning_writes_them(tmp_path: Path) -> None:
    text = "epoch,step,train/loss,val/loss,test/acc\n0,9,,2.0,\n0,9,1.5,,\n1,19,,1.0,\n1,19,0.5,,\n2,20,,,0.9\n"
    notes: list[str] = []
    history = read_history(write(tmp_path / "metrics.csv", text), notes)
    assert notes == []
    assert (history["val/loss"].x.tolist(), history["val/loss"].y.tolist()) == ([1, 2], [2, 1])
    assert history["train/loss"].y.tolist() == [1.5, 0.5]
    assert "epoch" not in history


def test_validation_within_an_epoch_lies_between_epochs(tmp_path: Path) -> None:
    text = "epoch,step,train/loss,val/loss\n0,4,,3.0\n0,9,,2.0\n0,9,1.5,\n1,14,,1.5\n1,19,,nan\n1,19,0.5,\n"
    curve = read_history(write(tmp_path / "metrics.csv", text), [])["val/loss"]
    assert curve.x.tolist() == [0.5, 1, 1.5, 2]
    assert np.isnan(curve.y[-1])


def test_without_steps_epochs_count(tmp_path: Path) -> None:
    assert read_history(write(tmp_path / "m.csv", "epoch,val/acc\n0,0.1\n1,0.2\n"), [])["val/acc"].x.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("epoch,val/acc\n0,0.5\n1,0.62", "cut off"),  # perhaps 0.625
        ("epoch,val/acc\n0,0.5\n1", "cut off"),
        ("epoch,val/acc\n0,0.5\n1\n", "damaged"),
        ("epoch,val/acc\n0,0.5\n1,x\n", "something else than numbers"),
    ],
)
def test_a_cut_row_is_left_out_and_noted(tmp_path: Path, text: str, note: str) -> None:
    notes: list[str] = []
    assert read_history(write(tmp_path / "metrics.csv", text), notes)["val/acc"].y.tolist() == [0.5]
    assert len(notes) == 1
    assert note in notes[0]
    assert notes[0].startswith("metrics.csv: ")


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        read_rows(write(tmp_path / "m.csv", text), [])


def test_predictions_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ['"cat", the', "p(dog)", "new\nline"]
    labels, probabilities = rng.integers(0, 3, 20), rng.dirichlet(np.ones(3), 20)
    write_predictions(tmp_path, names, labels, probabilities)
    found = read_predictions(tmp_path / "test_predictions.csv", [])
    assert found.class_names == tuple(names)
    assert (found.labels == labels).all()
    assert (found.predicted == probabilities.argmax(axis=1)).all()
    assert np.abs(found.probabilities - probabilities).max() < 1e-6
    assert found.label_names == [names[label] for label in labels]
    assert found.paths is None
    paths = [f'test/{label}, "a\nb".png' for label in labels]
    write_predictions(tmp_path, names, labels, probabilities, paths=paths)
    again = read_predictions(tmp_path / "test_predictions.csv", [])
    assert again.paths == tuple(paths)
    assert (again.predicted == found.predicted).all()


def test_predictions_as_the_callback_writes_them(tmp_path: Path) -> None:
    from cifar_resnets.callbacks.predictions import write_csv

    probabilities = [[0.2, 0.7, 0.1], [0.9, 0.05, 0.05]]
    write_csv(tmp_path / "test_predictions.csv", ANIMALS, probabilities, labels=[2, 0])
    found = read_predictions(tmp_path / "test_predictions.csv", [])
    assert (found.labels.tolist(), found.predicted.tolist()) == ([2, 0], [1, 0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("index,label,predicted,p(a)\n", "no predictions"),
        ("index,predicted,p(a)\n0,a,1\n", "other columns"),
        ("index,label,predicted,p(a)\n0,b,a,1\n", "for b"),
        ("index,label,predicted,p(a)\n0,a,a,one\n", "one"),
    ],
)
def test_what_is_no_file_of_predictions(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_predictions(write(tmp_path / "p.csv", text), [])


def test_search(tmp_path: Path) -> None:
    from cifar_resnets.callbacks.lr_finder import write_csv
    from cifar_resnets.training.lr_search import Search

    search = Search([0.1, 0.2, 0.4], [[3.0, 2.0, 1.0], [3.0, 2.5]])
    write_csv(tmp_path / "lr_finder.csv", search)
    runs = read_search(tmp_path / "lr_finder.csv", [])
    assert [losses.y.tolist() for losses, _ in runs] == [[3.0, 2.0, 1.0], [3.0, 2.5]]
    assert runs[1][0].x.tolist() == [0.1, 0.2]
    with pytest.raises(ValueError, match="not above 0"):
        read_search(write(tmp_path / "s.csv", "run,step,lr,loss,smoothed_loss\n0,0,0,1,1\n"), [])


def test_a_last_epoch_that_ended_early_is_a_part_of_one(tmp_path: Path) -> None:
    text = "epoch,step,train/loss,val/acc\n0,3,1.0,0.1\n1,6,0.9,0.2\n"
    assert read_history(write(tmp_path / "m.csv", text), [])["val/acc"].x.tolist() == [1, 1.75]


@pytest.mark.parametrize("row", ["-1,-1,2,0.7", "0,-1,2,0.7", "nan,nan,2,0.7", "inf,inf,2,0.7"])
def test_epochs_that_are_none(tmp_path: Path, row: str) -> None:
    text = f"epoch,step,train/loss,val/acc\n{row}\n1,7,2,0.5\n"
    curve = read_history(write(tmp_path / "m.csv", text), [])["val/acc"]
    assert np.isfinite(curve.x).all()
    assert (curve.x[-1], curve.y[-1]) == (2, 0.5)


def test_a_row_that_is_missing_would_shift_the_others(tmp_path: Path) -> None:
    text = "index,label,predicted,p(a),p(b)\n0,a,a,1,0\n2,a,b,0,1\n"
    with pytest.raises(ValueError, match="missing"):
        read_predictions(write(tmp_path / "p.csv", text), [])


def test_an_infinite_rate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"):
        read_search(write(tmp_path / "s.csv", "run,step,lr,loss,smoothed_loss\n0,0,inf,1,1\n"), [])


def test_tables_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "MOST_CELLS", 10)
    for text in ("a,b\n" + "\n" * 10, "a,b\n" + ",\n" * 5):
        with pytest.raises(ValueError, match="more than 10 cells"):
            read_rows(write(tmp_path / "metrics.csv", text), [])


def test_too_many_classes_are_refused(tmp_path: Path) -> None:
    text = "index,label,predicted," + ",".join(f"p({k})" for k in range(5001)) + "\n0,0,0" + ",0" * 5001 + "\n"
    with pytest.raises(ValueError, match="more than 5,000 classes"):
        read_predictions(write(tmp_path / "p.csv", text), [])


def test_too_many_searches_are_refused_at_once(tmp_path: Path) -> None:
    text = "run,lr,loss,smoothed_loss\n" + "".join(f"{k},0.1,1,1\n" for k in range(50_000))
    with pytest.raises(ValueError, match="more than 1,000 runs"):
        read_search(write(tmp_path / "lr_finder.csv", text), [])

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from report_runs import ANIMALS, write_run

from cifar_resnets.errors import ConfigurationError, DataError
from cifar_resnets.results.run_folder import KNOWN, labels_of, natural_order, read_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "logs" / "version_0")


def test_everything_that_is_there_is_read(folder: Path) -> None:
    run = read_run(folder, "a")
    assert run.notes == []
    assert run.setting("model.lr") == 0.1
    assert run.setting("model.lr.x") is run.setting("none") is None
    assert run.record.seed == "0"
    assert run.record.versions == {"cifar_resnets": "0.1.0", "python": "3.11.7", "torch": "2.15.0"}
    assert run.evaluation is not None
    assert [row.name for row in run.evaluation.classes] == list(ANIMALS)
    assert run.predictions is not None
    assert run.evaluation.total.correct == int((run.predictions.labels == run.predictions.predicted).sum())
    assert run.mistakes is not None
    assert run.mistakes.heat is None
    assert run.gallery is not None
    assert run.gallery.heat is not None
    assert run.gallery.source == ("layer3", "gradcam")
    assert {"val/loss", "train/acc", "lr"} <= run.history.keys()
    assert (len(run.search), len(run.layers)) == (1, 4)


@pytest.mark.parametrize("name", KNOWN[:6])
def test_each_file_alone_makes_a_run_unless_it_is_missing(folder: Path, tmp_path: Path, name: str) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / name, alone)
    assert read_run(alone, "a").notes == []
    (folder / name).unlink()
    assert read_run(folder, "a").notes == []


FILES = [*KNOWN[:6], "layers.csv", "mistakes.npz", "gallery.npz"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00garbage", b"[1, 2]", b'"\n', "half"])
def test_damage_is_a_note(folder: Path, name: str, damage: bytes | str) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if isinstance(damage, str) else damage)
    run = read_run(folder, "a")
    if name == "config.yaml" and damage == "half":
        assert run.config_text  # still a mapping
    elif damage == b"[1, 2]" and name == "layers.csv":
        assert run.layers == []  # a header alone
    else:
        assert run.notes
        assert all(note.startswith(name) and "\n" not in note for note in run.notes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.json", {"classes": []}),
        ("test.json", {"checkpoint": "", "loss": None, "top5": None, "classes": [{"name": "a"}]}),
        ("run.json", {"git": []}),
        ("run.json", {"git": [1]}),
        ("run.json", {"packages": None}),
        ("run.json", {"command": 7}),
        ("run.json", {"command": "cifar-resnets fit"}),
        ("run.json", {"git": {"changed": "M a.py"}}),
    ],
)
def test_json_of_another_shape(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))
    notes = read_run(folder, "a").notes
    assert notes == [] if content == {"git": []} else len(notes) == 1


def test_arrays_of_another_shape(folder: Path) -> None:
    arrays = dict(np.load(folder / "gallery.npz"))
    for name, value in (("images", arrays["images"].astype(float)), ("heat_true", arrays["heat_true"][:, 1:])):
        np.savez(folder / "gallery.npz", **{**arrays, name: value})
        assert len(read_run(folder, "a").notes) == 1
    np.savez(folder / "gallery.npz", **{**arrays, "label": np.array([None, {}], dtype=object)})
    assert "pickle" in read_run(folder, "a").notes[0]  # which could run code


def test_a_gallery_without_heat(folder: Path) -> None:
    arrays = dict(np.load(folder / "gallery.npz"))
    none = np.zeros((0, 8, 8), np.float16)
    np.savez(folder / "gallery.npz", **{**arrays, "heat_predicted": none, "heat_true": none})
    run = read_run(folder, "a")
    assert run.notes == []
    assert run.gallery is not None
    assert (len(run.gallery.images), run.gallery.heat) == (4, None)


def test_a_validation_without_a_test(folder: Path) -> None:
    for name in ("json", "_predictions.csv"):
        dot = "." if name == "json" else ""
        (folder / f"test{dot}{name}").rename(folder / f"val{dot}{name}")
    run = read_run(folder, "a")
    assert run.stage == "val"
    assert run.evaluation is not None
    assert run.predictions is not None
    assert run.mistakes is None  # they are of a test


def test_what_is_no_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no folder .*nowhere"):
        read_run(tmp_path / "nowhere", "a")
    with pytest.raises(DataError, match="did you mean .*version_0"):
        read_run(folder.parent, "a")
    with pytest.raises(DataError, match="config.yaml"):
        read_run(tmp_path, "a")


def test_a_run_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text('{"accuracy": 0.')
    with pytest.raises(DataError, match=r"nothing in .* test\.json cannot be read"):
        read_run(tmp_path, "a")


def test_labels_are_short_and_different(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/x/version_0", "b/x/version_0", "b/x/version_1", "other")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert labels_of(folders[:1]) == ["x/version_0"]
    assert labels_of(folders[:2]) == ["a/x/version_0", "b/x/version_0"]
    assert labels_of(folders[1:3]) == ["x/version_0", "x/version_1"]
    assert labels_of(folders[3:]) == ["other"]
    with pytest.raises(ConfigurationError, match="twice"):
        labels_of([folders[0], folders[1] / "../../../a/x/version_0"])


def test_a_loop_of_links_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert labels_of([tmp_path / "loop"]) == ["loop"]
    with pytest.raises(ConfigurationError, match="no folder"):
        read_run(tmp_path / "loop", "a")


def test_a_folder_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(DataError, match=r"version_0 cannot be read: Permission denied"):
        read_run(folder, "a")


def test_the_newest_run_is_meant(folder: Path) -> None:
    folder.rename(folder.with_name("version_9"))
    write_run(folder.with_name("version_10"))
    with pytest.raises(DataError, match="did you mean .*version_10"):
        read_run(folder.parent, "a")


def test_numbers_are_sorted_as_numbers() -> None:
    names = ["version_10", "a_9b", "version_9", "", "a_10", "7"]
    assert sorted(names, key=natural_order) == ["", "7", "a_9b", "a_10", "version_9", "version_10"]


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / "lr_finder.csv").unlink()
    os.mkfifo(folder / "lr_finder.csv")
    assert read_run(folder, "a").notes == ["lr_finder.csv cannot be read: it is no file"]


def test_figures_that_cannot_be(folder: Path) -> None:
    figures = json.loads((folder / "test.json").read_text())
    for change in ({"correct": float("inf")}, {"accuracy": 7}, {"interval": [float("nan")] * 2}):
        (folder / "test.json").write_text(json.dumps({**figures, **change}))
        assert [note[:24] for note in read_run(folder, "a").notes] == ["test.json cannot be read"]


def test_a_configuration_that_holds_itself(folder: Path) -> None:
    (folder / "config.yaml").write_text("model: &a\n  b: *a\n")
    assert read_run(folder, "a").notes == ["config.yaml cannot be read: it contains itself"]


@pytest.mark.parametrize("name", ["gallery.npz", "mistakes.npz"])
def test_arrays_of_another_type(folder: Path, name: str) -> None:
    arrays = dict(np.load(folder / name))
    pairs = np.stack([arrays["label"]] * 2, axis=1)
    for change in (
        {"label": pairs},
        {"index": arrays["index"] + 0.5},
        {"p_label": arrays["p_label"].astype(str)},
        {"images": arrays["images"][:, :0]},
    ):
        np.savez(folder / name, **{**arrays, **change})
        assert [note[: len(name)] for note in read_run(folder, "a").notes] == [name]


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 99)])
def test_an_archive_that_asks_for_a_cipher_or_an_unknown_method(folder: Path, offset: int, value: int) -> None:
    content = bytearray((folder / "mistakes.npz").read_bytes())
    local, central = content.find(b"PK\x03\x04"), content.find(b"PK\x01\x02")
    content[local + offset - 2] = content[central + offset] = value
    (folder / "mistakes.npz").write_bytes(content)
    assert len(read_run(folder, "a").notes) == 1


def test_an_array_larger_than_any_memory(folder: Path) -> None:
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**13, 32, 32, 3)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(folder / "mistakes.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "mistakes.npz", "w") as archive:
        for name, content in {**members, "images.npy": header.getvalue()}.items():
            archive.writestr(name, content)
    assert [note[:27] for note in read_run(folder, "a").notes] == ["mistakes.npz cannot be read"]


def test_an_evaluation_of_a_part_of_the_images_is_noted(folder: Path) -> None:
    result = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps({**result, "complete": False}))
    [note] = read_run(folder, "a").notes
    assert note == f"test.json is about {result['images']:,} images, not all, by trainer.limit_test_batches"

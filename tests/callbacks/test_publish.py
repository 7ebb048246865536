"""When figures are made, and where they go: read back with Pillow and TensorBoard's EventAccumulator."""

from __future__ import annotations

import gc
import io
import os
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
from finder_runs import digits, foreign, small, trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnets.callbacks.publish import (
    garbage_collected,
    has_pictures,
    is_due,
    output_dir,
    publish,
    write_arrays,
)
from cifar_resnets.figures.gallery import Gallery, draw_gallery, gallery_height


class Tracker(WandbLogger):
    """Notes what it is to show; the package is not needed."""

    def __init__(self) -> None:
        self.shown = []

    def log_image(self, key, images, step=None, **kwargs) -> None:
        self.shown.append((key, [image.size for image in images], step))


class Database(MLFlowLogger):
    """The same, for MLflow."""

    run_id = "run"

    def __init__(self) -> None:
        self.shown = []
        self.client = SimpleNamespace(log_image=lambda *args, **kwargs: self.shown.append((*args, kwargs)))

    experiment = property(lambda self: self.client)


def test_trackers_show_the_pictures_too() -> None:
    loggers = [Tracker(), Database()]
    run, image = SimpleNamespace(loggers=loggers, global_step=9), Image.new("RGB", (30, 20))
    assert has_pictures(run)
    publish(run, None, "val_confusion/matrix", image)
    publish(run, None, "gallery", image, step=4, height=50)
    assert loggers[0].shown == [("val_confusion/matrix", [(30, 20)], 9), ("gallery", [(30, 50)], 4)]
    assert [(run, tag) for run, _, tag in loggers[1].shown] == [
        ("run", {"key": "val_confusion/matrix", "step": 9}),
        ("run", {"key": "gallery", "step": 4}),
    ]
    assert not has_pictures(SimpleNamespace(loggers=[CSVLogger("a")]))


pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


class Due(Callback):
    """Notes after which validations, by their epoch counted from 1, figures are due."""

    def __init__(self, every: int | None) -> None:
        self.every, self.epochs, self.sanity = every, [], []

    def on_validation_end(self, trainer, pl_module) -> None:
        due = is_due(trainer, self.every)
        if trainer.sanity_checking:
            self.sanity.append(due)
        elif due:
            self.epochs.append(trainer.current_epoch + 1)


def due(every: int | None, data=None, **changes) -> list[int]:
    """In fits of one batch an epoch."""
    note = Due(every)
    quick = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 1}
    trainer(note, **quick | changes).fit(small(), data or digits())
    assert note.sanity == [False]
    return note.epochs


@pytest.mark.parametrize(
    ("every", "changes", "expected"),
    [
        (None, {"max_epochs": 3}, [1, 2, 3]),
        (None, {"max_epochs": 20}, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (None, {"max_epochs": 19}, [2, 4, 6, 8, 10, 12, 14, 16, 18, 19]),
        (None, {"max_epochs": 25}, [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]),
        (1, {"max_epochs": 4}, [1, 2, 3, 4]),
        (2, {"max_epochs": 5}, [2, 4, 5]),
        (50, {"max_epochs": 5}, [5]),
        # not each epoch is validated
        (1, {"max_epochs": 7, "check_val_every_n_epoch": 3}, [3, 6]),
        (2, {"max_epochs": 10, "check_val_every_n_epoch": 3}, [3, 6, 9]),
        (4, {"max_epochs": 12, "check_val_every_n_epoch": 3}, [6, 9, 12]),
        (50, {"max_epochs": 8, "check_val_every_n_epoch": 3}, [6]),
        # every so many batches, over the ends of epochs
        (
            None,
            {"max_epochs": 30, "check_val_every_n_epoch": None, "val_check_interval": 4},
            [4, 8, 12, 16, 20, 24, 28],
        ),
        (10, {"max_epochs": 30, "check_val_every_n_epoch": None, "val_check_interval": 4}, [12, 20, 28]),
        # a run of steps: the last epoch is not complete
        (3, {"max_epochs": None, "max_steps": 7}, [3, 6, 7]),
        (2, {"max_epochs": None, "max_steps": 5, "limit_train_batches": 2}, [2, 3]),
        # several validations an epoch
        (2, {"max_epochs": 3, "limit_train_batches": 2, "val_check_interval": 0.5}, [2, 2, 3, 3]),
    ],
)
def test_epochs_after_which_figures_are_due(every, changes, expected):
    assert due(every, **changes) == expected


def test_data_of_others():
    loaders = pl.LightningDataModule.from_datasets(foreign().dataset, foreign().dataset, batch_size=40)
    assert due(2, loaders, max_epochs=3) == [2, 3]


def test_always_after_validate():
    note = Due(7)
    trainer(note, limit_val_batches=1).validate(small(), digits(), verbose=False)
    assert note.epochs == [1] and note.sanity == []


# Where they go.


def stub(*loggers, step: int = 7) -> SimpleNamespace:
    return SimpleNamespace(loggers=list(loggers), global_step=step)


def striped(width: int = 6, height: int = 4) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def events(folder, tag: str) -> list[tuple[int, np.ndarray]]:
    found = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload().Images(tag)
    return [(image.step, np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))) for image in found]


def test_an_image_is_in_the_event_files_and_in_a_file(tmp_path):
    loggers = [TensorBoardLogger(tmp_path, name=name, version="") for name in ("a", "b")]
    image = striped()
    publish(stub(*loggers, CSVLogger(tmp_path)), tmp_path / "run", "val_confusion/matrix", image)
    publish(stub(*loggers), tmp_path / "run", "val_confusion/matrix", image.transpose(Image.Transpose.ROTATE_180), 9)
    for logger in loggers:
        logger.experiment.flush()
        (step, first), (later, second) = events(logger.log_dir, "val_confusion/matrix")
        assert (step, later) == (7, 9)
        np.testing.assert_array_equal(first, image)
        np.testing.assert_array_equal(second, np.asarray(image)[::-1, ::-1])
    [path] = (tmp_path / "run").rglob("*.png")
    assert path.relative_to(tmp_path / "run").as_posix() == "figures/val_confusion_matrix.png"
    np.testing.assert_array_equal(Image.open(path), second)


@pytest.mark.parametrize("num", [0, 1, 3, 16])
def test_a_gallery_has_one_size_in_tensorboard_and_no_empty_rows_in_its_file(tmp_path, num):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    images, numbers, p = np.zeros((num, 8, 8, 3), np.uint8), np.arange(num) % 2, np.full(num, 0.5, np.float32)
    picture = draw_gallery(Gallery(images, numbers, numbers, 1 - numbers, p, p), ["x", "y"])
    publish(stub(logger), tmp_path, "a/b", picture, height=gallery_height(16))
    logger.experiment.flush()
    [(step, shown)] = events(tmp_path, "a/b")
    file = np.asarray(Image.open(tmp_path / "figures" / "a_b.png"))
    assert (step, shown.shape, file.shape) == (7, (66 + 16 * 104, 700, 3), (66 + num * 104, 700, 3))
    assert np.array_equal(shown[: len(file)], file) and (shown[len(file) :] == 255).all()


def test_without_a_folder_there_is_no_file(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    publish(stub(logger), None, "a/b", striped())
    logger.experiment.flush()
    assert len(events(tmp_path, "a/b")) == 1 and list(tmp_path.rglob("*.png")) == []


@pytest.mark.filterwarnings("error")
def test_a_figure_is_drawn_without_pyplot(tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="red")
    figure.text(0.5, 0.5, "猫")
    publish(stub(), tmp_path, "a", figure)
    with Image.open(tmp_path / "figures" / "a.png") as image:
        assert (image.size, image.mode, image.getpixel((0, 0))) == ((100, 50), "RGB", (255, 0, 0))
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_figures_are_freed_at_once_and_the_collector_goes_on() -> None:
    gc.collect()
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with garbage_collected():
                figure = Figure()
                figure.text(0.5, 0.5, "text")
                publish(stub(), None, "a", figure)
                freed = weakref.ref(figure)
                del figure
                assert freed() is not None  # it refers to itself
            assert freed() is None
            assert gc.isenabled() == enabled
        finally:
            gc.enable()


def test_folder(tmp_path):
    def at(run_dir=None, **changes):
        return output_dir(trainer(**changes), run_dir)

    tensorboard, csv = TensorBoardLogger(tmp_path, "t", "v"), CSVLogger(tmp_path, "c", "v")
    assert at() is None
    assert at(tmp_path / "run") == at(tmp_path / "run", logger=csv) == tmp_path / "run"
    assert at(logger=csv) == tmp_path / "c" / "v"
    assert at(logger=[tensorboard, csv]) == tmp_path / "t" / "v"


def test_arrays_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "some.npz"
    write_arrays(path, images=np.arange(6).reshape(2, 3), layer=np.array("layer3"))
    with np.load(path, allow_pickle=False) as file:
        assert file["images"].tolist() == [[0, 1, 2], [3, 4, 5]] and str(file["layer"]) == "layer3"
    before = path.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="no space left"):
        write_arrays(path, images=np.zeros(3))
    assert path.read_bytes() == before and [each.name for each in path.parent.iterdir()] == ["some.npz"]


def test_a_file_can_be_read_by_whom_the_umask_allows(tmp_path: Path):
    write_arrays(tmp_path / "a.npz", x=np.zeros(1))
    (tmp_path / "b").write_text("")
    assert os.stat(tmp_path / "a.npz").st_mode == os.stat(tmp_path / "b").st_mode

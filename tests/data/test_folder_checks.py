"""The memory that images take, said before it is taken; tests/data/test_image_folder.py has the other checks."""

import logging
from types import SimpleNamespace

import pytest
from image_samples import source, write_samples
from lightning.pytorch.trainer.states import TrainerFn

from cifar_resnets.data import folder_checks
from cifar_resnets.data.folder_checks import check_memory
from cifar_resnets.errors import ConfigurationError


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are free."""
    return lambda number: monkeypatch.setattr(folder_checks, "available_bytes", lambda: number)


def test_ten_thousand_photographs_of_512_pixels(free):
    free(15e9)
    with pytest.raises(ConfigurationError) as caught:
        check_memory({("train", 512): 10_000})
    assert str(caught.value) == (
        "data.image_size: 10,000 images of 512x512 pixels take 7.9 GB, 15.7 GB while they are loaded, 15.0 GB are free"
        "; give a smaller size"
    )
    free(16e9)
    said = "10,000 images of 512x512 pixels take 7.9 GB, 15.7 GB while they are loaded"
    assert check_memory({("train", 512): 10_000}) == said


def test_each_process_has_its_images(free):
    free(100e9)
    text = check_memory({("train", 224): 10_000, ("test", 224): 30_000}, num_ranks=2)
    assert text == "30,000 images of 224x224 pixels take 4.5 GB in each of 2 processes, 18.1 GB while they are loaded"


def test_small_images_are_not_worth_a_line(free):
    free(1e9)
    assert check_memory({("train", 32): 40_000}) is None


@pytest.mark.parametrize(("resize", "size", "needed"), [("squash", 8, 192), ("crop", 10, 300)])
def test_a_source_asks_before_it_decodes(tmp_path, free, caplog, resize, size, needed):
    caplog.set_level(logging.INFO, "cifar_resnets.data")
    root = write_samples(tmp_path / "root")
    free(6 * needed * 2 - 1)
    with pytest.raises(ConfigurationError, match=rf"^data\.image_size: 6 images of {size}x{size} pixels take 0\.0 GB"):
        source(root, resize=resize).prepare_data()
    assert not caplog.messages
    data = source(root, resize=resize)
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn("fit")), num_devices=2)
    free(6 * needed * 2 * 2 - 1)
    with pytest.raises(ConfigurationError, match="in each of 2 processes"):
        data.prepare_data()

"""A checkpoint that is loaded and used from Python."""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import noise, save
from PIL import Image
from support import TINY_NETWORK

from cifar_resnets import load
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.errors import CheckpointError, ConfigurationError, DataError
from cifar_resnets.inference import images as inputs
from cifar_resnets.inference.classifier import TrainedClassifier, size_of_images
from cifar_resnets.runs.checkpoint_file import read_checkpoint_file, write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = {"class_path": "cifar_resnets.data.image_folder.ImageFolder"}


@pytest.fixture
def classifier(checkpoint: Path) -> TrainedClassifier:
    return load(checkpoint, "cpu")


def changed(checkpoint: Path, path: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other values of dotted keys, as `data__init_args__mean`."""
    content = copy.deepcopy(read_checkpoint_file(checkpoint))
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = content
        for name in parents:
            place = place[name]
        place[last] = value
    write_checkpoint(content, path)
    return path


def reference(checkpoint: Path, pixels: np.ndarray) -> np.ndarray:
    """The probabilities, written down once more with Lightning's module and NumPy."""
    module = ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    data = read_checkpoint_file(checkpoint)["data"]["init_args"]
    images = (pixels / 255 - np.array(data["mean"])) / np.array(data["std"])
    with torch.inference_mode():
        logits = module(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32))
    return logits.softmax(dim=1).numpy()


def test_paths_images_and_arrays_are_prepared_inside(
    checkpoint: Path, classifier: TrainedClassifier, tmp_path: Path
) -> None:
    pixels = noise(40, 30, 3)
    save(tmp_path / "x.png", pixels)
    small = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR))
    expected = reference(checkpoint, np.stack([small] * 4))
    image = Image.open(tmp_path / "x.png")
    found = classifier.predict([tmp_path / "x.png", str(tmp_path / "x.png"), image, pixels])
    np.testing.assert_allclose([list(each.probabilities.values()) for each in found], expected, atol=1e-5)
    best = found[0]
    assert (best.name, best.probability) == max(best.probabilities.items(), key=lambda item: item[1]) == best.top(1)[0]
    assert list(best.probabilities) == ["blue", "green", "red"] and len(best.top(9)) == 3
    assert best.margin == best.top(2)[0][1] - best.top(2)[1][1]


def test_grey_transparent_and_batches_of_arrays(classifier: TrainedClassifier) -> None:
    grey, rgba = noise(16, 16), noise(16, 16, 4)
    pairs = [(grey, np.stack([grey] * 3, axis=2)), (rgba, np.asarray(inputs.to_pixels(Image.fromarray(rgba), 16)))]
    for array, rgb in pairs:
        assert classifier.predict([array]) == classifier.predict([rgb])
    batch = noise(5, 16, 16, 3)
    assert classifier.predict(batch) == classifier.predict(list(batch))
    assert classifier.predict([]) == []


def test_images_of_the_caller_are_left_as_they_were(classifier: TrainedClassifier, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", noise(20, 30, 3), exif=exif)
    image = Image.open(tmp_path / "turned.jpg")
    found = classifier.predict([image, tmp_path / "turned.jpg"])
    assert image.size == (30, 20) and image.getexif()[0x0112] == 6
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("cat.png", "a list of images"),
        (Path("cat.png"), "a list of images"),
        (noise(8, 8, 3), "a list of images"),
        (Image.new("RGB", (8, 8)), "a list of images"),
        ([np.zeros((8, 8, 3))], r"ndarray \(8, 8, 3\) of float64 is not allowed"),
        ([noise(8, 8, 2)], r"ndarray \(8, 8, 2\) of uint8 is not allowed"),
        ([torch.zeros(3, 8, 8)], r"Tensor \(3, 8, 8\) of torch.float32 is not allowed"),
        ([noise(0, 8, 3)], r"\(0, 8, 3\)"),
        ([None], "a NoneType is not allowed, give a path, "),
    ],
)
def test_what_is_no_list_of_images_is_refused(images: Any, message: str, classifier: TrainedClassifier) -> None:
    with pytest.raises(ConfigurationError, match=message):
        classifier.predict(images)


def test_a_file_that_cannot_be_read_is_named(classifier: TrainedClassifier, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png cannot be read: the file is empty$"):
        classifier.predict([tmp_path / "empty.png"])


def test_several_threads_may_use_one(classifier: TrainedClassifier, tmp_path: Path) -> None:
    save(tmp_path / "x.png", noise(200, 200, 3))
    arrays = [noise(16, 16, 3) for _ in range(8)]
    expected = [classifier.predict([array, tmp_path / "x.png"]) for array in arrays]
    shared = Image.open(tmp_path / "x.png")  # read when it is used first
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda array: classifier.predict([array, shared]), arrays)) == expected


def test_loading_changes_no_random_numbers_and_predicting_writes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before, weights = torch.get_rng_state(), None
    classifier = load(checkpoint, "cpu")
    weights = copy.deepcopy(classifier.network.state_dict())
    classifier.predict([noise(9, 9, 3)], tta=True)
    assert torch.equal(torch.get_rng_state(), before) and not list(tmp_path.iterdir())
    assert not classifier.network.training
    assert all(torch.equal(value, weights[name]) for name, value in classifier.network.state_dict().items())


def test_views_are_those_of_the_training(checkpoint: Path, classifier: TrainedClassifier, tmp_path: Path) -> None:
    array = noise(16, 16, 3)
    assert classifier.tta == ["mirror", "shift1"]
    mirrors = load(changed(checkpoint, tmp_path / "y.ckpt", hyper_parameters__tta=["mirror"]), "cpu")
    one, other = mirrors.predict([array, array[:, ::-1]], tta=True)
    assert one.probability == pytest.approx(other.probability, abs=1e-5)
    one, other = mirrors.predict([array, array[:, ::-1]])
    assert one.probability != pytest.approx(other.probability, abs=1e-5)
    without = load(changed(checkpoint, tmp_path / "x.ckpt", hyper_parameters__tta=[]), "cpu")
    with pytest.raises(ConfigurationError, match=r"^tta: the network was trained without model\.tta"):
        without.predict([array], tta=True)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        ({"class_path": "cifar_resnets.data.cifar.CIFAR10", "init_args": {}}, 32),
        ({"class_path": "cifar_resnets.data.digits.Digits", "init_args": {}}, 32),
        (FOLDER | {"init_args": {"image_size": 64}}, 64),
        ({"class_path": "mine.Photos", "init_args": {"image_size": 48}}, 48),
    ],
)
def test_the_size_of_the_images_is_that_of_the_data(data: dict[str, Any], size: int) -> None:
    assert size_of_images(data) == size


def test_a_source_of_another_package_may_not_tell_the_size(checkpoint: Path, tmp_path: Path) -> None:
    changes = {"data__class_path": "mine.Photos", "data__init_args__image_size": None}
    path = changed(checkpoint, tmp_path / "x.ckpt", **changes)
    with pytest.raises(
        ConfigurationError, match=r"^image_size: the checkpoint's data source mine\.Photos does not say"
    ):
        load(path)
    assert load(path, "cpu", image_size=16).image_size == 16 and "mine" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyper_parameters__network": "mine:net"}, "names the network mine:net of another package, whose code would"),
        ({"data__init_args__mean": None}, "mean and std are not three numbers each"),
        ({"hyper_parameters__network": "cifar_nothing"}, "cifar_nothing"),
        ({"hyper_parameters__network_args": {**TINY_NETWORK, "widths": [4]}}, r"x\.ckpt: model\.network_args of "),
        ({"hyper_parameters__network_args": {**TINY_NETWORK, "widths": [9]}}, "its weights are not of its network: "),
        ({"hyper_parameters__tta": ["magic"]}, r"x\.ckpt: model\.tta: magic is not allowed"),
        ({"data__init_args__resize": "magic"}, r"x\.ckpt: data\.resize: 'magic' is not allowed"),
        ({"data__init_args__background": "magic"}, r"x\.ckpt: data\.background: 'magic' is not allowed"),
        ({"data__init_args__image_size": 10**9}, r"x\.ckpt: model\.network: .* does not take images of 1000000000x"),
        (
            {"hyper_parameters__class_names": ["a", "\ud800", "b"], "data__init_args__classes": ["a", "\ud800", "b"]},
            r"hyper_parameters\.class_names\.1 is '\\ud800', not a text in UTF-8",
        ),
        ({"state_dict": {}}, "is larger than the network that the weights are of"),
    ],
)
def test_what_a_test_refuses_is_refused(
    changes: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(changed(checkpoint, tmp_path / "x.ckpt", **changes))
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = copy.deepcopy(read_checkpoint_file(checkpoint))
    name, weight = next(iter(content["state_dict"].items()))
    content["state_dict"][name] = weight * float("nan")
    write_checkpoint(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=f"its weights are not finite: {name.removeprefix('network.')}$"):
        load(tmp_path / "x.ckpt")


def test_damaged_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.ckpt").write_bytes(content)
    for name in ("x.ckpt", "none.ckpt"):
        with pytest.raises(CheckpointError):
            load(tmp_path / name)


def test_a_network_of_ones_own_has_to_be_trusted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        f"import timm\ndef net(**kwargs):\n    return timm.create_model('cifar_resnet20', **{TINY_NETWORK}, **kwargs)\n"
    )
    (tmp_path / "trusted_net.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"hyper_parameters__network": "trusted_net:net", "hyper_parameters__network_args": {}}
    path = changed(checkpoint, tmp_path / "x.ckpt", **changes)
    with pytest.raises(CheckpointError, match=r"give --trust trusted_net:net"):
        load(path)
    array = noise(16, 16, 3)
    assert load(path, "cpu", trust=["trusted_net:net"]).predict([array]) == load(checkpoint, "cpu").predict([array])

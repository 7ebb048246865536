import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image
from sklearn.datasets import load_digits

from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.data.digits import Digits

SOURCE = load_digits()


def expected_places() -> dict[str, list[int]]:
    """Where the images of each split stand in scikit-learn's order, counted one by one."""
    seen, places = [0] * 10, {"train": [], "test": []}
    for place, digit in enumerate(SOURCE.target):
        places["train" if seen[digit] % 5 else "test"].append(place)
        seen[digit] += 1
    return places


def enlarged(place: int) -> np.ndarray:
    grey = Image.fromarray(np.rint(SOURCE.images[place] / 16 * 255).astype(np.uint8))
    return np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("split, num", [("train", 1433), ("test", 364)])
def test_each_split_has_its_digits_as_grey_rgb_images(split, num):
    places = expected_places()[split]
    images, labels = Digits().load(split)
    assert images.shape == (num, 32, 32, 3) and images.dtype == np.uint8 and len(places) == num
    assert labels.dtype == np.int64 and labels.tolist() == SOURCE.target[places].tolist()
    expected = np.stack([enlarged(place) for place in places])
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], expected)


def test_the_splits_share_no_image_and_leave_none_out():
    places = expected_places()
    assert sorted(places["train"] + places["test"]) == list(range(1797))
    train, test = (Digits().load(split)[0].reshape(-1, 32 * 32 * 3) for split in ("train", "test"))
    # no drawing occurs twice in the source either, so that equal pixels would be a leak
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == len(train) + len(test) == 1797


def test_every_fifth_image_of_each_digit_is_a_test_image():
    _, test = Digits().load("test")
    assert np.bincount(test).tolist() == [-(-count // 5) for count in np.bincount(SOURCE.target)]


def test_images_use_the_whole_range_of_grey_levels():
    images, _ = Digits().load("train")
    assert images.min() == 0 and images.max() == 255


def test_batches_are_ready_for_a_network_and_never_mirrored():
    module = Digits(batch_size=64)
    module.setup("fit")
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (64, 3, 32, 32) and labels.shape == (64,)
    assert module.class_names == list("0123456789")
    assert module.num_train_batches == (1433 - 143) // 64
    assert not module.train_dataloader().sampler.plan()[1].flips.any()
    assert module.train_dataloader().sampler.plan()[1].corners.unique().tolist() == list(range(9))


def test_a_recipe_written_from_the_description_builds_an_equal_source():
    module = Digits(classes=["3", "8"], num_train=50, batch_size=16)
    module.setup("fit")
    recipe = yaml.safe_dump({"data": module.describe()})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    again = parser.instantiate(parser.parse_string(recipe)).data
    assert type(again) is Digits and again.describe() == module.describe()
    again.setup("fit")
    for one, other in zip(module.train_dataloader(), again.train_dataloader(), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])

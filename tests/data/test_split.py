from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from cifar_resnets.data.split import shuffled_indices, split_indices
from cifar_resnets.errors import ConfigurationError, DataError

ORDER_OF_TEN = [6, 4, 2, 1, 7, 5, 0, 8, 9, 3]


def random_labels(counts, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def split(labels, val_fraction=0.1, num_train=None, seed=0):
    return split_indices(labels, val_fraction, num_train, seed, [f"class{i}" for i in range(labels.max() + 1)])


def test_a_tenth_of_cifar_is_500_images_a_class():
    labels = random_labels([5000] * 10)
    train, val = split(labels)
    assert np.bincount(labels[val]).tolist() == [500] * 10
    assert np.bincount(labels[train]).tolist() == [4500] * 10


@pytest.mark.parametrize("counts", [[100, 100, 100], [500, 50, 20], [33, 47, 91, 12], [5, 6, 7], [1000, 10]])
@pytest.mark.parametrize("val_fraction", [0.1, 0.25, 1 / 3, 0.5])
def test_the_split_agrees_with_scikit_learn_within_one_image_a_class(counts, val_fraction):
    labels = random_labels(counts)
    train, val = split(labels, val_fraction)
    other = StratifiedShuffleSplit(1, test_size=max(round(val_fraction * len(labels)), len(counts)), random_state=0)
    other_train, other_val = next(other.split(labels, labels))
    assert len(val) == len(other_val)
    for ours, theirs in ((train, other_train), (val, other_val)):
        assert np.abs(np.bincount(labels[ours]) - np.bincount(labels[theirs])).max() <= 1


def test_the_split_is_disjoint_complete_sorted_and_seeded():
    labels = random_labels([70, 80, 90])
    train, val = split(labels, seed=1)
    assert sorted([*train, *val]) == list(range(240))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    again_train, again_val = split(labels, seed=1)
    assert np.array_equal(train, again_train) and np.array_equal(val, again_val)
    assert not np.array_equal(val, split(labels, seed=2)[1])


@pytest.mark.parametrize("seed", [0, 7, 2**63])
def test_the_order_follows_from_sha_256_alone(seed):
    expected = sorted(range(1000), key=lambda index: hashlib.sha256(f"{seed} {index}".encode()).hexdigest()[:16])
    assert shuffled_indices(1000, seed).tolist() == expected


def test_the_order_is_the_same_on_every_machine():
    # written down once: another order would let a resumed run validate on images that it was trained on
    assert shuffled_indices(10, 0).tolist() == ORDER_OF_TEN


def test_the_split_takes_images_from_all_over_the_data():
    _, val = split(np.repeat([0, 1], 5000))
    # in each class the validation images are spread evenly, not the first or the last
    assert np.bincount(val // 1000, minlength=10).min() > 60


def test_the_validation_images_do_not_depend_on_num_train():
    labels = random_labels([70, 80, 90])
    train, val = split(labels)
    for num_train in (3, 50, len(train)):
        subset, same_val = split(labels, num_train=num_train)
        assert np.array_equal(val, same_val)
        assert len(subset) == num_train and set(subset) <= set(train)


def test_a_subset_to_train_on_has_each_class_in_proportion():
    labels = random_labels([400, 200, 100])
    train, _ = split(labels)
    subset, _ = split(labels, num_train=100)
    shares = np.bincount(labels[train]) * 100 / len(train)
    assert np.abs(np.bincount(labels[subset]) - shares).max() < 1
    assert not np.array_equal(np.sort(train[labels[train] == 0])[:57], subset[labels[subset] == 0])


def test_tiny_and_unbalanced_classes_always_have_an_image_on_either_side():
    rng = np.random.default_rng(0)
    for case in range(200):
        counts = rng.integers(2, 9, rng.integers(2, 7)) * rng.choice([1, 1, 10])
        labels = random_labels(counts, case)
        whole, _ = split(labels, rng.uniform(0.01, 0.99), seed=case)
        num_train = int(rng.integers(len(counts), len(whole) + 1))
        train, val = split(labels, 1 - len(whole) / len(labels), num_train, case)
        assert len(train) == num_train and len(val) == len(labels) - len(whole)
        assert not set(train) & set(val)
        for part in (train, val):
            assert np.bincount(labels[part], minlength=len(counts)).min() >= 1


@pytest.mark.parametrize("counts, message", [([5, 1], "'class1': 1 training"), ([0, 5], "'class0': 0 training")])
def test_a_class_that_cannot_be_split_is_named(counts, message):
    with pytest.raises(DataError, match=message):
        split(random_labels(counts))


@pytest.mark.parametrize("num_train", [2, 91, 1000])
def test_a_subset_that_cannot_be_had_is_refused_with_what_can(num_train):
    labels = random_labels([50, 30, 20])
    with pytest.raises(ConfigurationError, match=rf"data\.num_train: {num_train} is not allowed, give 3 to 90"):
        split(labels, num_train=num_train)


def test_with_a_fraction_of_zero_all_are_trained_on():
    labels = random_labels([1, 6, 9])  # also a class of one image
    train, val = split(labels, 0.0)
    assert train.tolist() == list(range(16)) and len(val) == 0
    some, _ = split(labels, 0.0, num_train=8)
    assert np.bincount(labels[some]).tolist() == [1, 3, 4]
    with pytest.raises(DataError, match="class 'class1': 0 training images, one or more are needed"):
        split(np.array([0, 2, 2]), 0.0)

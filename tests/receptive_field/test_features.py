"""Layouts against PyTorch: an image whose pixels hold their own row and column is reshaped in the same way."""

import random

import pytest
import torch

from cifar_resnets.receptive_field.features import (
    HEIGHT,
    TOKENS,
    WIDTH,
    Features,
    Part,
    image_features,
    merge_features,
    plain_layout,
)

SHAPE = (2, 6, 8, 12)


def unit_of(features, name, index):
    """The unit along an axis that an element belongs to, from the layout alone."""
    unit = 0
    for dimension, position in zip(features.layout, index, strict=True):
        for part in reversed(dimension):
            position, digit = divmod(position, part.size)
            unit += digit * part.stride if part.axis == name else 0
    return unit


def check(features, rows, columns):
    """Compares the layout with tensors that hold each element's row and column."""
    assert features.shape == tuple(rows.shape)
    for _ in range(40):
        index = tuple(random.randrange(size) for size in rows.shape)
        assert (unit_of(features, HEIGHT, index), unit_of(features, WIDTH, index)) == (rows[index], columns[index])


def image():
    rows = torch.arange(SHAPE[2]).view(1, 1, -1, 1).expand(SHAPE)
    columns = torch.arange(SHAPE[3]).view(1, 1, 1, -1).expand(SHAPE)
    return image_features(SHAPE), rows, columns


def random_shape(rng, size):
    factors, shape = [], []
    for prime in (2, 3):
        while size % prime == 0:
            factors.append(prime)
            size //= prime
    rng.shuffle(factors)
    while factors:
        count = rng.randrange(1, 4)
        shape.append(1)
        for factor in factors[:count]:
            shape[-1] *= factor
        factors = factors[count:]
    return shape


@pytest.mark.parametrize("seed", range(60))
def test_views_and_permutations_against_torch(seed):
    rng = random.Random(seed)
    random.seed(seed)
    features, rows, columns = image()
    for _ in range(4):
        shape = random_shape(rng, rows.numel())
        try:
            features = features.reshaped(shape)
        except ValueError as error:  # a split across the border of two axes
            assert "cannot be followed" in str(error)
            return
        rows, columns = rows.reshape(shape), columns.reshape(shape)
        order = rng.sample(range(len(shape)), len(shape))
        features, rows, columns = features.permuted(order), rows.permute(order), columns.permute(order)
        check(features, rows, columns)


def test_a_view_there_and_back_is_the_same():
    features = image_features(SHAPE)
    windows = features.reshaped((2, 6, 4, 2, 3, 4)).permuted((0, 2, 4, 1, 3, 5))
    back = windows.permuted((0, 3, 1, 4, 2, 5)).reshaped(SHAPE)
    assert back == features


def test_flattened_pixels_hold_both_axes():
    features = image_features(SHAPE).reshaped((2, 6, 96))
    assert features.layout[2] == (Part(8, HEIGHT), Part(12, WIDTH))
    with pytest.raises(ValueError, match="mixed with others"):
        features.full_axis(2)


def test_collapsing_an_axis_leaves_one_field():
    features = image_features(SHAPE).collapsed([2])
    assert features.is_fixed(HEIGHT)
    assert features.axes[HEIGHT].at(0)[:2] == (0, 7)
    assert features.axes[WIDTH] == image_features(SHAPE).axes[WIDTH]
    assert features.shape == (2, 6, 1, 12)


def test_collapsing_blocks_of_neighbours_makes_the_axis_coarser():
    features = image_features(SHAPE).reshaped((2, 6, 4, 2, 12)).collapsed([3])
    assert [features.axes[HEIGHT].at(unit)[:2] for unit in range(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_collapsing_what_are_no_neighbours_is_refused():
    features = image_features(SHAPE).reshaped((2, 6, 4, 2, 12))
    with pytest.raises(ValueError, match="no neighbours along the height"):
        features.collapsed([2])


def test_merging_units_in_different_orders_is_refused():
    square = image_features((1, 3, 8, 8))
    with pytest.raises(ValueError, match="different orders"):
        merge_features([square, square.permuted((0, 1, 3, 2))], (1, 3, 8, 8))


def test_broadcasting_what_is_the_same_everywhere_sees_all():
    features = image_features(SHAPE)
    merged = merge_features([features, features.collapsed([2])], SHAPE)
    assert merged.axes[HEIGHT].sees_all
    assert not merged.axes[WIDTH].sees_all


def test_parameters_see_nothing():
    features = image_features(SHAPE)
    weight = Features(plain_layout((6, 1, 1)))
    assert merge_features([features, weight], SHAPE) == features


def test_a_shape_of_other_length_is_refused():
    with pytest.raises(ValueError, match="another type"):
        image_features(SHAPE).reshaped((2, 6, 8, 24))


def test_blocks_of_tokens_are_refused():
    tokens = Features((((Part(12, TOKENS)),), (Part(8, HEIGHT),)), image_features(SHAPE).axes)
    with pytest.raises(ValueError, match="no neighbours"):
        tokens.collapsed([0])

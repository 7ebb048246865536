"""Functions that the rules of several operations use."""

from cifar_resnets.receptive_field.features import HEIGHT, WIDTH, Features, image_features
from cifar_resnets.receptive_field.rules.base import (
    each,
    elementwise,
    features_in,
    holds_units,
    nothing_seen,
    pair,
    resampled,
    windowed,
)

IMAGE = image_features((1, 3, 8, 6))
NOTHING = nothing_seen((1, 3, 8, 6))


def test_features_are_found_however_deep():
    assert features_in({"tensors": [IMAGE, (IMAGE, 3)], "dim": 1, "none": None}) == [IMAGE] * 2


def test_what_does_not_depend_on_the_image():
    assert isinstance(NOTHING, Features)
    assert (NOTHING.shape, NOTHING.axes) == ((1, 3, 8, 6), {})
    assert [features.shape for features in nothing_seen([(2,), (1, 4)])] == [(2,), (1, 4)]


def test_a_merge_needs_two_branches():
    assert elementwise({"self": IMAGE, "other": IMAGE}, IMAGE.shape).kind == "merge"
    assert elementwise({"self": IMAGE, "other": NOTHING}, IMAGE.shape).kind == "point"


def test_only_height_and_width_hold_units():
    assert [holds_units(IMAGE, dim) for dim in range(4)] == [False, False, True, True]


def test_a_window_changes_its_own_axis_only():
    features = resampled(IMAGE, 2, 4, windowed(kernel=3, stride=2, padding=1, dilation=1))
    assert features.shape == (1, 3, 4, 6)
    assert (features.axes[HEIGHT].receptive_field, features.axes[HEIGHT].jump) == (3, 2)
    assert features.axes[WIDTH] == IMAGE.axes[WIDTH]
    assert resampled(IMAGE, 1, 5, windowed(3, 1, 0, 1)).axes == IMAGE.axes  # channels are no pixels


def test_values_for_each_dimension():
    assert (each(3, 2), each((3,), 2), each([1, 2], 2)) == ([3, 3], [3, 3], [1, 2])
    assert (pair([3, 5]), pair([3])) == ((3, 5), (1, 3))

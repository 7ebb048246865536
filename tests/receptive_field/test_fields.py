"""Fields along one axis, against the definition: the set of pixels that a unit sees, unit by unit."""

import math
import random

import pytest

from cifar_resnets.receptive_field.fields import Axis, Field, image_axis, merge_axes


def hull(pixels):
    return min(pixels), max(pixels)


def seen_through(axis, units):
    """All pixels that some units see."""
    return {pixel for unit in units for pixel in axis.at(unit)[:2]}


def random_axis(rng, size=48):
    """An axis after some windows and one upsampling by hand."""
    axis = image_axis(size).window(size, rng.choice([1, 3, 4]), rng.choice([1, 2]), rng.choice([0, 1]))
    if rng.random() < 0.5:
        axis = axis.resampled(lambda unit: [unit // 3], axis.size * 3, 3, axis.step)
    return axis


@pytest.mark.parametrize("seed", range(40))
def test_window_unit_by_unit(seed):
    rng = random.Random(seed)
    axis = random_axis(rng)
    kernel, stride, padding, dilation = (rng.choice(each) for each in ([1, 2, 3, 5], [1, 2, 3], [-2, 0, 1], [1, 2, 4]))
    after = axis.window(10, kernel, stride, padding, dilation)
    for unit in range(-3, 10):
        taps = [unit * stride - padding + tap * dilation for tap in range(kernel)]
        assert after.at(unit)[:2] == hull(seen_through(axis, taps))


def test_receptive_field_by_the_recurrence():
    """r += (k - 1) * jump, start += ((k - 1) / 2 - p) * jump, jump *= s.

    Source: Araujo, Norris and Sim (2019), section 2.
    """
    rng, axis, field, jump, start = random.Random(0), image_axis(512), 1, 1, 0.5
    for _ in range(8):
        kernel, stride, padding, dilation = (rng.choice(each) for each in ([1, 3, 5], [1, 2], [0, 1, 2], [1, 2]))
        reach = (kernel - 1) * dilation
        field, start = field + reach * jump, start + (reach / 2 - padding) * jump
        jump *= stride
        axis = axis.window(99, kernel, stride, padding, dilation)
        assert (axis.receptive_field, axis.jump, axis.start) == (field, jump, start)


@pytest.mark.parametrize("seed", range(20))
def test_joined_sees_what_any_unit_sees(seed):
    axis = random_axis(random.Random(seed), random.Random(seed).choice([2, 7, 48]))
    joined = axis.joined()
    assert joined.size == 1
    assert joined.at(0)[:2] == hull(seen_through(axis, range(axis.size)))


def test_units_that_do_not_exist_do_not_count():
    """The first of two units that repeat sees less than the second, which was cut off."""
    fields = (Field(0, 0, 0, 0), Field(0, 5, 0, 5))
    assert Axis(2, 2, fields).receptive_field == 6
    assert Axis(1, 2, fields).receptive_field == 1


def test_neighbours_that_see_alike_become_a_period():
    nearest = image_axis(8).resampled(lambda unit: [unit // 2], 16, 2, 1)
    assert (nearest.jump, nearest.receptive_field, len(nearest.fields)) == (0.5, 1, 2)
    assert [nearest.at(unit).low for unit in range(-2, 4)] == [-1, -1, 0, 0, 1, 1]
    again = nearest.window(8, 1, stride=2)
    assert again == image_axis(8)


def test_long_fractional_periods_are_exact():
    axis = image_axis(300).resampled(lambda unit: [unit // 49], 14700, 49, 1)
    assert all(axis.window(300, 1, stride=49).at(unit) == (unit,) * 4 for unit in (0, 1, 299))


def test_merge_sees_all_branches_and_takes_the_narrowest_path():
    narrow, wide = image_axis(16).window(16, 3, padding=1), image_axis(16).window(16, 7, padding=3)
    merged = merge_axes([narrow, wide])
    assert merged.at(5) == Field(2, 8, 4, 6)
    assert (merged.receptive_field, merged.min_receptive_field, merged.start) == (7, 3, 0.5)


def test_merge_of_shifted_branches_is_their_union():
    early, late = image_axis(16).window(8, 1, padding=2), image_axis(16).window(8, 1, padding=-3)
    assert merge_axes([early, late]).at(4)[:2] == (2, 7)


def test_merge_of_unlike_periods():
    nearest = image_axis(8).resampled(lambda unit: [unit // 2], 16, 2, 1)
    even = image_axis(32).window(16, 2, stride=2)
    with pytest.raises(ValueError, match=r"differently far apart: 0\.5 and 2 pixels"):
        merge_axes([nearest, even])
    thirds = image_axis(8).resampled(lambda unit: [unit // 3, unit // 3 + 1], 16, 6, 3)
    merged = merge_axes([nearest, thirds])
    for unit in range(12):
        both = {*nearest.at(unit)[:2], *thirds.at(unit)[:2]}
        assert merged.at(unit)[:2] == hull(both)


def test_seeing_all_keeps_the_narrowest_path():
    axis = image_axis(16).window(16, 3, padding=1).seeing_all()
    assert axis.sees_all
    assert math.isinf(axis.receptive_field)
    assert math.isnan(axis.start)
    assert axis.min_receptive_field == 3
    assert axis.window(16, 3, padding=1).sees_all

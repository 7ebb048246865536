"""Views, slices, pads and concatenation along the image, each against the pixels themselves."""

import pytest
import torch
import torch.nn.functional as F
from oracle import Fn, check_axis, followed_axis, make_positive, seen_pixels
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.features import Features, Part
from cifar_resnets.receptive_field.rules.reshape import RESHAPES
from cifar_resnets.receptive_field.theory import summarize

SIZE = (24, 16)


def pixel_values():
    """An image each of whose pixels holds its own row."""
    return torch.arange(SIZE[0], dtype=torch.float).view(1, 1, -1, 1).expand(1, 4, *SIZE)


CASES = {
    "slice": lambda x: x[:, :, 5:],
    "slice from the end": lambda x: x[:, :, -7:],
    "slice from before the beginning": lambda x: x[:, :, -100:-3],
    "slice behind the end": lambda x: x[:, :, 3:100],
    "every third": lambda x: x[:, :, 1::3],
    "narrow": lambda x: x.narrow(2, 4, 9),
    "crop": lambda x: F.pad(x, (0, 0, -4, -5)),
    "chunk": lambda x: x.chunk(3, 2)[1],
    "split": lambda x: x.split([5, 12, 7], 2)[1],
    "unbind and a new axis": lambda x: x.unbind(1)[2].unsqueeze(1),
    "select a channel": lambda x: x[:, 1].unsqueeze(1),
    "select the last channel": lambda x: x.select(1, -1)[:, None],
    "stack": lambda x: torch.stack([x, x], 2).mean(2),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(1),
    "movedim": lambda x: x.movedim(1, -1).movedim(-1, 1),
    "there and back": lambda x: x.transpose(2, 3).reshape(1, 4, -1).view(1, 4, SIZE[1], SIZE[0]).mT,
    "repeat channels": lambda x: x.repeat(1, 3, 1, 1),
    "expand": lambda x: x[:, None].expand(1, 3, 4, *SIZE).flatten(1, 2),
    "roll channels": lambda x: x.roll(1, 1),
    "flip channels": lambda x: x.flip(1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_reshape_has_the_fields_of_its_pixels(name):
    reshape = CASES[name]
    axis = followed_axis(Fn(lambda m, x: reshape(x)), SIZE, 0)
    rows = reshape(pixel_values())[0, 0, :, 0].tolist()
    assert axis.size == len(rows)
    assert [axis.at(unit)[:2] for unit in range(axis.size)] == [(row, row) for row in rows]


@pytest.mark.parametrize("index", [0, 3, -2])
def test_one_row_is_what_all_see(index):
    axis = followed_axis(Fn(lambda m, x: x[:, :, index]), SIZE, 0)
    assert axis.at(0)[:2] == (index % SIZE[0],) * 2


def test_pads_lie_beyond_the_image():
    axis = followed_axis(Fn(lambda m, x: F.pad(x, (0, 0, 2, 1))), SIZE, 0)
    assert (axis.size, axis.at(0).low, axis.at(2).low) == (SIZE[0] + 3, -2, 0)


def test_space_to_depth_by_views_equals_pixel_unshuffle():
    def by_views(m, x):
        n, c, h, w = x.shape
        return m.mix(x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2))

    network = make_positive(Fn(by_views, mix=nn.Conv2d(16, 4, 1)))
    assert followed_axis(network, SIZE, 0).receptive_field == 2
    assert check_axis(network, SIZE, 0, margin=2) > 5


def test_a_concatenation_sees_all_branches_and_takes_the_narrowest_path():
    """As in Inception: 1x1 beside 5x5."""
    branches = {"narrow": nn.Conv2d(4, 2, 1), "wide": nn.Conv2d(4, 2, 5, padding=2)}
    network = Fn(lambda m, x: torch.cat([m.narrow(x), m.wide(x)], 1), **branches)
    [*_, cat] = summarize(network, (4, 16, 16)).layers
    assert (cat.type, cat.receptive_field_out, cat.min_receptive_field_out) == ("cat", (5, 5), (1, 1))


def test_pooled_branches_of_different_width_may_lie_side_by_side():
    wide = nn.Conv2d(4, 4, 5, padding=2)
    network = Fn(lambda m, x: torch.cat([x.mean((2, 3)), m.wide(x).mean((2, 3))], 1), wide=wide)
    assert followed_axis(network, SIZE, 0).at(0)[:2] == (-2, 25)


def test_a_class_token_sees_nothing_and_the_row_stays_a_row():
    def run(m, x):
        row = torch.cat([torch.zeros(1, 1, 4, device=x.device), m.conv(x).flatten(2).transpose(1, 2)], 1)
        return m.linear(row + row)

    network = Fn(run, conv=nn.Conv2d(4, 4, 3, padding=1), linear=nn.Linear(4, 4))
    assert followed_axis(network, SIZE, 0).receptive_field == 3


def test_space_to_depth_beside_channels_is_an_error_and_no_wrong_number():
    def run(m, x):
        return m.mix(torch.cat([F.pixel_unshuffle(x, 2), F.pixel_unshuffle(x, 2)], 1))

    with pytest.raises(ConfigurationError, match="joins features along an axis of the image"):
        followed_axis(Fn(run, mix=nn.Conv2d(32, 4, 1)), SIZE, 0)


def test_pads_of_convolutions_are_found_again():
    """Brute force near the border: the first unit of a padded convolution sees two rows."""
    network = make_positive(nn.Conv2d(4, 4, 3, padding=1))
    assert seen_pixels(network, SIZE, 0)[0].nonzero().flatten().tolist() == [0, 1]
    assert followed_axis(network, SIZE, 0).at(0)[:2] == (-1, 1)


def test_strides_of_a_single_unit_do_not_reorder_elements():
    pooled = Features(((), (Part(8),), (), ()), {})
    arguments = {"self": pooled, "size": (1, 8, 1, 1), "stride": (8, 1, 8, 8)}
    assert RESHAPES["as_strided_"](arguments, (1, 8, 1, 1)).output is pooled
    with pytest.raises(ValueError, match="another order"):
        RESHAPES["as_strided_"]({**arguments, "stride": (8, 2, 1, 1)}, (1, 8, 1, 1))

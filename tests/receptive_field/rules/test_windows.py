"""Convolution, pooling and interpolation against brute force: change a pixel, see which units change."""

import random

import pytest
import torch
import torch.nn.functional as F
from oracle import Fn, check_axis, followed_axis, make_positive
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.theory import summarize

LONG, SHORT, MARGIN = 96, 24, 24


def conv(rng: random.Random, channels: int) -> nn.Module:
    kernel = rng.choice([1, 2, 3, 4, 5]), rng.choice([1, 2, 3, 5])
    padding = rng.choice([0, 1, 2]), rng.choice([0, 1, 3])
    stride, dilation = rng.choice([1, 1, 2]), rng.choice([(1, 1), (1, 2), (3, 1)])
    return nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=rng.choice([1, 2, channels]))


def pool(rng: random.Random, channels: int) -> nn.Module:
    kernel, stride, ceil = rng.choice([2, 3, (2, 3)]), rng.choice([1, 2, (2, 1)]), rng.random() < 0.5
    if rng.random() < 0.5:
        return nn.MaxPool2d(kernel, stride, padding=1, dilation=rng.choice([1, 2]), ceil_mode=ceil)
    return nn.AvgPool2d(kernel, stride, padding=rng.choice([0, 1]), ceil_mode=ceil)


def transposed(rng: random.Random, channels: int) -> nn.Module:
    kernel, stride = rng.choice([(2, 2), (3, 2), (4, 2), (3, 3), (5, 2)])
    return nn.ConvTranspose2d(channels, channels, kernel, stride, rng.choice([0, 1]), output_padding=rng.choice([0, 1]))


def upsample(rng: random.Random, channels: int) -> nn.Module:
    mode = rng.choice(["nearest", "nearest-exact", "bilinear", "bicubic"])
    return nn.Upsample(scale_factor=rng.choice([2, 3, 1.5, (1, 2), 0.5]), mode=mode)


def adaptive(rng: random.Random, channels: int) -> nn.Module:
    divisor, rest = rng.choice([2, 3]), rng.choice([0, 1])
    kind = rng.choice([F.adaptive_avg_pool2d, F.adaptive_max_pool2d])
    return Fn(lambda m, x: kind(x, [max(2, (side - rest) // divisor) for side in x.shape[2:]]))


def residual(rng: random.Random, channels: int) -> nn.Module:
    a, b = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, (1, 5), padding=(0, 2))
    return Fn(lambda m, x: x + m.b(F.relu(m.a(x))), a=a, b=b)


def branches(rng: random.Random, channels: int) -> nn.Module:
    wide = nn.Conv2d(channels, channels - 1, 5, padding=2)
    return Fn(lambda m, x: torch.cat([m.narrow(x), m.wide(x)], 1), narrow=nn.Conv2d(channels, 1, 1), wide=wide)


def pad_and_crop(rng: random.Random, channels: int) -> nn.Module:
    amounts = [rng.choice([-2, 0, 1, 3]) for _ in range(4)]
    mode = "constant" if min(amounts) < 0 else rng.choice(["constant", "reflect", "replicate"])
    return Fn(lambda m, x: F.pad(x, amounts, mode=mode))


def cut(rng: random.Random, channels: int) -> nn.Module:
    start, step = rng.choice([0, 1, 2, -1000]), rng.choice([1, 2])
    return Fn(lambda m, x: x[:, :, start::step, :-1])


def space_to_depth(rng: random.Random, channels: int) -> nn.Module:
    mix = nn.Conv2d(4 * channels, channels, 1)
    return Fn(lambda m, x: m.mix(F.pixel_unshuffle(x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2], 2)), mix=mix)


def focus(rng: random.Random, channels: int) -> nn.Module:
    mix = nn.Conv2d(2 * channels, channels, 3, padding=1)
    even = Fn(lambda m, x: x[..., : x.shape[2] // 2 * 2, :])
    return Fn(lambda m, x: m.mix(torch.cat([m.even(x)[..., ::2, :], m.even(x)[..., 1::2, :]], 1)), mix=mix, even=even)


def depth_to_space(rng: random.Random, channels: int) -> nn.Module:
    return Fn(lambda m, x: F.pixel_shuffle(m.widen(x), 2), widen=nn.Conv2d(channels, 4 * channels, 3, padding=1))


def shuffle(rng: random.Random, channels: int) -> nn.Module:
    def by_hand(m: nn.Module, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return m.conv(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
    return rng.choice([Fn(by_hand, conv=grouped), nn.Sequential(nn.ChannelShuffle(2), grouped)])


def channels_last(rng: random.Random, channels: int) -> nn.Module:
    linear = nn.Linear(channels, channels)
    return Fn(lambda m, x: F.gelu(m.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2), linear=linear)


def tokens(rng: random.Random, channels: int) -> nn.Module:
    linear = nn.Linear(channels, channels)
    return Fn(lambda m, x: m.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape), linear=linear)


def halves(rng: random.Random, channels: int) -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return m.mix(torch.cat([first, m.conv(second)], 1))

    conv = nn.Conv2d(channels // 2, channels // 2, (5, 3), padding=(2, 1))
    return Fn(run, conv=conv, mix=nn.Conv2d(channels, channels, 1))


OPERATIONS = [
    *(conv, conv, conv, pool, transposed, upsample, adaptive, residual, branches, pad_and_crop, cut, space_to_depth),
    *(focus, depth_to_space, shuffle, channels_last, tokens, halves),
]


def check_everywhere(network: nn.Module) -> int:
    return sum(check_axis(network, size, axis, MARGIN) for axis, size in enumerate([(LONG, SHORT), (SHORT, LONG)]))


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS), key=lambda each: each.__name__))
def test_each_operation_against_brute_force(operation):
    rng = random.Random(0)
    for seed in range(2):
        torch.manual_seed(seed)
        network = make_positive(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), operation(rng, 4), conv(rng, 4)))
        assert check_everywhere(network) > 0


@pytest.mark.parametrize("seed", range(24))
def test_random_stacks_against_brute_force(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    network = make_positive(nn.Sequential(*(rng.choice(OPERATIONS)(rng, 4) for _ in range(rng.choice([2, 3, 4])))))
    try:
        check_everywhere(network)
    except ConfigurationError as error:  # a stack that makes the image too small, and nothing else
        assert "does not take images" in str(error)


def test_random_stacks_are_compared_at_all():
    compared = 0
    for seed in range(8):
        rng = random.Random(seed)
        network = make_positive(nn.Sequential(*(rng.choice(OPERATIONS)(rng, 4) for _ in range(2))))
        try:
            compared += check_everywhere(network)
        except ConfigurationError:
            continue
    assert compared > 100


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [1.5, 2.5, 1.3, 0.7])
def test_interpolation_goes_by_the_factor_where_the_size_was_rounded(mode, factor):
    network = make_positive(nn.Sequential(nn.Upsample(scale_factor=factor, mode=mode)))
    assert check_axis(network, (101, 20), 0, MARGIN) > 5


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_interpolation_to_a_size(mode):
    network = Fn(lambda m, x: F.interpolate(x, size=(77, 20), mode=mode))
    assert check_axis(network, (101, 20), 0, MARGIN) > 5


def test_a_scale_without_constant_step_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
    with pytest.raises(
        ConfigurationError, match="1: the operation upsample_bilinear2d interpolates with align_corners"
    ):
        summarize(network)


def test_a_transposed_convolution_with_holes_is_refused():
    with pytest.raises(ConfigurationError, match="see nothing"):
        summarize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, stride=3)))


def test_a_period_of_49_units_does_not_blur():
    """1 / 49 * 49 is 0.9999999999999999 in floating point."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(49), nn.Upsample(size=(48, 48)), nn.AdaptiveAvgPool2d(7))
    axis = followed_axis(network, (48, 48), 0)
    assert all(float(end).is_integer() for unit in range(axis.size) for end in axis.at(unit))


def test_weights_that_depend_on_the_image_are_seen():
    def run(m, x):
        weight = x.mean((2, 3)).view(1, 4, 1, 1).expand(4, 4, 1, 1)
        return F.conv2d(x, weight)

    axis = followed_axis(Fn(run), (16, 16), 0)
    assert axis.sees_all


def test_a_bias_that_depends_on_the_image_is_seen():
    axis = followed_axis(Fn(lambda m, x: F.conv2d(x, torch.ones(4, 4, 1, 1), x.mean((0, 2, 3)))), (16, 16), 0)
    assert axis.sees_all

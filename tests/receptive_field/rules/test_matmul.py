"""Matrices, attention, softmax and reductions: what mixes all units sees all of the image, what does not stays."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import Fn, check_axis, followed_axis, make_positive, seen_pixels
from torch import nn

from cifar_resnets.receptive_field.theory import summarize


class SqueezeExcite(nn.Module):
    """Source: Hu et al. (2018), "Squeeze-and-excitation networks", section 3."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * (1 + self.gate(F.adaptive_avg_pool2d(x, 1)))


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.qkv, self.fused = nn.Linear(4, 12), fused

    def forward(self, x):
        n, c, h, w = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).reshape(n, h * w, 3, 2, 2).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.fused:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return out.transpose(1, 2).reshape(n, h, w, c).permute(0, 3, 1, 2)


SEES_ALL = {
    "squeeze and excite": SqueezeExcite(),
    "attention": Attention(fused=False),
    "fused attention": Attention(fused=True),
    "softmax over pixels": Fn(lambda m, x: x.flatten(2).softmax(2).view(x.shape)),
    "less the mean": Fn(lambda m, x: x - 2 * x.mean((2, 3), keepdim=True)),
    "less the maximum": Fn(lambda m, x: x + x.amax((2, 3), keepdim=True)),
    "gram matrix": Fn(lambda m, x: (x.flatten(2) @ x.flatten(2).transpose(1, 2) @ x.flatten(2)).view(x.shape)),
}


@pytest.mark.parametrize("name", SEES_ALL)
def test_what_mixes_all_units_sees_all(name):
    for axis in (0, 1):
        assert followed_axis(SEES_ALL[name], (8, 12), axis).sees_all


def test_squeeze_and_excite_by_brute_force():
    assert seen_pixels(make_positive(SqueezeExcite()), (24, 12), 0).all()


def test_a_mask_that_depends_on_the_image_is_seen():
    def run(m, x):
        row = x.flatten(2).transpose(1, 2)
        free = torch.ones_like(row)
        out = F.scaled_dot_product_attention(free, free, free, attn_mask=row @ row.transpose(1, 2))
        return out.transpose(1, 2).reshape(x.shape)

    assert followed_axis(Fn(run), (8, 8), 0).sees_all


def test_attention_along_one_axis_leaves_the_other():
    def run(m, x):
        rows = x.permute(0, 3, 2, 1)  # n, w, h, c
        return F.scaled_dot_product_attention(rows, rows, rows).permute(0, 3, 2, 1)

    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Fn(run))
    assert followed_axis(network, (16, 16), 0).sees_all
    assert followed_axis(network, (16, 16), 1).receptive_field == 3


def test_attention_between_channels_sees_all():
    def run(m, x):
        rows = x.flatten(2)
        return F.scaled_dot_product_attention(rows, rows, rows).view(x.shape)

    assert followed_axis(Fn(run), (16, 16), 0).sees_all


@pytest.mark.parametrize("kind", ["mean", "sum", "amax", "amin", "std", "logsumexp"])
def test_reductions_over_channels_leave_the_field(kind):
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Fn(lambda m, x: x + getattr(x, kind)(dim=1, keepdim=True)))
    assert followed_axis(network, (16, 16), 0).receptive_field == 3


@pytest.mark.parametrize("head", ["pool", "mean", "flatten", "max"])
def test_a_head_sees_the_union_of_all_units(head):
    """Convolutions 3x3, stride 2: unit u of 16 sees pixels 2u - 1 to 2u + 1; all of them -1 to 31."""
    heads = {
        "pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "mean": Fn(lambda m, x: x.mean((2, 3))),
        "flatten": nn.Sequential(nn.Flatten(), nn.Linear(4 * 16 * 6, 4)),
        "max": Fn(lambda m, x: x.flatten(2).max(2)[0]),
    }
    network = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), heads[head], nn.Linear(4, 5))
    axis = followed_axis(network, (32, 12), 0)
    assert axis.at(0)[:2] == (-1, 31)
    layer = summarize(network, (4, 32, 12)).layers[-1]
    assert (layer.type, layer.receptive_field_out, layer.image_size_out) == ("Linear", (33, 13), (1, 1))


def test_pooling_by_views_equals_pooling():
    blocks = Fn(lambda m, x: x.view(1 * x.shape[0], 4, x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5)))
    network = make_positive(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), blocks, nn.Conv2d(4, 4, 3, padding=1)))
    assert check_axis(network, (48, 12), 0, margin=12) > 5
    assert followed_axis(network, (48, 12), 0).receptive_field == 8


def test_the_narrowest_path_goes_around_a_gate():
    layer = summarize(nn.Sequential(nn.Conv2d(3, 4, 1), SqueezeExcite()), 16).layers[-1]
    assert layer.receptive_field_out == (math.inf, math.inf)
    assert layer.min_receptive_field_out == (3, 3)


def test_dimension_without_units_is_plain():
    network = Fn(lambda m, x: torch.einsum("nchw,dc->ndhw", x, torch.ones(6, 4, device=x.device)))
    assert followed_axis(network, (16, 16), 0).receptive_field == 1

"""Operations that cannot be followed raise an error with the layer's name; writes in place are right or an error."""

from collections import OrderedDict

import pytest
import timm
import torch
import torch.nn.functional as F
from oracle import Fn, check_axis, followed_axis, make_positive
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.rules.registry import RULES, follow
from cifar_resnets.receptive_field.theory import summarize


def conv():
    return nn.Conv2d(4, 4, 3, padding=1)


def field_of(function):
    """The field of `conv(function(x))` along the height, and on the way whether brute force agrees."""
    network = Fn(lambda m, x: m.last(function(m, x)), conv=conv(), last=conv())
    axis = followed_axis(network, (48, 12), 0)
    assert check_axis(make_positive(network), (48, 12), 0, margin=12) > 5
    return axis.receptive_field


def zeros_at(x, *index):
    return torch.zeros(1, *index, dtype=torch.long, device=x.device)


UNKNOWN = {
    "roll": lambda x: torch.roll(x, 1, 2),
    "roll everything": lambda x: torch.roll(x, 1),
    "flip": lambda x: x.flip(3),
    "sort": lambda x: x.sort(2)[0],
    "topk": lambda x: x.topk(3, 2)[0],
    "cumsum": lambda x: x.cumsum(2),
    "cummax": lambda x: x.cummax(3)[0],
    "fft": lambda x: torch.fft.fft2(x).real,
    "grid_sample": lambda x: F.grid_sample(x, torch.zeros(1, 8, 8, 2, device=x.device), align_corners=False),
    "unfold": lambda x: x.unfold(2, 3, 1)[..., 0],
    "im2col": lambda x: F.unfold(x, 3).view(1, 4, 9, -1)[:, :, 0],
    "gather": lambda x: x.gather(2, zeros_at(x, 4, 8, 8)),
    "index": lambda x: x[:, :, torch.arange(8, device=x.device).flip(0)],
    "mask": lambda x: x[x > 0],
    "tril": lambda x: x.tril(),
    "as_strided": lambda x: x.as_strided((1, 4, 8, 8), (1, 1, 1, 1)),
    "as_strided_": lambda x: x.clone().as_strided_((1, 4, 8, 8), (1, 1, 1, 1)),
    "transposed sum": lambda x: x + x.transpose(2, 3),
    "row of rows": lambda x: x.view(1, 4, 4, -1).mean(2),
    "windows": lambda x: x.view(1, 4, 4, 2, 4, 2).mean((2, 4)),
    "columns laid side by side": lambda x: torch.stack(x.unbind(3), 3),
    "columns as channels": lambda x: torch.cat([x[..., i : i + 1] for i in range(8)], 1),
    "rows put back": lambda x: torch.cat([x[:, :, 4:], x[:, :, :4]], 2),
    "tokens moved by one": lambda x: _tokens(x, 0) + _tokens(x, 1),
    "tokens by rows and by columns": lambda x: _tokens(x, 0) + _tokens(x.transpose(2, 3), 0),
    "a number": lambda x: x * x.mean().item(),
    "equality": lambda x: x if torch.equal(x, x + 1) else -x,
    "numpy": lambda x: x + torch.from_numpy(x.numpy()),
    "tolist": lambda x: x + torch.tensor(x.tolist()),
    "type": lambda x: x.half().view(torch.int32),
    "norm by what was seen": lambda x: F.layer_norm(x, (8,), weight=x.mean((0, 1, 2))),
}


def _tokens(x, before):
    """Pixels in a row (n, h * w + 1, c), with a class token somewhere."""
    row, token = x.flatten(2).transpose(1, 2), torch.zeros(1, 1, 4, device=x.device)
    return torch.cat([token, row] if before else [row, token], 1)


class Weird(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_followed_is_an_error_with_the_layers_name(name):
    weird = OrderedDict(good=nn.Conv2d(3, 4, 1), weird=Weird(UNKNOWN[name]))
    network = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 3, 1), body=nn.Sequential(weird)))
    with pytest.raises(ConfigurationError, match=r"^body\.weird: ") as caught:
        summarize(network, 8)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


def test_window_attention_is_an_error_with_the_layers_name():
    network = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1), num_heads=(1, 1))
    with pytest.raises(ConfigurationError, match=r"layers\.0\.blocks\.0\.attn: the operation .* windows of the image"):
        summarize(network, 224)


def test_what_sees_the_whole_image_already_may_do_anything():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Weird(lambda x: x + x.mean((2, 3), keepdim=True)))
    network.append(Weird(lambda x: x.cumsum(2)))
    network.append(nn.Conv2d(4, 4, 3))
    assert summarize(network, 8).layers[-1].receptive_field_out == (float("inf"),) * 2


def test_a_rule_that_fails_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setitem(RULES, "relu", lambda arguments, shape: arguments["no such argument"])
    with pytest.raises(ConfigurationError, match="1: the operation relu is called in a way that is not known"):
        summarize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))


def test_what_depends_on_no_image_needs_no_rule():
    assert follow("fft_anything", False, {"self": 1.0}, (2, 3)).output.axes == {}


# Writes in place.


def add_in_place(m, x):
    y = m.conv(x)
    y += x
    return y


def accumulate(m, x):
    x = x.clone()
    x += m.conv(x)
    return x


def write_into_zeros(m, x):
    out = torch.zeros_like(x)
    out.copy_(m.conv(x))
    return out


def write_everything(m, x):
    out = torch.zeros_like(x)
    out[...] = m.conv(x)
    return out


def write_over(m, x):
    out = m.conv(x)
    out.copy_(x)
    return out


def write_by_out(m, x):
    out = m.conv(m.conv(x))
    torch.add(x, x, out=out)
    return out


RIGHT_IN_PLACE = {
    "relu": (lambda m, x: F.relu(m.conv(x), inplace=True), 5),
    "add": (add_in_place, 5),
    "accumulate": (accumulate, 5),
    "into zeros": (write_into_zeros, 5),
    "into all of zeros": (write_everything, 5),
    "over": (write_over, 3),
    "out": (write_by_out, 3),
    "fill": (lambda m, x: x + m.conv(x).fill_(1), 3),
    "zero": (lambda m, x: x + m.conv(x).zero_(), 3),
    "mask": (lambda m, x: m.conv(x).clone().masked_fill_(x < 0, 0), 5),
}


@pytest.mark.parametrize("name", RIGHT_IN_PLACE)
def test_writes_that_are_followed(name):
    function, field = RIGHT_IN_PLACE[name]
    assert field_of(function) == field


def write_rows(m, x):
    x, y = x.clone(), m.conv(x)
    x[:, :, 1:] = y[:, :, :-1]
    return x


def write_rows_of_zeros(m, x):
    out = torch.zeros_like(x)
    out[:, :, 1:] = m.conv(x)[:, :, :-1]
    return out


def write_rows_of_new_zeros(m, x):
    out = torch.zeros(x.shape, device=x.device)
    out[:, :, 1:] = m.conv(x)[:, :, :-1]
    return out


def write_rows_of_a_buffer(m, x):
    m.memory[:, :, :] = m.conv(x)
    return m.memory + 0


def write_a_chunk(m, x):
    x = x.clone()
    first, _ = x.chunk(2, 1)
    first.add_(m.conv(x)[:, :2])
    return x


def write_a_chunk_and_join(m, x):
    first, second = x.clone().chunk(2, 1)
    first.add_(m.conv(x)[:, :2])
    return torch.cat([first, second], 1)


def write_through_detach(m, x):
    x = x.clone()
    x.detach().add_(m.conv(x))
    return x


def write_through_data(m, x):
    x = x.clone()
    x.data.add_(m.conv(x))
    return x


def replace_data(m, x):
    x = x.clone()
    x.data = m.conv(x)
    return x


def write_through_numpy(m, x):
    x = x.clone()
    x.numpy()[...] = m.conv(x).numpy()
    return x


def write_through_view(m, x):
    x = x.clone()
    x.view(1, 4, -1).add_(m.conv(x).flatten(2))
    return x


def write_by_select(m, x):
    x = x.clone()
    x[:, 0] = m.conv(x)[:, 0]
    return x


def shift_channels(m, x):
    out = torch.empty_like(x)
    out[:, :2, 1:] = x[:, :2, :-1]
    out[:, 2:] = x[:, 2:]
    return out


VIEWS = [
    *(write_rows, write_rows_of_zeros, write_rows_of_new_zeros, write_rows_of_a_buffer, write_a_chunk),
    *(write_a_chunk_and_join, write_through_detach, write_through_data, replace_data, write_through_numpy),
    *(write_through_view, write_by_select, shift_channels),
]


@pytest.mark.parametrize("function", VIEWS, ids=lambda function: function.__name__)
def test_writes_through_views_are_right_or_an_error(function):
    network = Fn(lambda m, x: m.last(function(m, x)), conv=conv(), last=conv())
    network.register_buffer("memory", torch.zeros(1, 4, 48, 12))
    try:
        assert followed_axis(network, (48, 12), 0).receptive_field == 5
    except ConfigurationError as error:
        assert "in place" in str(error) or "cannot be followed" in str(error)

"""Shortcuts of residual blocks.

Each is a module that is called with the block's input and its residual, and returns their sum.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError

__all__ = [
    *("SHORTCUTS", "ConstantScaling", "DropoutShortcut", "ExclusiveGating", "NoShortcut", "Projection", "Shortcut"),
    *("ShortcutOnlyGating", "ZeroPad", "make_shortcut"),
]

# He et al. (2016) tried 0, -1, ... -10 by cross-validation; -6 was best for both kinds of gate (table 1).
GATE_BIAS = -6.0


class ZeroPad(nn.Module):
    """A strided identity whose new channels are zero, so it has no parameters.

    Source: He et al. (2015), "Deep residual learning for image recognition", section 3.3, option A. The
    paper does not say where the zero channels lie; half before and half after is this project's choice.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Builds the strided identity.

        Args:
            in_channels: Channels coming in.
            out_channels: Channels going out; half of the new ones lie before the old ones, half after.
            stride: Stride in pixels.

        Raises:
            ConfigurationError: If fewer channels go out than come in.
        """
        super().__init__()
        # F.pad takes negative amounts and would silently drop channels.
        if out_channels < in_channels:
            raise ConfigurationError(
                f"this shortcut can only add channels, but they go from {in_channels} to {out_channels}: "
                "use shortcut='B'"
            )
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Subsamples (n, in_channels, h, w) by the stride, and pads its channels with zeros to out_channels."""
        x = x[:, :, :: self.stride, :: self.stride]  # (n, 16, 32, 32) -> (n, 16, 16, 16)
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))  # (n, 32, 16, 16)

    def extra_repr(self) -> str:
        """Shows the stride and the padding when the network is printed."""
        return f"stride={self.stride}, before={self.before}, after={self.after}"


class Shortcut(nn.Sequential):
    """The sum of the residual and the block's input; option A of He et al. (2015), section 3.3.

    The layers of this module bring the input to the shape of the residual; there are none where the shapes agree.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Builds the shortcut.

        Args:
            in_channels: Channels coming into the block.
            out_channels: Channels going out of the block.
            stride: Stride of the block in pixels.
        """
        same_shape = stride == 1 and in_channels == out_channels
        super().__init__(*([] if same_shape else [ZeroPad(in_channels, out_channels, stride)]))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """Adds the block's input (n, in_channels, h, w) to its residual, whose shape the sum has."""
        return residual + self.shaped(x)

    def shaped(self, x: Tensor) -> Tensor:
        """Returns the block's input (n, in_channels, h, w) in the shape of the residual."""
        for layer in self:
            x = layer(x)
        return x


class Projection(Shortcut):
    """A 1x1 convolution on the shortcut, with batch norm except in pre-activated blocks.

    Source: He et al. (2015), section 3.3, options B and C; `conv1x1` in table 1 of He et al. (2016).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: bool = True) -> None:
        """Builds the projection; for the arguments see `Shortcut`."""
        super(Shortcut, self).__init__(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
        if norm:
            self.append(nn.BatchNorm2d(out_channels))


class NoShortcut(nn.Module):
    """The residual alone, as in a plain network.

    Source: He et al. (2015), section 3.3, "Plain network".
    """

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Returns the residual."""
        return residual


class ConstantScaling(Shortcut):
    """Half of the input plus half of the residual.

    Source: He et al. (2016), "Identity mappings in deep residual networks", section 3.1; of the three
    scalings in table 1 the only one that converged.
    """

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """Averages input and residual."""
        return 0.5 * residual + 0.5 * self.shaped(x)


class DropoutShortcut(Shortcut):
    """Dropout of one half on the shortcut.

    Source: He et al. (2016), section 3.1, "Dropout shortcut". Departure: PyTorch scales the kept values by two,
    so that in evaluation the shortcut is the identity and not half of it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Builds the shortcut; for the arguments see `Shortcut`."""
        super().__init__(in_channels, out_channels, stride)
        self.append(nn.Dropout(0.5))


class ExclusiveGating(nn.Module):
    """A gate g: (1 - g) * input + g * residual, elementwise.

    Source: He et al. (2016), section 3.1, "Exclusive gating". Departure: where the shape changes, the gate is
    computed from the zero-padded input; the zero channels add nothing, so the function is the same.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Builds the shortcut; for the arguments see `Shortcut`."""
        super().__init__()
        self.identity = Shortcut(in_channels, out_channels, stride)
        self.gate = nn.Conv2d(out_channels, out_channels, 1)
        self.act = nn.Sigmoid()
        nn.init.constant_(self.gate.bias, GATE_BIAS)  # type: ignore[arg-type]

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds input and residual, weighted by the gate."""
        shaped = self.identity.shaped(x)
        gate = self.act(self.gate(shaped))
        weighted: Tensor = gate * residual + (1 - gate) * shaped
        return weighted


class ShortcutOnlyGating(ExclusiveGating):
    """A gate g on the shortcut alone: (1 - g) * input + residual, elementwise.

    Source: He et al. (2016), section 3.1, "Shortcut-only gating".
    """

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds the gated input to the residual."""
        shaped = self.identity.shaped(x)
        gate = self.act(self.gate(shaped))
        weighted: Tensor = residual + (1 - gate) * shaped
        return weighted


# Name, class and meaning; to add a shortcut, add a line. "B" is a projection only where the shape changes, see
# `make_shortcut`.
SHORTCUTS: dict[str, tuple[Callable[[int, int, int], nn.Module], str]] = {
    "A": (Shortcut, "zero channels where the shape changes"),
    "B": (Projection, "projection where the shape changes"),
    "C": (Projection, "projection everywhere"),
    "none": (lambda *_: NoShortcut(), "a plain network"),
    "constant_scaling": (ConstantScaling, "half the input, half the residual"),
    "exclusive_gating": (ExclusiveGating, "a gate between both"),
    "shortcut_only_gating": (ShortcutOnlyGating, "a gate on the input"),
    "conv1x1": (Projection, "the same as C"),
    "dropout": (DropoutShortcut, "dropout on the input"),
}


def make_shortcut(option: str, in_channels: int, out_channels: int, stride: int, norm: bool = True) -> nn.Module:
    """Builds the shortcut of a residual block.

    Args:
        option: A name in `SHORTCUTS`.
        in_channels: Channels coming into the block.
        out_channels: Channels going out of the block.
        stride: Stride of the block in pixels.
        norm: Whether a projection is followed by batch norm.

    Returns:
        A module that is called with the block's input and its residual.

    Raises:
        ConfigurationError: If `option` is unknown.
    """
    if not isinstance(option, str) or option not in SHORTCUTS:
        allowed = ", ".join(f"{name!r} ({meaning})" for name, (_, meaning) in SHORTCUTS.items())
        raise ConfigurationError(f"shortcut={option!r} is unknown: use {allowed}")
    shape = (in_channels, out_channels, stride)
    if option == "B" and shape == (out_channels, out_channels, 1):
        return Shortcut(*shape)
    shortcut = SHORTCUTS[option][0]
    return Projection(*shape, norm=norm) if shortcut is Projection else shortcut(*shape)

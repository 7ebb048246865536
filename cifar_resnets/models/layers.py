"""Building blocks of all networks: convolutions, initialisation, head, and timm's interface."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg
from timm.models import resolve_pretrained_cfg as resolve_cfg
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Builds a 3x3 convolution without bias, because a batch norm always follows it.

    Args:
        in_channels: Channels coming in.
        out_channels: Channels going out.
        stride: Stride in pixels; 2 halves height and width, rounding up.

    Returns:
        The convolution: (n, in_channels, h, w) -> (n, out_channels, ceil(h / stride), ceil(w / stride)).
    """
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class SeparableConv(nn.Sequential):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution over the channels.

    No batch norm lies between the two. Source: Howard et al. (2017), "MobileNets", section 3.1, whose
    separable convolutions have one there.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Builds both convolutions; for the arguments see `conv3x3`."""
        depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        super().__init__(depthwise, nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False))


def conv3x3_with_bias(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Builds a 3x3 convolution with a bias of zero; for the arguments see `conv3x3`."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def conv3x3_or_separable(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """Builds a separable convolution if the stride is not 1; for the arguments see `conv3x3`."""
    build = conv3x3 if stride == 1 else SeparableConv
    return build(in_channels, out_channels, stride)


# The kinds of 3x3 convolutions that `convolution` chooses from; to add one, add a line.
CONVOLUTIONS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "regular": conv3x3,
    "biased": conv3x3_with_bias,
    "separable_downsampling": conv3x3_or_separable,
}


def make_conv3x3(name: str, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """Builds the 3x3 convolution of a residual block.

    Args:
        name: A name in `CONVOLUTIONS`.
        in_channels: Channels coming in.
        out_channels: Channels going out.
        stride: Stride in pixels.

    Raises:
        ConfigurationError: If `name` is unknown.
    """
    if name not in CONVOLUTIONS:
        raise ConfigurationError(f"convolution={name!r} is unknown: use {', '.join(map(repr, CONVOLUTIONS))}")
    return CONVOLUTIONS[name](in_channels, out_channels, stride)


def init_he(module: nn.Module) -> None:
    """Initialises one convolution or batch norm; made for `network.apply(init_he)`.

    The classifier keeps PyTorch's default, because no ReLU follows it and He's formula assumes one. Biases of
    convolutions are not changed.

    Args:
        module: Any module; only convolutions and batch norms are changed.

    Source: He et al. (2015), "Delving deep into rectifiers", section 2.2: normal with standard deviation
    sqrt(2 / fan), with the fan counted over outputs, which keeps the scale of gradients.
    """
    if isinstance(module, nn.Conv2d):
        # PyTorch's kaiming_normal_ ignores groups.
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


# timm's names; without pooling, a network without classifier returns its features with height and width.
POOLS: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AdaptiveAvgPool2d(1),
    "max": lambda: nn.AdaptiveMaxPool2d(1),
    "": nn.Identity,
}


class TimmNetwork(nn.Module, ABC):
    """Base class of all networks: timm's interface, and a head of pooling, dropout and classifier.

    A subclass builds its layers, calls `add_head` LAST, and defines `forward_features`. The order
    matters: timm's `features_only` rebuilds a network from its modules in the order of registration.

    Attributes:
        num_classes: Length of the logits; 0 without a classifier.
        in_chans: Channels of the images.
        num_features: Channels that `forward_features` returns.
        pool_type: Name of the global pooling in `POOLS`.
        drop_rate: Probability of the dropout before the classifier.
        feature_info: For each stage its channels, its reduction (the stride from the image to its output,
            in pixels) and its module's name.
    """

    num_classes: int
    in_chans: int
    num_features: int
    head_hidden_size: int
    pool_type: str
    drop_rate: float
    feature_info: list[dict[str, Any]]

    def add_head(
        self, global_pool: str, num_features: int, num_classes: int, drop_rate: float, bias: bool = True
    ) -> None:
        """Appends pooling, dropout and classifier.

        Args:
            global_pool: A name in `POOLS`.
            num_features: Channels that `forward_features` returns.
            num_classes: Length of the logits; 0 for no classifier.
            drop_rate: Probability with which a pooled feature is zeroed in training.
            bias: Whether the classifier has a bias.

        Raises:
            ConfigurationError: If `num_classes` is negative, or `global_pool` unknown or in conflict with it.
            ValueError: If `drop_rate` is no probability.
        """
        self.num_features = self.head_hidden_size = num_features
        self.drop_rate = drop_rate
        self.head_bias = bias
        self.global_pool: nn.Module = nn.Identity()  # registered here, chosen below
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns patterns of timm's groups of layers: the stem, and each stage, or each block if not `coarse`.

        The head, which matches none, is the last group, with what comes after the last stage.
        """
        names = [name for name, _ in self.named_children()]
        stem = "|".join(names[: names.index("layer1")])
        return {"stem": rf"^(?:{stem})\.", "blocks": r"^layer(\d+)\." if coarse else r"^layer(\d+)\.(\d+)\."}

    def get_classifier(self) -> nn.Module:
        """Returns the classifier: a linear layer, or an identity if there are no classes."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier with a new one.

        Args:
            num_classes: Length of the logits; 0 makes the network return its pooled features.
            global_pool: A name in `POOLS`; the present pooling if not given.

        Raises:
            ConfigurationError: If `num_classes` is negative, or `global_pool` unknown or in conflict with it.
        """
        pool = self.pool_type if global_pool is None else global_pool
        _check_head(num_classes, pool)
        if global_pool is not None:
            self.pool_type, self.global_pool = pool, POOLS[pool]()
        self.num_classes = num_classes
        # The network may be on another device, or in another precision, than when it was built.
        placement = next(self.parameters())
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, bias=self.head_bias).to(placement)

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the features (n, num_features, h', w') of the last stage for images (n, in_chans, h, w)."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools features (n, num_features, h', w'), and classifies them unless `pre_logits`: (n, num_classes)."""
        pooled: Tensor = self.global_pool(features)  # (n, 64, 8, 8) -> (n, 64, 1, 1)
        if self.pool_type:
            pooled = pooled.flatten(1)  # (n, 64)
        pooled = self.head_drop(pooled)  # (n, 64)
        if pre_logits:
            return pooled
        logits: Tensor = self.fc(pooled)  # (n, 10)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (n, num_classes), or pooled features without classes, of images (n, in_chans, h, w)."""
        return self.forward_head(self.forward_features(images))


def _check_head(num_classes: int, pool: str) -> None:
    if pool not in POOLS:
        raise ConfigurationError(f"global_pool={pool!r} is unknown: use {', '.join(map(repr, POOLS))}")
    if num_classes < 0:
        raise ConfigurationError(f"num_classes={num_classes} is negative: use 0 for pooled features, or more")
    if num_classes and not pool:
        raise ConfigurationError(
            f"global_pool='' leaves nothing to classify: use it with num_classes=0, not {num_classes}"
        )


def cifar_cfg() -> dict[str, Any]:
    """Returns timm's description of a network for CIFAR-10: sizes, statistics of the training set, names.

    Returns:
        Keywords of `timm.models.PretrainedCfg`.
    """
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "conv1",
        "classifier": "fc",
    }


def build_network(
    network: type[TimmNetwork], name: str, pretrained: bool, num_stages: int, **arguments: Any
) -> nn.Module:
    """Builds a registered network as timm does, but raises an error where timm would ignore `pretrained`.

    Args:
        network: Class to build.
        name: Registered name.
        pretrained: Load weights; the caller has to name them (timm's `pretrained_cfg` or
            `pretrained_cfg_overlay`), because this project ships none.
        num_stages: Number of stages that `features_only=True` returns.
        **arguments: Keywords for `network` and for timm. A misspelt one raises TypeError.

    Returns:
        The network; for `features_only=True` timm's wrapper around it.

    Raises:
        ConfigurationError: If `pretrained` is set and there are no weights to load.
    """
    cfg = resolve_cfg(name, arguments.get("pretrained_cfg"), arguments.get("pretrained_cfg_overlay"))
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise ConfigurationError(
            f"pretrained=True: there are no pretrained weights for {name}; "
            "leave it out, or load a file of your own with checkpoint_path"
        )
    # timm pops entries from feature_cfg, hence a new one for each network.
    feature_cfg = {"out_indices": tuple(range(num_stages))}
    return build_model_with_cfg(network, name, pretrained, feature_cfg=feature_cfg, **arguments)

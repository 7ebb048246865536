"""Feature maps inside a network: taking them from its modules, and choosing the module whose map shows most."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.support.sandbox import like_network, plain_network, sandboxed
from cifar_resnets.support.tensor_layout import Layout, LayoutFinder, stages

__all__ = [
    "Layout",
    "check_classes",
    "check_found",
    "check_layers",
    "choose_layer",
    "gradients_of",
    "logits_of",
    "tapped",
]


Visit = Callable[[str, Tensor, Layout], Tensor]


@contextmanager
def tapped(network: nn.Module, names: Iterable[str], visit: Visit) -> Iterator[None]:
    """Lets a function exchange the feature maps that modules return.

    Args:
        network: any.
        names: of its modules. Those that return no map are left alone, or several maps at once.
        visit: is called with the module's name, the tensor it returned and its layout; returns what takes its place.
    """
    finder = LayoutFinder(network)
    handles = [network.register_forward_pre_hook(lambda _, inputs: finder.see(inputs[0]))]
    try:
        for name in names:
            handles.append(network.get_submodule(name).register_forward_hook(_tap(name, finder, visit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tap(name: str, finder: LayoutFinder, visit: Visit) -> Callable[..., Any]:
    def exchange(module: nn.Module, inputs: Any, output: Any) -> Any:
        parts = list(output) if type(output) in (tuple, list) else [output]
        maps = [(index, layout) for index, part in enumerate(parts) if (layout := finder.of(name, part))]
        if len(maps) != 1:
            return None
        [(index, layout)] = maps
        parts[index] = visit(name, parts[index], layout)
        return type(output)(parts) if type(output) in (tuple, list) else parts[0]

    return exchange


@dataclass(frozen=True, eq=False)
class _Found:
    name: str
    tensor: Tensor
    layout: Layout

    @property
    def smaller_side(self) -> int:
        return min(self.layout.height, self.layout.width)


def choose_layer(network: nn.Module, images: Tensor, min_size: int = 8) -> str:
    """Chooses the layer for heatmaps: the last whose feature map is still large enough to show where something is.

    Of timm's networks one of the stages that `feature_info` names is chosen, of others one of the modules that all
    goes through, so that nothing of an image goes round it by a shortcut.

    Args:
        network: a classifier; it is left as it was.
        images: normalised images (n, 3, h, w), one or more of those that the heatmaps will be of.
        min_size: height and width that the map should have, in units.

    Returns:
        Name of the module. If no map is that large: of the largest, and of equals the last.

    Raises:
        ConfigurationError: when there is no image, or the network has no feature map that its logits depend on.
    """
    network = plain_network(network)
    if not len(images):
        raise ConfigurationError("images: there is none, give one or more to choose the layer for heatmaps by")
    with sandboxed(network, images):
        probe = like_network(network, images[:1]).requires_grad_()
        names = [name for name, _ in network.named_modules() if name]
        score, found = _usable_maps(network, probe, [name for name in names if name in stages(network)])
        if not found:
            score, found = _usable_maps(network, probe, names)
            found = _on_trunk(found, score)
    if not found:
        raise ConfigurationError(
            f"layers: {type(network).__name__} has no feature map of height and width that its logits depend on"
        )
    large = [each for each in found if each.smaller_side >= min_size]
    return (large or sorted(found, key=lambda each: each.layout.height * each.layout.width))[-1].name


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Runs a network; logits (n, num_classes).

    Raises:
        ConfigurationError: when it returns something else.
    """
    logits = network(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigurationError(f"network: {type(network).__name__} returns {shape}, not logits (n, num_classes)")
    return logits


def gradients_of(score: Tensor, features: Mapping[str, Tensor]) -> list[Tensor]:
    """Gradients of a number with respect to the maps of some layers; its graph is kept.

    Raises:
        ConfigurationError: when it does not depend on one of them.
    """
    found: Sequence[Tensor | None] = [None] * len(features)
    if score.requires_grad:
        found = torch.autograd.grad(score, list(features.values()), retain_graph=True, allow_unused=True)
    if unused := [name for name, gradient in zip(features, found, strict=True) if gradient is None]:
        raise ConfigurationError(f"layers: the logits do not depend on {', '.join(unused)}, name other layers")
    return [gradient for gradient in found if gradient is not None]


def check_layers(network: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """The layers that a user names, each once.

    Raises:
        ConfigurationError: when there is none, or the network does not have one of them.
    """
    names = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    known = {name for name, _ in network.named_modules()}
    if unknown := [name for name in names if name not in known]:
        raise ConfigurationError(f"layers: {type(network).__name__} has no layer {', '.join(unknown)}")
    if not names:
        raise ConfigurationError("layers: there is none, name one or more, or leave the choice to the program")
    return names


def check_found(network: nn.Module, layers: Sequence[str], found: Container[str]) -> None:
    """Raises ConfigurationError when a layer did not return a feature map."""
    if missing := [name for name in layers if name not in found]:
        raise ConfigurationError(
            f"layers: {', '.join(missing)} of {type(network).__name__} returns no feature map of height and width"
        )


def check_classes(classes: Tensor, logits: Tensor) -> None:
    """Raises ConfigurationError when there is no logit of a class."""
    num_classes = logits.shape[1]
    if unknown := sorted({label for label in classes.flatten().tolist() if not 0 <= label < num_classes}):
        shown = ", ".join(map(str, unknown[:5]))
        raise ConfigurationError(f"classes: {shown} is not allowed, the network has the classes 0 to {num_classes - 1}")


def _usable_maps(network: nn.Module, image: Tensor, names: Sequence[str]) -> tuple[Tensor, list[_Found]]:
    """An image's largest logit, and the maps from modules that it depends on, in the order in which they run."""
    found: dict[str, _Found] = {}

    def visit(name: str, tensor: Tensor, layout: Layout) -> Tensor:
        found.pop(name, None)  # of a module that runs twice, the last
        passed_on = tensor.clone()  # a module may also use the map itself, and pass on another: EfficientViM
        if tensor.requires_grad:
            found[name] = _Found(name, passed_on, layout)
        return passed_on.clone()  # what comes next may work in place

    with tapped(network, names, visit):
        score = logits_of(network, image.clone()).amax()
        maps = list(found.values())
        if not maps or not score.requires_grad:
            return score, []
        gradients = torch.autograd.grad(score, [each.tensor for each in maps], allow_unused=True)
    reached = [(each, gradient) for each, gradient in zip(maps, gradients, strict=True) if gradient is not None]
    # the class token is all that is left of the last block of a ViT: its map gets a gradient, but of zeros
    moved = [each for each, gradient in reached if each.layout.take(gradient).any()]
    return score, moved or [each for each, _ in reached]


def _on_trunk(maps: list[_Found], score: Tensor) -> list[_Found]:
    """Those maps that the whole image goes through on its way to the score; all if there is none."""
    nodes = _bottlenecks(score.grad_fn)
    return [each for each in maps if each.tensor.grad_fn in nodes] or maps


def _bottlenecks(root: Any) -> set[Any]:
    """The nodes of a graph of autograd that every path from its root to its leaves goes through."""
    num_incoming = {root: 0}
    stack = [root]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                if node not in num_incoming:
                    stack.append(node)
                num_incoming[node] = num_incoming.get(node, 0) + 1
    nodes, ready, num_open = set(), [root], 0  # edges that have been left, but not arrived at
    num_left = dict(num_incoming)
    while ready:
        node = ready.pop()
        num_open -= num_incoming[node]
        if num_open == 0:
            nodes.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                num_open += 1
                num_left[following] -= 1
                if num_left[following] == 0:
                    ready.append(following)
    return nodes

"""Feature maps inside a network: reads them from its modules, and chooses the module for heatmaps."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnets.cam.tensor_layout import Layout, LayoutFinder
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.receptive_field.effective import stages
from cifar_resnets.support.sandbox import like_network, plain_network, sandboxed

Visit = Callable[[str, Tensor, Layout], Tensor]  # of a module's name, the tensor that it returned, and its layout
Maps = dict[str, tuple[Tensor, Layout]]  # by the module's name, in the order in which they run


@contextmanager
def tapped(network: nn.Module, names: Iterable[str], visit: Visit) -> Iterator[None]:
    """Replaces the feature maps that modules return by what `visit` returns, within the block.

    Modules that return no map, or several, are left alone.
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


def choose_layer(network: nn.Module, images: Tensor, min_size: int = 8) -> str:
    """Chooses the layer for heatmaps: the last whose feature map is still large enough to show where something is.

    In timm's networks it is one of the stages that `feature_info` names; in others a module that no shortcut bypasses,
    so that its map depends on the whole image.

    Args:
        network: a classifier; it is left as it was.
        images: normalised images (n, 3, h, w), one or more, of the size of those to be explained.
        min_size: least height and width of the map, in units.

    Returns:
        Name of the module; if no map is that large, that of the largest, of equally large ones the last.

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
            bottlenecks = _bottlenecks(score.grad_fn)
            found = {name: each for name, each in found.items() if each[0].grad_fn in bottlenecks} or found
    if not found:
        raise ConfigurationError(
            f"layers: {type(network).__name__} has no feature map of height and width that its logits depend on"
        )
    large = [name for name, (_, layout) in found.items() if min(layout.height, layout.width) >= min_size]
    return (large or sorted(found, key=lambda name: found[name][1].height * found[name][1].width))[-1]


def map_sizes(network: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns height and width, in units, of the feature map of each layer for images (n, c, h, w).

    Raises:
        ConfigurationError: when a layer returns none.
    """
    network = plain_network(network)
    sizes: dict[str, tuple[int, int]] = {}

    def visit(name: str, tensor: Tensor, layout: Layout) -> Tensor:
        sizes[name] = layout.height, layout.width
        return tensor

    with sandboxed(network, images), tapped(network, layers, visit):
        network(like_network(network, images))
    check_found(network, layers, sizes)
    return {name: sizes[name] for name in layers}


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Returns a network's logits (n, num_classes); raises ConfigurationError when it returns something else."""
    logits = network(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigurationError(f"network: {type(network).__name__} returns {shape}, not logits (n, num_classes)")
    return logits


def gradients_of(score: Tensor, features: Mapping[str, Tensor]) -> list[Tensor]:
    """Computes the gradients of a score with respect to the maps of some layers; the graph is kept.

    Raises:
        ConfigurationError: when the score does not depend on one of them.
    """
    found: Sequence[Tensor | None] = [None] * len(features)
    if score.requires_grad:
        found = torch.autograd.grad(score, list(features.values()), retain_graph=True, allow_unused=True)
    if unused := [name for name, gradient in zip(features, found, strict=True) if gradient is None]:
        raise ConfigurationError(f"layers: the logits do not depend on {', '.join(unused)}, name other layers")
    return [gradient for gradient in found if gradient is not None]


def check_layers(network: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """Returns the layers that a user names, without repetitions.

    Raises:
        ConfigurationError: when there is none, or the network does not have one of them.
    """
    network = plain_network(network)
    names = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    known = {name for name, _ in network.named_modules()}
    if unknown := [name for name in names if name not in known]:
        raise ConfigurationError(f"layers: {type(network).__name__} has no layer {', '.join(unknown)}")
    if not names:
        raise ConfigurationError("layers: there is none, name one or more, or leave the choice to the program")
    return names


def check_found(network: nn.Module, layers: Sequence[str], found: Container[str]) -> None:
    """Raises ConfigurationError if a layer did not return a feature map."""
    if missing := [name for name in layers if name not in found]:
        raise ConfigurationError(
            f"layers: {', '.join(missing)} of {type(network).__name__} returns no feature map of height and width"
        )


def check_classes(classes: Tensor, logits: Tensor) -> None:
    """Raises ConfigurationError if there is no logit of a class."""
    num_classes = logits.shape[1]
    if unknown := sorted({label for label in classes.flatten().tolist() if not 0 <= label < num_classes}):
        shown = ", ".join(map(str, unknown[:5]))
        raise ConfigurationError(f"classes: {shown} is not allowed, the network has the classes 0 to {num_classes - 1}")


def _usable_maps(network: nn.Module, image: Tensor, names: Sequence[str]) -> tuple[Tensor, Maps]:
    """Returns an image's largest logit, and the maps that it depends on."""
    found: Maps = {}

    def visit(name: str, tensor: Tensor, layout: Layout) -> Tensor:
        found.pop(name, None)  # of a module that runs twice the last map counts
        passed_on = tensor.clone()  # a module may also use the map itself, and pass on another: EfficientViM
        if tensor.requires_grad:
            found[name] = passed_on, layout
        return passed_on.clone()  # what comes next may work in place

    with tapped(network, names, visit):
        score = logits_of(network, image.clone()).amax()
        if not found or not score.requires_grad:
            return score, {}
        gradients = torch.autograd.grad(score, [tensor for tensor, _ in found.values()], allow_unused=True)
    reached = {name: each for name, each in zip(found, gradients, strict=True) if each is not None}
    # a ViT classifies by the class token: the rest of its last map gets a gradient of zeros
    used = [name for name, gradient in reached.items() if found[name][1].take(gradient).any()]
    return score, {name: found[name] for name in used or reached}


def _bottlenecks(root: Any) -> set[Any]:
    """Returns the nodes of an autograd graph that every path from its root to its leaves goes through."""
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

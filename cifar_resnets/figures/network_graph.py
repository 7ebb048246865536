"""The graph of a network for people: a node a layer, and one for each operation between layers, named as in the code.

Not by `torch.jit.trace`, on which `SummaryWriter.add_graph` is built: it is deprecated and says so
on the console, takes nine times as long, and makes nodes of weights, constants and sizes that hide the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from cifar_resnets.support.sandbox import evaluating, exchanged, plain_network

__all__ = ["Node", "network_graph"]


@dataclass(frozen=True)
class Node:
    """A layer, an operation outside of any, or an end of the network.

    Args:
        name: where it is, for example `layer1/0/conv1`; unique.
        kind: class of the layer, or name of the operation.
        inputs: names of the nodes whose results it takes.
        shape: of its result for one image; the first of several.
        settings: of the layer, as PyTorch prints them.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    settings: str = ""


def network_graph(module: nn.Module, size: Sequence[int]) -> list[Node]:
    """Follows an image of zeros through a network in evaluation mode, as it is before any compiler.

    Nothing of the module changes; only random numbers that it draws outside of PyTorch are drawn.

    Args:
        module: a network.
        size: channels, height and width of an image.

    Returns:
        The nodes in the order in which they ran, from `images` to `logits`.

    Raises:
        Exception: whatever the network raises, when it does not take such an image.
    """
    module = plain_network(module)
    try:
        return _follow(module, size, lambda tensor: tensor.detach().to("meta"))  # neither memory nor arithmetic
    except Exception:  # whatever a network does that tensors without content cannot
        return _follow(module, size, lambda tensor: tensor.detach().clone())


def _follow(module: nn.Module, size: Sequence[int], exchange: Callable[[Tensor], Tensor]) -> list[Node]:
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        evaluating(module),
        exchanged(module, exchange),
    ):
        floating = (tensor for tensor in module.parameters() if tensor.is_floating_point())
        images = next(floating, exchange(torch.empty(0))).new_zeros(1, *size)
        recorder = _Recorder(module)
        recorder.add("images", "Input", (), images)
        with recorder.watching(), recorder:
            logits = module(images)
        recorder.add("logits", "Output", logits, logits)
    return recorder.nodes


class _Recorder(TorchFunctionMode):
    """Notes which layer is running, and makes nodes of layers and of operations between them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.nodes: list[Node] = []
        self.running = [""]
        self.leaf: nn.Module | None = None  # whose operations are its own affair
        self.makers: Any = WeakTensorKeyDictionary()  # the node that made a tensor, or changed it last
        # a scope cannot be a node as well
        scopes = (name for name, each in module.named_modules() if name and not _is_leaf(each))
        self.taken = {name.replace(".", "/") for name in scopes}

    def add(self, name: str, kind: str, inputs: Any, outputs: Any, settings: str = "") -> None:
        """Adds a node, if it makes a tensor."""
        made = _tensors(outputs)
        if not made:
            return
        name = self._unique(name)
        makers = dict.fromkeys(self.makers[each] for each in _tensors(inputs) if each in self.makers)
        self.nodes.append(Node(name, kind, tuple(makers), tuple(made[0].shape), settings))
        for each in made:
            self.makers[each] = name

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes which layer is running."""
        with ExitStack() as stack:
            for name, module in self.module.named_modules():
                if name:
                    before = module.register_forward_pre_hook(self._enter(name.replace(".", "/")), prepend=True)
                    after = module.register_forward_hook(self._leave, with_kwargs=True)
                    stack.callback(before.remove)
                    stack.callback(after.remove)
            yield

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, _: Any) -> None:
            self.running.append(name)
            if self.leaf is None and _is_leaf(module):
                self.leaf = module

        return enter

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = self.running.pop()
        if self.leaf is module:
            self.leaf = None
            if not isinstance(module, nn.Identity):  # a placeholder for what this variant does not have
                self.add(name, type(module).__name__, (args, kwargs), output, module.extra_repr())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if self.leaf is None and name not in ("get", "set"):  # of attributes, such as `shape`
            changed = args[0] if output is None and args else output  # features[:, 0] = ... returns nothing
            if any(each in self.makers for each in _tensors((args, kwargs))):
                self.add("/".join(filter(None, (self.running[-1], name))), name, (args, kwargs), changed)
        return output

    def _unique(self, name: str) -> str:
        base, count = name, 1
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def graph_event(graph: Any) -> Any:
    """What a `SummaryWriter` adds to its file for a `GraphDef`, as its `add_graph` does."""
    from tensorboard.compat.proto.event_pb2 import Event  # TensorBoard is slow to import

    return Event(graph_def=graph.SerializeToString())


def graph_def(nodes: Sequence[Node]) -> Any:
    """A graph as TensorBoard reads it, a `GraphDef`."""
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.versions_pb2 import VersionDef

    return GraphDef(node=[_node_def(node) for node in nodes], versions=VersionDef(producer=22))


def _node_def(node: Node) -> Any:
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.node_def_pb2 import NodeDef
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in node.shape])
    attributes = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=[shape]))}
    if node.settings:
        attributes["settings"] = AttrValue(s=node.settings.encode())
    return NodeDef(name=node.name, op=node.kind, input=node.inputs, attr=attributes)

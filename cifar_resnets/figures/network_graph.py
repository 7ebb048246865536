"""Builds the graph of a network for readers: a node for each layer and for each operation between layers.

`SummaryWriter.add_graph` would use `torch.jit.trace`, which is deprecated and says so on the console, takes nine times
as long, and adds nodes for weights, constants and sizes, which hide the layers.
"""

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


@dataclass(frozen=True)
class Node:
    """A layer, an operation outside of any, or an end of the network."""

    name: str  # unique, as in the code, for example `layer1/0/conv1`
    kind: str  # class of the layer, or name of the operation
    inputs: tuple[str, ...]  # names of the nodes before it
    shape: tuple[int, ...]  # of its result for one image; the first of several
    settings: str = ""  # of the layer, as PyTorch prints them


def network_graph(module: nn.Module, size: Sequence[int]) -> list[Node]:
    """Traces an image of zeros of a size (c, h, w) through a network, uncompiled and in evaluation mode.

    The module is left as it was; only random numbers that it draws outside of PyTorch are not restored.

    Returns:
        The nodes in the order in which they ran, from `images` to `logits`.

    Raises:
        Exception: of any kind, raised by a network that does not take such an image.
    """
    module = plain_network(module)
    try:
        return _follow(module, size, lambda tensor: tensor.detach().to("meta"))  # takes neither memory nor arithmetic
    except Exception:  # any operation that needs values
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
    """Makes nodes of layers and of the operations between them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.running = [""]
        self.leaf: nn.Module | None = None  # the layer that runs; its operations are not recorded
        self.makers: Any = WeakTensorKeyDictionary()  # the last node that made or changed a tensor
        self.names = {each: name.replace(".", "/") for name, each in module.named_modules() if name}
        self.taken = {name for each, name in self.names.items() if not _is_leaf(each)}  # a scope cannot be a node too

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
        """Keeps track of the layer that runs."""
        with ExitStack() as stack:
            for module in self.names:
                stack.callback(module.register_forward_pre_hook(self._enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(self.names[module])
        if self.leaf is None and _is_leaf(module):
            self.leaf = module

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = self.running.pop()
        if self.leaf is module:
            self.leaf = None
            if not isinstance(module, nn.Identity):  # a placeholder in some variants
                self.add(name, type(module).__name__, (args, kwargs), output, module.extra_repr())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if self.leaf is None and name not in ("get", "set"):  # of attributes, such as `shape`
            changed = args[0] if output is None and args else output  # `features[:, 0] = 0` returns None
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
    """Builds the event that `SummaryWriter.add_graph` would write for a `GraphDef`."""
    from tensorboard.compat.proto.event_pb2 import Event  # TensorBoard is slow to import

    return Event(graph_def=graph.SerializeToString())


def graph_def(nodes: Sequence[Node]) -> Any:
    """Builds a `GraphDef`, which TensorBoard reads."""
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

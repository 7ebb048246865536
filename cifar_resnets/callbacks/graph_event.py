"""A network's graph in TensorBoard's own format; apart from `dashboard.py`, for TensorBoard is slow to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.versions_pb2 import VersionDef

from cifar_resnets.analysis.network_graph import Node


def graph_event(graph: Any) -> Any:
    """What a `SummaryWriter` adds to its file for a `GraphDef`, as its `add_graph` does."""
    return Event(graph_def=graph.SerializeToString())


def graph_def(nodes: Sequence[Node]) -> Any:
    """A graph as TensorBoard reads it, a `GraphDef`."""
    return GraphDef(node=[_node_def(node) for node in nodes], versions=VersionDef(producer=22))


def _node_def(node: Node) -> Any:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in node.shape])
    attributes = {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=[shape]))}
    if node.settings:
        attributes["settings"] = AttrValue(s=node.settings.encode())
    return NodeDef(name=node.name, op=node.kind, input=node.inputs, attr=attributes)

"""A network's graph in TensorBoard's format, read back by TensorBoard."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch.utils.tensorboard import SummaryWriter

from cifar_resnets.figures.network_graph import Node, graph_def, graph_event

NODES = [
    Node("images", "input", (), (1, 3, 32, 32), ""),
    Node("conv1", "Conv2d", ("images",), (1, 16, 32, 32), "3, 16, kernel_size=(3, 3)"),
]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer._get_file_writer().add_event(graph_event(graph_def(NODES)))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    graph = events.Graph()
    assert graph == GraphDef.FromString(graph_def(NODES).SerializeToString())
    images, conv = graph.node
    assert (images.name, images.op, list(images.input)) == ("images", "input", [])
    assert (conv.name, conv.op, list(conv.input)) == ("conv1", "Conv2d", ["images"])
    (shape,) = conv.attr["_output_shapes"].list.shape
    assert [dim.size for dim in shape.dim] == [1, 16, 32, 32]
    assert conv.attr["settings"].s == b"3, 16, kernel_size=(3, 3)"
    assert "settings" not in images.attr

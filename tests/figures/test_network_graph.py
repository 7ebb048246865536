"""The graph of a network: compared with torch.fx, which follows networks in another way, and it leaves no trace."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from finder_runs import changed, snapshot
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from cifar_resnets.figures.network_graph import Node, network_graph

SIZE = (3, 32, 32)
OURS = ("cifar_resnet20", "cifar_resnet56_depthwise", "cifar_preact_resnet164", "cifar_plain20", "cifar_custom_resnet")


class LeafTracer(fx.Tracer):
    """Takes a module without children for one step, as our graph does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children())


def fx_layers(network: nn.Module) -> list[tuple[str, tuple[int, ...], set[str]]]:
    """Each layer with its shape and the layers before it, whatever operations lie between."""
    graph = fx.GraphModule(network, LeafTracer().trace(network))
    ShapeProp(graph).propagate(torch.zeros(1, *SIZE))

    def layers_before(node: fx.Node) -> set[str]:
        return set().union(*(layers_of(each) for each in node.all_input_nodes)) if node.all_input_nodes else set()

    def layers_of(node: fx.Node) -> set[str]:
        if node.op == "placeholder":
            return {"images"}
        return {layer_name(node)} if is_layer(node) else layers_before(node)

    def is_layer(node: fx.Node) -> bool:
        return node.op == "call_module" and not isinstance(network.get_submodule(node.target), nn.Identity)

    def layer_name(node: fx.Node) -> str:
        return node.target.replace(".", "/")

    layers = [node for node in graph.graph.nodes if is_layer(node)]
    return [(layer_name(node), tuple(node.meta["tensor_meta"].shape), layers_before(node)) for node in layers]


def our_layers(network: nn.Module) -> list[tuple[str, tuple[int, ...], set[str]]]:
    nodes = {node.name: node for node in network_graph(network, SIZE)}
    names = {name.replace(".", "/") for name, _ in network.named_modules()}

    def layers_before(node: Node) -> set[str]:
        parts = [{name} if name in names | {"images"} else layers_before(nodes[name]) for name in node.inputs]
        return set().union(*parts)

    return [(name, node.shape, layers_before(node)) for name, node in nodes.items() if name in names]


@pytest.mark.parametrize("name", [*OURS, "resnet18", "mobilenetv3_small_050", "densenet121"])
def test_layers_shapes_and_connections_are_those_of_fx(name: str) -> None:
    network = timm.create_model(name, num_classes=10).eval()
    expected = fx_layers(network)
    assert len(expected) > 10
    assert our_layers(network) == expected


def test_a_node_says_what_it_is_and_where() -> None:
    nodes = {node.name: node for node in network_graph(timm.create_model("resnet18", num_classes=7), (3, 64, 48))}
    assert nodes["images"] == Node("images", "Input", (), (1, 3, 64, 48))
    conv = nodes["layer2/0/conv1"]
    assert (conv.kind, conv.inputs, conv.shape) == ("Conv2d", ("layer1/1/act2",), (1, 128, 8, 6))
    assert conv.settings == "64, 128, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False"
    add = nodes["layer2/0/add"]  # in place
    assert (add.kind, add.inputs) == ("add", ("layer2/0/bn2", "layer2/0/downsample/1"))
    assert nodes["logits"] == Node("logits", "Output", ("fc",), (1, 7))


class Odd(nn.Module):
    """One layer used twice, views, a write through a view, names that are taken, results that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.add = nn.Sequential(nn.ReLU())
        self.images = nn.Flatten()
        self.logits = nn.Linear(12, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        features[:, 0] = 0.0
        features = self.add(self.conv(features)) + features
        first, second = features.chunk(2, dim=2)
        return self.logits(self.images(first * second.shape[0]))


def test_odd_networks() -> None:
    nodes = network_graph(Odd(), (3, 4, 2))
    assert [(node.name, node.inputs) for node in nodes] == [
        ("images", ()),
        ("conv", ("images",)),
        ("setitem", ("conv",)),
        ("conv_2", ("setitem",)),
        ("add/0", ("conv_2",)),
        ("add_2", ("add/0", "setitem")),
        ("chunk", ("add_2",)),
        ("mul", ("chunk",)),
        ("images_2", ("mul",)),
        ("logits", ("images_2",)),
        ("logits_2", ("logits",)),
    ]
    names = {node.name for node in nodes}
    assert len(names) == len(nodes)
    assert not any(other.startswith(f"{name}/") for name in names for other in names)  # no node is a scope as well


class Deciding(nn.Module):
    """Looks at the values, which tensors without content do not have, and changes its buffers and its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(1)
        features = self.drop(self.conv(images))
        return features.relu() if features.sum().item() < 1e9 else features.abs()


@pytest.mark.parametrize("make", [Deciding, lambda: timm.create_model("cifar_resnet20", shortcut="B")])
def test_nothing_of_the_network_changes(make) -> None:
    network = make().train()
    list(network.children())[0].eval()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, attributes = snapshot(network), copy.deepcopy(vars(network))
    kinds = [node.kind for node in network_graph(network, SIZE)]
    assert "Conv2d" in kinds
    assert kinds[-1] == "Output"
    assert changed(before, snapshot(network)) == []
    assert getattr(network, "seen", []) == attributes.get("seen", [])
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())


def test_a_network_that_fails_raises_and_nothing_changes() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Linear(5, 2)).train()
    before = snapshot(network)
    with pytest.raises(RuntimeError):
        network_graph(network, SIZE)
    assert changed(before, snapshot(network)) == []
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())


def test_compiled_networks_are_shown_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("cifar_resnet20", depths=(1,), widths=(8,), stem_width=8)
    expected = network_graph(network, SIZE)

    def compiler(*_):
        raise AssertionError("compiled")

    assert network_graph(torch.compile(network, backend=compiler), SIZE) == expected
    network.layer1.compile(backend=compiler)
    assert network_graph(network, SIZE) == expected
    network.compile(backend=compiler)
    assert network_graph(network, SIZE) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_and_inference_mode(dtype: torch.dtype) -> None:
    network = timm.create_model("cifar_resnet20", depths=(1,), widths=(8,), stem_width=8).to(dtype)
    expected = network_graph(network, SIZE)
    with torch.inference_mode():
        assert network_graph(network, SIZE) == expected


def test_a_network_without_parameters() -> None:
    assert [node.name for node in network_graph(nn.Sequential(nn.Flatten()), (1, 2, 2))] == ["images", "0", "logits"]

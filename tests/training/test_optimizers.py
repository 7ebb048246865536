import numpy as np
import pytest
import timm
import timm.optim
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import cifar_resnets.models  # noqa: F401  # registers the networks
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.optimizers import build_optimizer, parameter_groups

NAMES = [
    "SGD",
    "Adam",
    "AdamW",
    "NAdam",
    "RMSprop",
    "Adagrad",
    "sgd",
    "adamw",
    "lamb",
    "lion",
    "muon",
    "adabelief",
    "MuonSGD",
]


def small_network() -> nn.Module:
    return timm.create_model("cifar_resnet20", num_classes=3, depths=(1, 1, 1), widths=(4, 8, 8), stem_width=4)


def names_by_decay(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[float, set[str]]:
    """The names of the parameters that are optimised, by their weight decay."""
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["weight_decay"], set()).update(name_of[id(p)] for p in group["params"])
    return found


# By name.


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Adamax"])
def test_an_optimizer_of_torch_goes_by_the_name_of_its_class(name):
    optimizer = build_optimizer(small_network(), name, 0.02, 0.003)
    assert type(optimizer) is getattr(torch.optim, name)
    assert (optimizer.defaults["lr"], optimizer.param_groups[0]["lr"]) == (0.02, 0.02)
    assert optimizer.param_groups[0]["weight_decay"] == 0.003


@pytest.mark.parametrize("name", ["lamb", "lion", "muon", "adabelief", "nadamw", "LAMB"])
def test_an_optimizer_of_timm_goes_by_its_name_there(name):
    optimizer = build_optimizer(small_network(), name, 0.02, 0.003)
    assert type(optimizer) is timm.optim.get_optimizer_class(name.lower(), bind_defaults=False)
    assert type(optimizer).__module__.startswith("timm.")
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.003}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_a_step_of_any_optimizer_changes_all_parameters(name, decay_norm_and_bias):
    torch.manual_seed(0)
    network = small_network()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer = build_optimizer(network, name, 0.1, 0.01, decay_norm_and_bias)
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    same = [name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])]
    # of the whole batch the gradient of a bias in front of a batch norm is zero: none of our convolutions has one
    assert same == []


# Biases of normalisation layers.


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_the_biases_of_normalisation_layers_learn_faster_and_decay_as_others(decay_norm_and_bias):
    network = small_network()
    optimizer = build_optimizer(network, "SGD", 0.5, 0.064, decay_norm_and_bias, norm_bias_scale=64)
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    rates = {name_of[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert rates == {name: 32.0 if name.removesuffix(".bias") in norms else 0.5 for name in name_of.values()}
    decays = {rates[name_of[id(p)]]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[32.0] == (0.001 if decay_norm_and_bias else 0.0)
    first = optimizer.param_groups[0]  # whose rate is logged
    assert (first["lr"], first["weight_decay"]) == (0.5, 0.064)


def test_a_step_moves_a_bias_so_many_times_as_far_and_decays_it_equally():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).double()
    optimizer = build_optimizer(network, "SGD", 0.1, 0.3, optimizer_args={"momentum": 0, "nesterov": False})
    scaled = build_optimizer(
        network, "SGD", 0.1, 0.3, optimizer_args={"momentum": 0, "nesterov": False}, norm_bias_scale=10
    )
    bias = network[1].bias
    for each, factor in ((optimizer, 1), (scaled, 10)):
        nn.init.constant_(bias, 2.0)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        each.step()
        assert bias.tolist() == pytest.approx([2.0 - 0.1 * factor - 0.1 * 0.3 * 2.0] * 2)


# SGD.


@pytest.mark.parametrize("name", ["SGD", "sgd"])
def test_sgd_comes_with_nesterov_momentum(name):
    group = build_optimizer(small_network(), name, 0.1, 5e-4).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, True, 0)


@pytest.mark.parametrize("name", ["SGD", "sgd"])
def test_the_defaults_of_sgd_can_be_overridden(name):
    args = {"momentum": 0.5, "nesterov": False, "dampening": 0.1}
    group = build_optimizer(small_network(), name, 0.1, 5e-4, optimizer_args=args).param_groups[0]
    assert {key: group[key] for key in args} == args


def test_two_steps_of_sgd_equal_the_formula():
    torch.manual_seed(0)
    network = nn.Linear(3, 2, bias=False).double()
    optimizer = build_optimizer(network, "SGD", 0.1, 0.01)
    gradients = np.random.default_rng(0).normal(size=(2, 2, 3))
    weight, velocity = network.weight.detach().numpy().copy(), 0.0
    for gradient in gradients:
        network.weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        decayed = gradient + 0.01 * weight
        velocity = 0.9 * velocity + decayed
        weight = weight - 0.1 * (decayed + 0.9 * velocity)
    np.testing.assert_allclose(network.weight.detach().numpy(), weight, rtol=1e-12)


# Weight decay.


@pytest.mark.parametrize("network", ["cifar_resnet20", "resnet10t"])
@pytest.mark.parametrize("optimizer", ["SGD", "lamb"])
def test_without_decay_of_norm_and_bias_exactly_these_are_left_out(network, optimizer):
    model = timm.create_model(network, num_classes=3)
    norms = {
        f"{name}.{part}"
        for name, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    spared = norms | {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    found = names_by_decay(model, build_optimizer(model, optimizer, 0.1, 5e-4, decay_norm_and_bias=False))
    assert found == {0.0: spared, 5e-4: {name for name, _ in model.named_parameters()} - spared}


@pytest.mark.parametrize("optimizer", ["SGD", "lamb"])
def test_he_et_al_decay_everything(optimizer):
    model = small_network()
    assert names_by_decay(model, build_optimizer(model, optimizer, 0.1, 5e-4)) == {
        5e-4: {name for name, _ in model.named_parameters()}
    }


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_frozen_parameters_are_left_out(decay_norm_and_bias):
    model = small_network()
    model.conv1.requires_grad_(False)
    model.bn1.requires_grad_(False)
    found = set.union(*names_by_decay(model, build_optimizer(model, "SGD", 0.1, 5e-4, decay_norm_and_bias)).values())
    frozen = {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert found == {name for name, _ in model.named_parameters()} - frozen


def rates_by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (round(g["lr"], 12), g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preact_resnet110", "resnet18", "test_vit", "test_convnext"])
def test_rates_fall_from_layer_to_layer_as_timms_do(name):
    model = timm.create_model(
        name, **({"depths": [1, 2], "widths": [4, 8], "stem_width": 4} if name.startswith("cifar_") else {})
    )
    theirs = param_groups_layer_decay(model, 5e-4, layer_decay=0.75)
    for group in theirs:
        group["lr"] = 0.1 * group["lr_scale"]
    ours = parameter_groups(model, 0.1, 5e-4, decay_norm_and_bias=False, layer_decay=0.75)
    assert ours[0]["lr"] == 0.1
    assert rates_by_name(model, ours) == rates_by_name(model, theirs)
    assert len({group["lr"] for group in ours}) > 3


def test_rates_of_layers_and_of_norm_biases_are_multiplied():
    model = small_network()
    found = rates_by_name(model, parameter_groups(model, 0.1, 5e-4, True, norm_bias_scale=64.0, layer_decay=0.5))
    depth = len({name.split(".")[0] for name in found if name.startswith("layer")}) + 1
    assert found["fc.weight"] == (0.1, 5e-4)
    assert found["conv1.weight"] == (0.1 * 0.5**depth, 5e-4)
    assert found["bn1.bias"] == (pytest.approx(6.4 * 0.5**depth), 5e-4 / 64)


def test_a_network_without_groups_of_layers_takes_no_layer_decay():
    with pytest.raises(ConfigurationError, match=r"^model\.layer_decay: Linear has no group_matcher\(\)"):
        build_optimizer(nn.Linear(2, 2), "SGD", 0.1, 0.0, layer_decay=0.5)


@pytest.mark.parametrize("name", ["LBFGS", "Rprop"])
def test_an_optimizer_without_weight_decay_is_given_none(name):
    optimizer = build_optimizer(small_network(), name, 0.1, 0.0, decay_norm_and_bias=False)
    assert all("weight_decay" not in group for group in optimizer.param_groups)
    with pytest.raises(ConfigurationError, match=rf"^model\.weight_decay: {name} has none, give 0$"):
        build_optimizer(small_network(), name, 0.1, 5e-4)


# By its path.


def test_an_optimizer_of_another_module():
    assert type(build_optimizer(small_network(), "torch.optim.AdamW", 0.1, 0.0)) is torch.optim.AdamW
    assert type(build_optimizer(small_network(), "timm.optim.Lamb", 0.1, 0.0)) is timm.optim.Lamb


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nowhere.MySGD", "cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'"),
        ("torch.optim.MySGD", "torch.optim has no MySGD"),
        ("torch.nn.Linear", "torch.nn.Linear is no class of optimizers"),
    ],
)
def test_what_cannot_be_imported_says_so(name, line):
    with pytest.raises(ConfigurationError, match=rf"^model\.optimizer: {line}$"):
        build_optimizer(small_network(), name, 0.1, 0.0)


# What a user can get wrong.


@pytest.mark.parametrize(("name", "meant"), [("AdamWW", "AdamW"), ("SDG", "SGD"), ("lamp", "lamb"), ("muonn", "muon")])
def test_an_unknown_name_suggests_the_nearest(name, meant):
    with pytest.raises(ConfigurationError, match=rf"model\.optimizer: '{name}'.*did you mean.*\b{meant}\b"):
        build_optimizer(small_network(), name, 0.1, 0.0)


@pytest.mark.parametrize("name", ["lr_scheduler", "Parameter", "__name__", "zzzzzz"])
def test_what_is_no_optimizer_is_refused(name):
    with pytest.raises(ConfigurationError, match=r"neither in torch\.optim nor in timm\.optim"):
        build_optimizer(small_network(), name, 0.1, 0.0)


@pytest.mark.parametrize(
    ("name", "args", "culprit"),
    [
        ("SGD", {"momentun": 0.9}, "momentun"),
        ("SGD", {"momentum": -1.0}, "momentum"),
        ("SGD", {"momentum": 0.0}, "[Nn]esterov"),
        ("AdamW", {"betas": (2.0, 0.9)}, "beta"),
        ("lamb", {"beta": 0.9}, "beta"),
    ],
)
def test_an_argument_that_the_optimizer_does_not_take_is_named(name, args, culprit):
    with pytest.raises(ConfigurationError, match=rf"model\.optimizer {name}: .*{culprit}"):
        build_optimizer(small_network(), name, 0.1, 0.0, optimizer_args=args)


def test_arguments_of_the_optimizer_before_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'momentum'; give .*optimizer_args of AdamW, .* or null$"):
        build_optimizer(small_network(), "AdamW", 0.1, 0.0, optimizer_args={"momentum": 0.9})


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_fused_optimizer_makes_the_same_steps(name: str) -> None:
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = torch.nn.Linear(5, 3).double()
        optimizer = build_optimizer(network, name, 0.1, 0.01, fused=fused)
        assert bool(optimizer.defaults["fused"]) is fused
        for _ in range(5):
            optimizer.zero_grad()
            network(torch.ones(2, 5, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        weights.append(network.weight.detach())
    assert torch.allclose(*weights, rtol=1e-12)


@pytest.mark.parametrize("args", [{"foreach": True}, {"fused": False}])
def test_what_the_user_says_of_an_optimizers_kernels_counts(args: dict[str, bool]) -> None:
    optimizer = build_optimizer(torch.nn.Linear(2, 2), "SGD", 0.1, 0.0, optimizer_args=args, fused=True)
    assert not optimizer.defaults["fused"]


@pytest.mark.parametrize("name", ["NAdam", "lamb"])
def test_an_optimizer_that_cannot_be_fused_stays_as_it_is(name: str) -> None:
    optimizer = build_optimizer(torch.nn.Linear(2, 2), name, 0.1, 0.0, fused=True)
    assert not optimizer.defaults.get("fused")


def test_look_ahead_goes_half_of_the_way_of_six_steps() -> None:
    """Zhang et al. (2019), "Lookahead Optimizer: k steps forward, 1 step back"; timm's begins after the first six."""
    weights: dict[str, list[torch.Tensor]] = {"sgd": [], "lookahead_sgd": []}
    for name, steps in weights.items():
        torch.manual_seed(0)
        network = torch.nn.Linear(5, 3)
        optimizer = build_optimizer(network, name, 0.01, 0.0)
        for _ in range(12):
            optimizer.zero_grad()
            network(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
            steps.append(network.weight.detach().clone())
    plain, ahead = weights.values()
    assert torch.equal(ahead[10], plain[10])
    assert torch.allclose(ahead[11], plain[5] + 0.5 * (plain[11] - plain[5]))


def test_an_optimizer_that_is_not_there_cannot_look_ahead() -> None:
    with pytest.raises(ConfigurationError, match="'lookahead_sdg' is neither in torch.optim nor in timm.optim"):
        build_optimizer(torch.nn.Linear(5, 3), "lookahead_sdg", 0.1, 0.0)

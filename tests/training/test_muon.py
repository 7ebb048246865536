import copy

import numpy as np
import pytest
import torch
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.muon import MuonSGD, orthogonalize
from cifar_resnets.training.optimizers import build_optimizer


def newton_schulz(matrix: np.ndarray, steps: int) -> np.ndarray:
    x = matrix / np.linalg.norm(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T, steps).T
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
    return x


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()


def give_gradients(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 27), (27, 4), (16, 16), (1, 9)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_matrix_is_orthogonalised_as_by_numpy_in_float64(shape, steps):
    matrix = np.random.default_rng(0).normal(size=shape)
    expected = newton_schulz(matrix, steps)
    np.testing.assert_allclose(orthogonalize(torch.from_numpy(matrix), steps), expected, rtol=1e-10, atol=1e-12)
    in_float32 = orthogonalize(torch.from_numpy(matrix).float(), steps)
    assert in_float32.dtype == torch.float32
    np.testing.assert_allclose(in_float32, expected, atol=1e-4)


def test_five_steps_bring_all_singular_values_close_to_one_and_keep_the_vectors():
    matrix = torch.randn(16, 144, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ orthogonalize(matrix, 5) @ vh.T
    values = torch.diagonal(rotated)
    assert 0.65 < values.min() and values.max() < 1.25
    torch.testing.assert_close(rotated, torch.diag(values), rtol=0, atol=1e-10)


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonalize(torch.zeros(3, 5), 3).any()


@pytest.mark.parametrize("normalize", [True, False])
def test_two_steps_of_a_convolution_equal_the_formula(normalize):
    network = small_network()
    optimizer = build_optimizer(network, "MuonSGD", 0.1, 0.2, optimizer_args={"normalize": normalize, "momentum": 0.6})
    weight, buffer = network[0].weight.detach().numpy().reshape(4, 27).copy(), 0.0
    for seed in range(2):
        give_gradients(network, seed)
        gradient = network[0].weight.grad.numpy().reshape(4, 27).copy()
        optimizer.step()
        buffer = 0.6 * buffer + gradient
        if normalize:
            weight *= 2 / np.linalg.norm(weight)
        weight = weight * (1 - 0.1 * 0.2) - 0.1 * newton_schulz(gradient + 0.6 * buffer, 3)
        np.testing.assert_allclose(network[0].weight.detach().numpy().reshape(4, 27), weight, rtol=1e-9)


def test_all_other_parameters_step_as_by_sgd_of_torch():
    network = small_network()
    twin = copy.deepcopy(network)
    args = {"sgd_scale": 3.0, "sgd_momentum": 0.7}
    optimizer = build_optimizer(network, "MuonSGD", 0.1, 0.01, optimizer_args=args, norm_bias_scale=8)
    others = [twin[1].weight, twin[3].weight, twin[3].bias]
    groups = [{"params": others}, {"params": [twin[1].bias], "lr": 0.3 * 8, "weight_decay": 0.01 / 8}]
    sgd = torch.optim.SGD(groups, lr=0.3, momentum=0.7, nesterov=True, weight_decay=0.01)
    for seed in range(3):
        for each, stepped in ((network, optimizer), (twin, sgd)):
            give_gradients(each, seed)
            stepped.step()
    for name, parameter in list(network.named_parameters())[1:]:
        torch.testing.assert_close(parameter, twin.get_parameter(name), rtol=1e-12, atol=1e-12)


def test_a_loaded_state_goes_on_with_the_same_bits():
    network = small_network()
    optimizer = MuonSGD(network.parameters(), lr=0.1)
    give_gradients(network, 0)
    optimizer.step()
    twin = copy.deepcopy(network)
    resumed = MuonSGD(twin.parameters(), lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, stepped in ((network, optimizer), (twin, resumed)):
        give_gradients(each, 1)
        stepped.step()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name))


def test_a_parameter_without_a_gradient_stays_and_a_closure_is_called():
    network = small_network()
    before = network[0].weight.detach().clone()
    assert MuonSGD(network.parameters(), lr=0.1).step(lambda: 7.0) == 7.0
    assert torch.equal(network[0].weight, before)


@pytest.mark.parametrize(
    ("name", "value"), [("momentum", 1.0), ("sgd_momentum", -0.1), ("ns_steps", 0), ("sgd_scale", 0.0)]
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ConfigurationError, match=rf"model\.optimizer_args\.{name}: {value} is not allowed, give "):
        build_optimizer(small_network(), "MuonSGD", 0.1, 0.0, optimizer_args={name: value})

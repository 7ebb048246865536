"""Synchronised batch norm and buffers that agree, with gloo ranks in forked processes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from support import TINY_NETWORK
from timm.layers import BatchNormAct2d
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import Tensor, nn

from cifar_resnets.callbacks.sync_buffers import AgreeingBuffers, share_buffers
from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.digits import Digits
from cifar_resnets.distributed.sync_batchnorm import BatchNormSync
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.training.schedules import Constant

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread")]

TIMEOUT = timedelta(seconds=60)  # ranks that wait for each other in vain end with an error


def on_ranks(num: int, function: Callable[[], Any], folder: Path) -> list[Any]:
    """What a function returns on each of several ranks."""
    torch.multiprocessing.start_processes(_rank, (num, function, folder), nprocs=num, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(num)]


def _rank(rank: int, num: int, function: Callable[[], Any], folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=num, timeout=TIMEOUT)
    torch.save(function(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def synchronised(network: nn.Module, device: str = "cpu") -> nn.Module:
    """The network as the plugin leaves it when a Trainer has called it."""
    BatchNormSync().apply(_as_in_trainer(network, device))
    return network


def _as_in_trainer(network: nn.Module, device: str = "cpu") -> nn.Module:
    module = nn.Module()
    module.network = network
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))  # type: ignore[assignment]  # no module
    return module


def reverted(network: nn.Module) -> nn.Module:
    return BatchNormSync().revert(_as_in_trainer(network)).network  # type: ignore[return-value]  # a module


# The layer, against torch's own on the whole batch.


def activated(**arguments: Any) -> nn.Module:
    """A layer of timm's, whose activation and dropout come after it."""
    dropout = functools.partial(nn.Hardtanh, -0.5, 1.0)  # what comes first must come first, and nothing be random
    return BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=dropout, **arguments)


LAYERS = {
    "2d": (lambda: nn.BatchNorm2d(4), (3, 5)),
    "1d": (lambda: nn.BatchNorm1d(4), ()),
    "1d, sequences": (lambda: nn.BatchNorm1d(4), (6,)),
    "3d": (lambda: nn.BatchNorm3d(4), (2, 3, 2)),
    "single pixels": (lambda: nn.BatchNorm2d(4), (1, 1)),
    "not affine": (lambda: nn.BatchNorm2d(4, affine=False), (3, 5)),
    "cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), (3, 5)),
    "no buffers": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (3, 5)),
    "other constants": (lambda: nn.BatchNorm2d(4, eps=0.1, momentum=0.7), (3, 5)),
    "activated": (activated, (3, 5)),
    "activated, not affine": (functools.partial(activated, affine=False), (3, 5)),
}
SHARES = [[4, 4], [5, 1], [1, 6, 2]]


def filled(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for tensor in [*layer.parameters(), *layer.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    return layer


def two_batches(num: int, size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Images and the gradients of what becomes of them."""
    generator = torch.Generator().manual_seed(num)
    draw = functools.partial(torch.randn, (num, 4, *size), generator=generator, dtype=torch.float64)
    return [((draw() * 3 + 2).to(dtype), draw().to(dtype)) for _ in range(2)]


def trained(layer: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """All that comes out of two steps: what the layer makes of the images, gradients and buffers."""
    found = {}
    for step, (images, gradients) in enumerate(batches):
        images = images.clone().requires_grad_()
        normalised = layer(images)
        normalised.backward(gradients)
        assert images.grad is not None
        found |= {f"out {step}": normalised.detach(), f"in {step}": images.grad}
    found |= {name: value.grad for name, value in layer.named_parameters() if value.grad is not None}
    return found | dict(layer.named_buffers())


def on_this_rank(make: Callable[[], nn.Module], size: tuple[int, ...], shares: list[int]) -> dict[str, Tensor]:
    start, share = sum(shares[: dist.get_rank()]), shares[dist.get_rank()]
    mine = [tuple(part[start : start + share] for part in batch) for batch in two_batches(sum(shares), size)]
    return trained(synchronised(filled(make())), mine)  # type: ignore[arg-type]  # pairs


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_ranks_do_together_what_batch_norm_does_alone(tmp_path, kind, shares):
    make, size = LAYERS[kind]
    alone = trained(filled(make()), two_batches(sum(shares), size))
    ranks = on_ranks(len(shares), functools.partial(on_this_rank, make, size, shares), tmp_path)
    for name, value in alone.items():
        parts = [rank[name] for rank in ranks]
        if name.startswith(("out", "in")):
            found = torch.cat(parts)
        elif name in ("weight", "bias"):  # DistributedDataParallel adds them up
            found = torch.stack(parts).sum(dim=0)
        else:
            assert all(torch.equal(part, parts[0]) for part in parts)
            found = parts[0]
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    assert {"out 1", "in 1"} < alone.keys()


def beside_a_large_mean() -> dict[str, Tensor]:
    images = far_out()[dist.get_rank() :: 2]
    layer = synchronised(nn.BatchNorm2d(4))
    return {"out": layer(images).detach(), **dict(layer.named_buffers())}


def far_out() -> Tensor:
    """Images whose variance, 1, is lost as a difference of squares in float32."""
    return torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 30_000


def test_a_large_mean_costs_no_precision(tmp_path):
    ranks = on_ranks(2, beside_a_large_mean, tmp_path)
    images = far_out().double()
    exact = nn.BatchNorm2d(4).double()
    expected = exact(images)
    for rank, found in enumerate(ranks):
        assert found["out"].dtype == found["running_var"].dtype == torch.float32
        # the mean itself has steps of 0.002 there
        torch.testing.assert_close(found["out"].double(), expected[rank::2], rtol=0, atol=0.003)
        torch.testing.assert_close(found["running_var"].double(), exact.running_var, rtol=1e-5, atol=0)
    naive = (far_out() ** 2).mean((0, 2, 3)) - far_out().mean((0, 2, 3)) ** 2
    assert (naive - 1).abs().max() > 1  # what the two above would show


def in_bfloat16() -> tuple[Tensor, Tensor]:
    ((images, _), _) = two_batches(8, (3, 5), torch.bfloat16)
    layer = synchronised(nn.BatchNorm2d(4))
    with torch.autocast("cpu", torch.bfloat16):
        return layer(images[dist.get_rank() :: 2]).detach(), layer.running_var


def test_half_precision_goes_in_and_out_and_is_summed_in_more(tmp_path):
    ranks = on_ranks(2, in_bfloat16, tmp_path)
    ((images, _), _) = two_batches(8, (3, 5), torch.bfloat16)
    alone = nn.BatchNorm2d(4)
    expected = alone(images.float())
    for rank, (found, variance) in enumerate(ranks):
        assert (found.dtype, variance.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(found.float(), expected[rank::2], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(variance, alone.running_var, rtol=1e-5, atol=0)


def evaluated_by_one() -> tuple[Tensor, str]:
    layer = synchronised(filled(activated())).eval()
    ((images, _), _) = two_batches(8, (3, 5))
    # the other rank takes no part: a layer that waited for it would never end
    return (layer(images) if dist.get_rank() else images), str(layer.num_batches_tracked)


def test_an_evaluation_waits_for_nobody(tmp_path):
    _, (found, steps) = on_ranks(2, evaluated_by_one, tmp_path)
    ((images, _), _) = two_batches(8, (3, 5))
    assert torch.equal(found, filled(activated()).eval()(images))
    assert steps == "tensor(0)"


# Whole networks.


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", timm.list_models("cifar_*"))
def test_every_network_keeps_its_layers_and_its_keys(name):
    network = timm.create_model(name)
    layers, keys = [(id(each), type(each)) for each in network.modules()], list(network.state_dict())
    assert synchronised(network) is network
    changed = _batch_norms(network)
    assert changed and all(type(each).__name__ == "SynchronisedBatchNorm2d" for each in changed)
    assert list(network.state_dict()) == keys
    assert reverted(network) is network
    assert [(id(each), type(each)) for each in network.modules()] == layers


# of ours, and of timm's with its BatchNormAct2d and without
SOME_OF_EACH = [
    *("cifar_resnet20", "cifar_preact_resnet110", "cifar_custom_resnet", "cifar_resnet56_depthwise"),
    *("test_efficientnet", "test_resnet", "test_byobnet", "test_coatnet", "test_maxvit"),
    *("regnetx_002", "mobilenetv3_small_050", "ghostnet_050"),
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", SOME_OF_EACH)
def test_a_network_computes_the_same_on_one_rank_before_and_after(name, device):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7)
    images = torch.randn(2, 3, *[8 if name.startswith("cifar_") else 160] * 2)
    for layer in _batch_norms(network):
        layer.momentum = 1.0  # statistics of the only batch: a deep network overflows with those it begins with
    before, keys = copy.deepcopy(network), list(network.state_dict())
    synchronised(network, device)
    assert list(network.state_dict()) == keys
    changed = _batch_norms(network)
    assert changed and all(isinstance(each, nn.SyncBatchNorm) is (device == "cuda") for each in changed)
    check_same(network, before, images)
    check_same(reverted(network), before, images)
    assert [type(each) for each in network.modules()] == [type(each) for each in before.modules()]


def check_same(network: nn.Module, other: nn.Module, images: Tensor) -> None:
    for training in (True, False):
        outputs = []
        for each in (network, other):
            torch.manual_seed(3)  # of dropout and stochastic depth
            outputs.append(each.train(training)(images))
        assert torch.equal(*outputs)
        pairs = zip(network.buffers(), other.buffers(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)


def test_a_layer_with_a_forward_of_its_own_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), SplitBatchNorm2d(4))
    with pytest.raises(ConfigurationError, match=r"^trainer\.sync_batchnorm: network\.1 is a SplitBatchNorm2d"):
        synchronised(network)


def test_layers_that_are_synchronised_already_are_left_alone():
    network = nn.Sequential(nn.SyncBatchNorm(4), nn.BatchNorm2d(4))
    once = [type(each) for each in synchronised(network)]  # type: ignore[attr-defined]  # a sequence
    assert once[0] is nn.SyncBatchNorm and once[1] is not nn.BatchNorm2d
    assert [type(each) for each in synchronised(network)] == once  # type: ignore[attr-defined]  # a sequence
    assert [type(each) for each in reverted(network)] == [nn.SyncBatchNorm, nn.BatchNorm2d]  # type: ignore[attr-defined]  # a sequence


# What the Trainer does with the plugin: these notice when a new version of Lightning does otherwise.


def module(**changes: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(Digits().class_names, **{"network_args": TINY_NETWORK, "lr": 0.05} | changes)


def trainer(*callbacks: pl.Callback, ranks: int = 2, **changes: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "max_epochs": 1}
    fork = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=TIMEOUT)
    strategy = {"strategy": fork, "devices": ranks} if ranks > 1 else {"devices": 1}
    return pl.Trainer(callbacks=list(callbacks), **quiet | strategy | changes)


def digits() -> Digits:
    """Five batches of 40 images an epoch."""
    return Digits(batch_size=40, num_train=200)


class Noting(pl.Callback):
    """Keeps what a function says in a hook, on each rank; the newest counts."""

    def __init__(self, folder: Path, hook: str, function: Callable[[pl.Trainer, ImageClassifier], Any]) -> None:
        self.folder, self.function = folder, function
        setattr(self, hook, self._note)

    def _note(self, trainer: pl.Trainer, pl_module: ImageClassifier, *_: Any) -> None:
        torch.save(self.function(trainer, pl_module), self.folder / f"{trainer.global_rank}.noted")

    def noted(self, ranks: int = 2) -> list[Any]:
        """What each rank has noted."""
        return [torch.load(self.folder / f"{rank}.noted", weights_only=False) for rank in range(ranks)]


def kinds(trainer: pl.Trainer, module: ImageClassifier) -> list[str]:
    return sorted({type(each).__name__ for each in _batch_norms(module)})


@pytest.mark.parametrize(
    ("ranks", "found"), [(1, ["BatchNorm2d"]), (2, ["SynchronisedBatchNorm2d"])], ids=["one rank", "two ranks"]
)
def test_the_trainers_flag_takes_the_plugin(tmp_path, ranks, found):
    note, network = Noting(tmp_path, "on_train_end", kinds), module()
    run = trainer(note, ranks=ranks, sync_batchnorm=True, plugins=[BatchNormSync()])
    run.fit(network, digits())
    assert note.noted(ranks) == [found] * ranks
    assert kinds(run, network) == ["BatchNorm2d"]


def test_layers_are_their_own_again_after_a_fit_in_this_process(tmp_path):
    note, network = Noting(tmp_path, "on_fit_end", kinds), module()
    run = trainer(note, sync_batchnorm=True, plugins=[BatchNormSync()])
    run.fit(network, digits())
    assert note.noted() == [["BatchNorm2d"]] * 2


def test_a_synchronised_fit_is_saved_loaded_tested_and_resumed(tmp_path):
    # a low rate: with a high one, differences of rounding grow to more than the tolerance in an epoch
    steady = functools.partial(module, schedule=Constant(), lr=0.003)
    arguments = {"sync_batchnorm": True, "plugins": [BatchNormSync()]}
    whole, saver = steady(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(saver, enable_checkpointing=True, max_epochs=2, **arguments).fit(whole, digits())
    checkpoint = {"ckpt_path": tmp_path / "epoch=0.ckpt", "weights_only": True}
    assert list(torch.load(checkpoint["ckpt_path"], weights_only=True)["state_dict"]) == list(steady().state_dict())
    one, two = (
        trainer(ranks=ranks, **arguments).test(steady(), digits(), verbose=False, **checkpoint) for ranks in (1, 2)
    )
    assert one[0] == pytest.approx(two[0], nan_ok=True)
    for ranks, tolerance in ((2, 0), (1, 1e-4)):
        again = steady()
        trainer(saver, ranks=ranks, enable_checkpointing=True, max_epochs=2, **arguments).fit(
            again, digits(), **checkpoint
        )
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], value, rtol=tolerance, atol=tolerance)


# Buffers that agree.


class Mixed(nn.Module):
    """Buffers of many types, shapes and layouts, different on each rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        for index, dtype in enumerate(
            (torch.bool, torch.float64, torch.int64, torch.bfloat16, torch.complex64, torch.uint8, torch.float32)
        ):
            self.register_buffer(f"of_{index}", torch.arange(3).add(rank).to(dtype))
            self.register_buffer(f"scalar_{index}", torch.tensor(rank).to(dtype))
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).add(rank).t())
        self.register_buffer("kept_out", torch.full((2,), float(rank)), persistent=False)
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("nan", torch.tensor([float("nan"), -0.0]) * (1 - rank))
        self.weight = nn.Parameter(torch.tensor(float(rank)))


def after_sharing() -> dict[str, Any]:
    mixed = Mixed(dist.get_rank())
    places = [buffer.data_ptr() for buffer in mixed.buffers()]
    share_buffers(mixed)
    same = places == [buffer.data_ptr() for buffer in mixed.buffers()]
    return {"buffers": dict(mixed.named_buffers()), "same": same, "weight": mixed.weight.item()}


def test_buffers_of_any_kind_become_those_of_rank_0_in_their_place(tmp_path):
    expected = dict(Mixed(0).named_buffers())
    for rank, found in enumerate(on_ranks(3, after_sharing, tmp_path)):
        assert found["same"] and found["weight"] == rank
        for name, value in expected.items():
            assert found["buffers"][name].dtype == value.dtype
            torch.testing.assert_close(found["buffers"][name], value, rtol=0, atol=0, equal_nan=True)


def test_one_process_shares_with_nobody():
    mixed = Mixed(5)
    share_buffers(mixed)
    assert mixed.of_2.tolist() == [5, 6, 7]


def means(trainer: pl.Trainer, module: ImageClassifier) -> tuple[int, Tensor, Tensor]:
    """The step, what the ranks have learnt of their images, and what the network says when it is called directly."""
    was_training = module.network.training
    module.network.eval()
    with torch.no_grad():
        logits = module.network(torch.ones(2, 3, 8, 8))
    module.network.train(was_training)
    return trainer.global_step, module.network.bn1.running_mean.clone(), logits


class Saving(pl.Callback):
    """Saves in the middle of an epoch, after so many steps."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("agreeing", [False, True])
@pytest.mark.parametrize(("hook", "step"), [("on_validation_start", 5), ("on_save_checkpoint", 3)])
def test_ranks_agree_before_a_validation_and_a_checkpoint(tmp_path, hook, step, agreeing):
    note = Noting(tmp_path, hook, means)
    callbacks = [AgreeingBuffers(), note] if agreeing else [note]
    trainer(*callbacks, Saving(tmp_path / "a.ckpt", 3)).fit(module(), digits())
    (first, mean, logits), (second, other_mean, other_logits) = note.noted()
    assert first == second == step
    assert torch.equal(mean, other_mean) is agreeing
    assert torch.equal(logits, other_logits) is agreeing
    if hook == "on_save_checkpoint":
        saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(saved["network.bn1.running_mean"], mean)


class Disagreeing(pl.Callback):
    """Gives each rank means of its own where an evaluation starts."""

    def on_validation_start(self, trainer, pl_module) -> None:
        pl_module.network.bn1.running_mean.fill_(trainer.global_rank + 0.25)

    on_test_start = on_predict_start = on_validation_start


@pytest.mark.parametrize("agreeing", [False, True])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_ranks_agree_before_an_evaluation_by_itself(tmp_path, stage, agreeing):
    hook = {"validate": "on_validation_end"}.get(stage, f"on_{stage}_end")
    note = Noting(tmp_path, hook, means)
    run = trainer(Disagreeing(), *[AgreeingBuffers()] * agreeing, note)
    quiet = {"return_predictions": False} if stage == "predict" else {"verbose": False}
    getattr(run, stage)(module(), digits(), **quiet)
    found = [mean[0].item() for _, mean, _ in note.noted()]
    assert found == ([0.25, 0.25] if agreeing else [0.25, 1.25])


def test_ranks_agree_before_the_sanity_check(tmp_path):
    note = Noting(tmp_path, "on_sanity_check_end", means)
    trainer(Disagreeing(), AgreeingBuffers(), note, num_sanity_val_steps=1).fit(module(), digits())
    assert [mean[0].item() for _, mean, _ in note.noted()] == [0.25, 0.25]


def whole_state(trainer: pl.Trainer, module: ImageClassifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("accumulated", [1, 2])
def test_neither_checkpoints_nor_evaluations_change_a_bit_of_the_training(tmp_path, accumulated):
    found = []
    for callbacks, validate in (
        ([], False),
        ([AgreeingBuffers(), *(Saving(tmp_path / "a.ckpt", step) for step in (1, 3, 4))], True),
    ):
        note = Noting(tmp_path, "on_train_end", whole_state)
        how_often = {"val_check_interval": 2} if validate else {"limit_val_batches": 0}
        run = trainer(*callbacks, note, max_epochs=2, accumulate_grad_batches=accumulated, **how_often)
        run.fit(module(), digits())
        found.append(note.noted())
    (plain, _), (interrupted, _) = found
    assert all(torch.equal(value, interrupted[name]) for name, value in plain.items())
    parameters = [name for name, _ in module().named_parameters()]
    assert all(torch.equal(each[1][name], plain[name]) for each in found for name in parameters)

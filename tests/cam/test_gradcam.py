"""Heatmaps: against pytorch-grad-cam, against what is known to decide a class, and without a trace in the network."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
import weakref

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from networks import randomise
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.stats import spearmanr
from torch import Tensor, nn

import cifar_resnets.models  # noqa: F401  registers the networks
from cifar_resnets.cam.feature_maps import choose_layer
from cifar_resnets.cam.gradcam import METHODS, heatmaps

pytestmark = pytest.mark.usefixtures("one_thread")

SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 12, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}
VIT = {"img_size": 32, "patch_size": 4, "depth": 3, "num_classes": 10}
BOTH = pytest.mark.parametrize("method", ["gradcam", "layercam"])  # our own code, and the library


def tiny(name: str = "cifar_resnet20", **other) -> nn.Module:
    torch.manual_seed(0)
    small = {"depths": (1, 1, 1)} if name.startswith(("cifar_resnet", "cifar_preact")) else {}
    return randomise(timm.create_model(name, **small, **other)).eval()


def batch(num: int = 3, height: int = 32, width: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 3, height, width, generator=generator)
    return images, torch.randint(0, 10, (num, 2), generator=generator)


def by_library(network: nn.Module, images: Tensor, classes: Tensor, layers: list[str], reshape=None) -> Tensor:
    network = copy.deepcopy(network)
    cam = GradCAM(network, [network.get_submodule(name) for name in layers], reshape)
    columns = [cam(images, [ClassifierOutputTarget(int(label)) for label in column]) for column in classes.T]
    return torch.from_numpy(np.stack(columns, axis=1))


# What they show.


@pytest.mark.parametrize(
    ("network", "layers", "reshape"),
    [
        (("cifar_resnet20", {}), ["layer3"], None),
        (("cifar_resnet20", {}), ["layer1", "layer2", "layer3"], None),
        (("cifar_preact_resnet110", {}), ["act1"], None),
        (("cifar_preact_resnet110", {}), ["layer1.0.conv2", "layer2"], None),
        (("cifar_custom_resnet", {}), ["layer2"], None),
        (("swin_tiny_patch4_window7_224", SWIN), ["layers.1"], lambda maps: maps.permute(0, 3, 1, 2)),
        (
            ("vit_tiny_patch16_224", VIT),
            ["blocks.1"],
            lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (8, 8)),
        ),
    ],
    ids=["resnet", "several", "preact", "several_preact", "custom", "swin", "vit"],
)
def test_equals_the_library(network, layers, reshape) -> None:
    network = tiny(network[0], **network[1])
    images, classes = batch()
    expected = by_library(network, images, classes, layers, reshape)
    assert (expected.amax(dim=(-2, -1)) > 0.9).sum() >= 3, "flat maps would show nothing"
    torch.testing.assert_close(heatmaps(network, images, classes, layers=layers), expected, rtol=0, atol=1e-4)


def test_equals_the_library_for_images_that_are_not_square() -> None:
    network, (images, classes) = tiny(), batch(3, 40, 24)
    expected = by_library(network, images, classes, ["layer2"])
    assert expected.shape == (3, 2, 40, 24)
    torch.testing.assert_close(heatmaps(network, images, classes, layers=["layer2"]), expected, rtol=0, atol=1e-4)


def test_equals_weights_of_the_classifier_times_features() -> None:
    """Average pooling and a linear layer: Grad-CAM is the class-activation map of Zhou et al. (2016)."""
    network, (images, classes) = tiny(), batch()
    with torch.no_grad():
        features = network.forward_features(images)
    maps = torch.stack([torch.einsum("nc,nchw->nhw", network.fc.weight[column], features) for column in classes.T], 1)
    maps = maps.clamp(min=0)
    maps = F.interpolate(maps / maps.amax((-2, -1), keepdim=True).clamp(min=1e-9), size=32, mode="bilinear")
    maps = (maps - maps.amin((-2, -1), keepdim=True)).detach()
    expected = maps / maps.amax((-2, -1), keepdim=True).clamp(min=1e-9)
    torch.testing.assert_close(heatmaps(network, images, classes), expected, rtol=0, atol=1e-3)


def planted(num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a coloured square of 6 x 6 pixels well within a quarter; its colour, or that there is none, decides.

    Without images that have none, one of the classes could be known by what is not there.
    """
    images = 0.3 * torch.randn(num, 3, 32, 32, generator=generator)
    labels, quarters = (torch.randint(0, 4, (num,), generator=generator) for _ in range(2))
    offsets = torch.randint(3, 8, (num, 2), generator=generator)
    for image, label, quarter, (row, column) in zip(images, labels, quarters, offsets, strict=True):
        row, column = row + 16 * (quarter // 2), column + 16 * (quarter % 2)
        if label < 3:
            image[label, row : row + 6, column : column + 6] += 2
    return images, labels, quarters


@pytest.fixture(scope="module")
def trained(one_thread: None) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network that has learnt them in a few seconds, and images with a square that it has not seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("cifar_resnet20", depths=(1, 1, 1), num_classes=4)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    images, labels, _ = planted(40 * 16, generator)
    for some, targets in zip(images.split(16), labels.split(16), strict=True):
        F.cross_entropy(network(some), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    images, labels, quarters = planted(96, generator)
    kept = labels < 3
    return network.eval(), images[kept], labels[kept], quarters[kept]


def test_the_heat_lies_where_the_deciding_patch_is(trained) -> None:
    """Tried with the seeds 0 to 9: 0.90 to 0.92 of the mass on average; a quarter would be chance."""
    network, images, labels, quarters = trained
    predicted = network(images).argmax(dim=1)
    assert (predicted == labels).float().mean() > 0.95
    maps = heatmaps(network, images, predicted[:, None])[:, 0]
    mass = maps.unflatten(1, (2, 16)).unflatten(3, (2, 16)).sum(dim=(2, 4)).flatten(1)  # (n, 32, 32) -> (n, 4)
    assert (mass.gather(1, quarters[:, None])[:, 0] / mass.sum(dim=1)).mean() >= 0.8


def test_the_heat_depends_on_the_weights(trained) -> None:
    """Adebayo et al. (2018), "Sanity checks for saliency maps", section 3: random weights, other maps."""
    network, images, labels, _ = trained
    torch.manual_seed(1)
    untrained = timm.create_model("cifar_resnet20", depths=(1, 1, 1), num_classes=4).eval()
    maps = [heatmaps(each, images, labels[:, None]).flatten(1).numpy() for each in (network, untrained, network)]
    alive = (maps[0].max(axis=1) > 0) & (maps[1].max(axis=1) > 0)  # no rank among zeros
    assert alive.sum() >= 20
    correlations = [spearmanr(one, other).statistic for one, other in zip(maps[0][alive], maps[1][alive], strict=True)]
    assert np.mean(correlations) < 0.5
    np.testing.assert_array_equal(maps[0], maps[2])


def test_each_class_has_its_own_map_and_each_image_too() -> None:
    network, (images, classes) = tiny(), batch()
    maps = heatmaps(network, images, classes)
    for index in range(3):
        for column in range(2):
            alone = heatmaps(network, images[index : index + 1], classes[index : index + 1, column : column + 1])
            torch.testing.assert_close(alone[0, 0], maps[index, column], rtol=0, atol=1e-4)
    assert not torch.allclose(maps[:, 0], maps[:, 1], atol=0.1)


# What they leave behind.


def snapshot(network: nn.Module) -> list:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        [module.training for module in network.modules()],
        [
            (id(p), p.requires_grad, None if p.grad is None else p.grad.numpy(force=True).copy())
            for p in network.parameters()
        ],
        {name: value.numpy(force=True).copy() for name, value in network.state_dict().items()},
        [len(getattr(module, name)) for module in network.modules() for name in hooks],
        [sorted(vars(module)) for module in network.modules()],
        torch.get_rng_state().numpy(force=True).copy(),
        np.random.get_state()[1:3],
        random.getstate(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    ]


def used() -> nn.Module:
    """A network in mixed modes, partly frozen, with a gradient and a hook."""
    network = tiny().train()
    network.layer1.eval()
    network.layer3[0].bn1.eval()
    network.layer2.requires_grad_(False)
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    network.layer1.register_forward_hook(lambda *_: None)
    return network


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "finercam", "kpcacam"])
@pytest.mark.parametrize("layers", [None, ["layer2", "layer3"]], ids=["chosen", "named"])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_nothing_changes(method, layers, mode) -> None:
    network, (images, classes) = used(), batch()
    with mode():
        before = snapshot(network)
        heatmaps(network, images, classes, method, layers)
        after = snapshot(network)
    np.testing.assert_equal(after, before)
    assert network.fc.bias.grad is None


@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_nothing_changes_after_an_error(method) -> None:
    network, (images, classes) = used(), batch()
    before = snapshot(network)
    with pytest.raises(ValueError, match="classes"):
        heatmaps(network, images, classes + 10, method)
    np.testing.assert_equal(snapshot(network), before)


class Drawing(nn.Module):
    """Draws random numbers, counts in a buffer and keeps what it sees, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        self.register_buffer("count", torch.zeros(()))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(images)
        np.random.rand(), random.random(), torch.rand(1)
        return self.body(images)


@BOTH
def test_random_numbers_buffers_and_what_modules_remember(method) -> None:
    network, (images, classes) = Drawing(), batch()
    before = snapshot(network)
    heatmaps(network, images, classes, method)
    np.testing.assert_equal(snapshot(network), before)
    assert not network.seen


@pytest.mark.parametrize("method", ["gradcam", "layercam", "shapleycam", "ablationcam"])
def test_no_tensor_stays_behind(method) -> None:
    network, (images, classes) = tiny(widths=(4, 4, 4), stem_width=4), batch(1)
    made = []
    for name in ("conv1", "layer3", "fc"):
        hook = network.get_submodule(name).register_forward_hook
        hook(lambda module, inputs, output: made.append(weakref.ref(output)))
    maps = heatmaps(network, images, classes, method)
    assert not maps.requires_grad
    if method != "gradcam":
        gc.collect()  # what the library makes goes in cycles
    assert len(made) >= 3
    assert not any(reference() is not None for reference in made)


# Where they work.


@BOTH
@pytest.mark.parametrize("mode", ["inference", "no_grad", "autocast", "frozen", "channels_last", "bfloat16", "train"])
def test_the_same_wherever_it_is_called(method, mode) -> None:
    network, (images, classes) = tiny(), batch()
    expected = heatmaps(network, images, classes, method)
    context = contextlib.nullcontext()
    if mode == "inference":
        context = torch.inference_mode()
    elif mode == "no_grad":
        context = torch.no_grad()
    elif mode == "autocast":
        context = torch.autocast("cpu", torch.bfloat16)
    elif mode == "frozen":
        network.requires_grad_(False)
    elif mode == "channels_last":
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    elif mode == "bfloat16":
        network = network.bfloat16()
    elif mode == "train":
        network = network.train()
    with context:
        found = heatmaps(network, images.clone(), classes.clone(), method)
    assert not found.is_inference()
    assert found.dtype == torch.float32
    if mode == "bfloat16":  # 8 bits of each activation
        assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.98
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_gradients_go_on_after_a_call_within_autocast() -> None:
    """A weight that autocast had cached without a gradient would never get one."""
    network, (images, classes) = tiny().train(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        heatmaps(network, images, classes)
        network(images).float().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@BOTH
@pytest.mark.parametrize("how", ["wrapped", "in_place", "inner"])
def test_nothing_is_compiled(method, how) -> None:
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    network, (images, classes) = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), *head), batch()
    expected = heatmaps(network, images, classes, method, ["1"])
    if how == "wrapped":
        network = torch.compile(network, backend=backend)
    elif how == "in_place":
        network.compile(backend=backend)
    else:
        network[0] = torch.compile(network[0], backend=backend)
    torch.testing.assert_close(heatmaps(network, images, classes, method, ["1"]), expected)
    assert choose_layer(network, images) == "1"
    assert not compiled
    network(images)
    assert compiled, "the backend is never called, so the test shows nothing"


@BOTH
def test_blocks_that_are_computed_again_in_the_backward_pass(method) -> None:
    """Gradient checkpointing runs a layer's hooks a second time."""
    network, (images, classes) = tiny("vit_tiny_patch16_224", **VIT), batch()
    expected = heatmaps(network, images, classes, method)
    network.set_grad_checkpointing()
    torch.testing.assert_close(heatmaps(network, images, classes, method), expected)


class Awkward(nn.Module):
    """A layer that runs twice and returns a tuple, then an activation in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = Pair()
        self.act = nn.ReLU(inplace=in_place)
        self.fc = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        features, mean = self.twice(self.stem(images))
        features, mean = self.twice(self.act(features))
        return self.fc((self.act(features) + mean[:, :, None, None]).mean(dim=(2, 3)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(features)
        return features, features.mean(dim=(2, 3))


@BOTH
def test_layers_that_run_twice_return_tuples_and_are_changed_in_place(method) -> None:
    torch.manual_seed(3)
    network, (images, classes) = Awkward(in_place=False).eval(), batch(4)
    changing = Awkward(in_place=True)
    changing.load_state_dict(network.state_dict())
    maps = heatmaps(network, images, classes, method, ["twice"])
    torch.testing.assert_close(heatmaps(changing, images, classes, method, ["twice"]), maps)
    with torch.no_grad():
        features, _ = network.twice(network.stem(images))
        features, _ = network.twice(network.act(features))  # (4, 8, 8, 8)
    features.requires_grad_()
    logits = network.fc(network.act(features).mean(dim=(2, 3)))
    logits.gather(1, classes[:, :1]).sum().backward()
    gradient, features = features.grad, features.detach()
    weights = gradient.mean(dim=(2, 3), keepdim=True) if method == "gradcam" else gradient.clamp(min=0)
    coarse = (weights * features).sum(dim=1).clamp(min=0)  # (4, 8, 8)
    assert coarse.amax() > 0
    resized = F.interpolate(coarse[:, None], size=32, mode="bilinear")[:, 0]
    for found, expected in zip(maps[:, 0], resized, strict=True):
        if expected.amax() > 0:
            assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.999


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_maps_and_says_nothing(method, capfd) -> None:
    network, (images, classes) = tiny(widths=(8, 8, 8), stem_width=8), batch(2)
    maps = heatmaps(network, images, classes, method)
    assert (maps.shape, maps.dtype, maps.device.type) == ((2, 2, 32, 32), torch.float32, "cpu")
    assert maps.isfinite().all() and maps.amin() == 0 and maps.amax() <= 1
    assert (maps.amax(dim=(-2, -1)) > 0.99).sum() >= 2, "flat maps"
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize("method", ["gradcam", "finercam", "hirescam"])
def test_two_classes(method) -> None:
    network = tiny(num_classes=2)
    assert heatmaps(network, batch()[0], torch.tensor([[0, 1]] * 3), method).amax() > 0.9


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "eigencam", "kpcacam"])
def test_numbers_that_are_not_finite(method) -> None:
    network, (images, classes) = tiny(widths=(4, 4, 4), stem_width=4), batch()
    images[1, 0, 5, 5] = torch.nan
    maps = heatmaps(network, images, classes, method, ["layer3"])
    assert not maps[1].any()
    assert maps[[0, 2]].any()
    torch.nn.init.constant_(network.fc.weight, torch.nan)
    assert not heatmaps(network, images, classes, method, ["layer3"]).any()


@BOTH
def test_a_class_that_nothing_speaks_for(method) -> None:
    network, (images, classes) = tiny(), batch()
    with torch.no_grad():
        network.fc.weight[classes[0, 0]] = 0
    assert not heatmaps(network, images[:1], classes[:1], method)[0, 0].any()


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_no_images_or_no_classes(shape) -> None:
    classes = torch.zeros(shape, dtype=torch.int64)
    assert heatmaps(tiny(), torch.zeros(shape[0], 3, 32, 32), classes).shape == (*shape, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gradcam2"}, "method: gradcam2 .*gradcam, gradcam\\+\\+, hirescam"),
        ({"classes": torch.tensor([[1, 10]] * 3)}, "classes: 10 .*0 to 9"),
        ({"classes": torch.tensor([[-1, 1]] * 3)}, "classes: -1 "),
        ({"classes": torch.tensor([1, 2, 3])}, "classes: .*int64 \\(3, k\\)"),
        ({"classes": torch.tensor([[1.0]] * 3)}, "classes: .*float32.*int64"),
        ({"layers": ["layer3", "layer9"]}, "layers: .*layer9"),
        ({"layers": ["fc"]}, "layers: fc .*no feature map"),
        ({"layers": ["global_pool"]}, "layers: global_pool .*no feature map"),
        ({"layers": []}, "layers: "),
        ({"layers": ["aside"]}, "layers: .*aside"),
    ],
)
@BOTH
def test_what_a_user_can_get_wrong(method, arguments, message) -> None:
    class Aside(nn.Module):
        """Looks at the images, and at something else that does not count."""

        def __init__(self) -> None:
            super().__init__()
            self.layer3 = nn.Conv2d(3, 4, 3)
            self.aside = nn.Conv2d(3, 4, 3)
            self.global_pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(4, 10)

        def forward(self, images: Tensor) -> Tensor:
            self.aside(images)
            return self.fc(self.global_pool(self.layer3(images)).flatten(1))

    images, classes = batch()
    arguments = {"classes": classes, "method": method, "layers": ["layer3"], **arguments}
    with pytest.raises(ValueError, match=message) as caught:
        heatmaps(Aside(), images, **arguments)
    assert "\n" not in str(caught.value)
    assert type(caught.value).__name__ == "ConfigurationError"

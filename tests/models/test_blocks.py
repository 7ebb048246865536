import pytest
import torch
from networks import randomise
from timm.layers import DropPath
from torch import nn

from cifar_resnets.errors import ConfigurationError
from cifar_resnets.models.blocks import BasicBlock, Bottleneck, PreActBlock, PreActBottleneck
from cifar_resnets.models.shortcuts import SHORTCUTS

BLOCKS = [BasicBlock, Bottleneck, PreActBlock, PreActBottleneck]
PRE_ACTIVATED = [PreActBlock, PreActBottleneck]
ORDERS = {
    BasicBlock: "conv1 bn1 act1 conv2 bn2 act2 drop_path shortcut",
    Bottleneck: "conv1 bn1 act1 conv2 bn2 act2 conv3 bn3 act3 drop_path shortcut",
    PreActBlock: "bn1 act1 conv1 bn2 act2 conv2 drop_path shortcut",
    PreActBottleneck: "bn1 act1 conv1 bn2 act2 conv2 bn3 act3 conv3 drop_path shortcut",
}


def without_residual(block):
    """Make the residual zero, so that the shortcut is seen alone."""
    last = max(name for name, module in block.named_children() if isinstance(module, nn.Conv2d))
    nn.init.zeros_(block.get_submodule(last).weight)
    if not block.pre_activated:
        norm = block.get_submodule(last.replace("conv", "bn"))
        nn.init.zeros_(norm.bias)
        nn.init.zeros_(norm.running_mean)
    return block.eval()


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("stride", "size"), [(1, (8, 8)), (2, (7, 10))])
def test_shapes(block, shortcut, stride, size):
    x = torch.randn(2, 8, *size)
    expected = (2, 12 * block.expansion, -(-size[0] // stride), -(-size[1] // stride))
    assert block(8, 12, stride, shortcut)(x).shape == expected


@pytest.mark.parametrize("block", BLOCKS)
def test_module_names(block):
    assert [name for name, _ in block(4, 4, 1, "A").named_children()] == ORDERS[block].split()


@pytest.mark.parametrize("block", [Bottleneck, PreActBottleneck])
def test_the_stride_is_on_the_3x3_convolution(block):
    built = block(16, 4, 2, "B")
    assert [conv.stride for conv in (built.conv1, built.conv2, built.conv3)] == [(1, 1), (2, 2), (1, 1)]
    assert [conv.kernel_size for conv in (built.conv1, built.conv2, built.conv3)] == [(1, 1), (3, 3), (1, 1)]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("is_first", [False, True])
def test_post_activated_blocks_rectify_the_sum(block, is_first):
    width = 8 // block.expansion
    x = torch.randn(2, 8, 4, 4)
    built = without_residual(randomise(block(8, width, 1, "A", is_first=is_first)))
    torch.testing.assert_close(built(x), x.relu())


@pytest.mark.parametrize("block", PRE_ACTIVATED)
@pytest.mark.parametrize(
    ("shortcut", "is_first", "activated"),
    [("A", False, False), ("A", True, True), ("B", False, False), ("B", True, True), ("C", False, True)],
)
def test_which_input_goes_to_the_shortcut(block, shortcut, is_first, activated):
    width = 8 // block.expansion
    x = torch.randn(2, 8, 4, 4)
    built = without_residual(randomise(block(8, width, 1, shortcut, is_first=is_first)))
    if shortcut == "C":
        nn.init.dirac_(built.shortcut[0].weight)
    expected = built.bn1(x).relu() if activated else x
    torch.testing.assert_close(built(x), expected)


@pytest.mark.parametrize("block", PRE_ACTIVATED)
def test_where_the_shape_changes_a_projection_sees_the_activated_input_and_zero_padding_the_raw_one(block):
    x = torch.randn(2, 8, 4, 4)
    projected = without_residual(randomise(block(8, 16, 2, "B")))
    torch.testing.assert_close(projected(x), projected.shortcut[0](projected.bn1(x).relu()))
    padded = without_residual(randomise(block(8, 16, 2, "A")))
    before = padded.shortcut[0].before
    torch.testing.assert_close(padded(x)[:, before : before + 8], x[..., ::2, ::2])


@pytest.mark.parametrize("block", BLOCKS)
def test_hooks_see_what_the_batch_norm_returned(block):
    built, seen = block(4, 4, 1, "A"), []
    built.bn1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    built(torch.randn(2, 4, 8, 8))
    assert seen[0].min() < 0


@pytest.mark.parametrize("block", BLOCKS)
def test_drop_path_leaves_out_the_residual_of_some_images(block):
    torch.manual_seed(0)
    built = block(64, 64 // block.expansion, 1, "A", drop_path=0.25)
    x = torch.rand(400, 64, 2, 2)  # nothing negative, so that a ReLU after the sum changes nothing
    alone = (built.train()(x) == x).flatten(1).all(dim=1)
    # five standard deviations of 400 throws
    assert alone.float().mean().item() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 400) ** 0.5)
    built.eval()
    assert not (built(x) == x).flatten(1).all(dim=1).any()
    assert torch.equal(built(x), built(x))


@pytest.mark.parametrize("block", BLOCKS)
def test_kept_residuals_are_scaled_up(block):
    torch.manual_seed(0)
    built = block(8, 8 // block.expansion, 1, "none", drop_path=0.5)
    seen = []
    built.drop_path.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    built.train()(torch.randn(16, 8, 4, 4))
    ((residual, kept),) = seen
    for image, result in zip(residual, kept, strict=True):
        assert torch.equal(result, 2 * image) or not result.any()


@pytest.mark.parametrize("block", BLOCKS)
def test_no_drop_path_unless_asked_for(block):
    assert not any(isinstance(module, DropPath) for module in block(4, 4, 1, "A").modules())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("unknown", ["shortcut", "convolution"])
def test_unknown_names_raise_one_line(block, unknown):
    arguments = {"shortcut": "A", "convolution": "regular"} | {unknown: "x"}
    with pytest.raises(ConfigurationError, match=f"^{unknown}='x' is unknown: use '.*'.*$"):
        block(4, 4, 1, **arguments)

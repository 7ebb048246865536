"""`cifar-resnets summary` as a user runs it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from support import Result

from cifar_resnets.cli.summary import build
from cifar_resnets.errors import ConfigurationError

LIGHT = """
import sys
from cifar_resnets.__main__ import main
main(["summary", "cifar_resnet20"])
assert "lightning" not in sys.modules
"""


def one_line(result: Result, status: int, *words: str) -> None:
    assert (result.status, result.err.count("\n")) == (status, 1), result.err
    assert all(word in result.err for word in words), result.err


@pytest.mark.process
def test_table_needs_no_lightning() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cifar_resnet20, images of 3 x 32 x 32")
    assert "269,722 parameters, 40,551,040 multiply-adds for one image" in lines
    assert done.stderr == ""


@pytest.mark.process
def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m cifar_resnets summary cifar_resnet110 --format csv | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("layer,type,kernel_size,")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        ("cifar_resnet18", None, (3, 32, 32)),
        ("resnet18", None, (3, 224, 224)),
        ("torchvision/resnet18", None, (3, 224, 224)),
        ("timm/resnet18", "64", (3, 64, 64)),
        ("squeezenet1_1", "96x64", (3, 96, 64)),
        ("cifar_resnet20", "3x16x24", (3, 16, 24)),
    ],
)
def test_networks_and_sizes(
    cli: Callable[..., Result], network: str, size: str | None, expected: tuple[int, ...]
) -> None:
    result = cli("summary", network, "--format", "json", *(["--input_size", size] if size else []))
    assert result.status == 0, result.err
    summary = json.loads(result.out)
    assert tuple(summary["input_size"]) == expected
    assert summary["layers"][0]["image_size_in"] == list(expected[1:])
    assert summary["parameters"] == sum(p.numel() for p in build(network).parameters())


def test_arguments_of_the_network(cli: Callable[..., Result]) -> None:
    args = ["--network-args", "{shortcut: B, in_chans: 1}", "--num-classes", "7"]
    result = cli("summary", "cifar_resnet20", "--format", "csv", *args)
    rows = {row["layer"]: row for row in csv.DictReader(io.StringIO(result.out))}
    assert rows["conv1"]["in_channels"] == "1"
    assert rows["layer2.0.shortcut.0"]["type"] == "Conv2d"
    assert rows["fc"]["out_channels"] == "7"


def test_the_arithmetic_of_a_training(cli: Callable[..., Result]) -> None:
    # Jordan states 0.36 PFLOP for 9.9 epochs of this network, and 0.29 for 8
    for epochs, stated in (("9.9", 0.36), ("8", 0.29)):
        out = cli("summary", "cifar_speednet", "--epochs", epochs).out
        found = re.search(rf"note: {epochs} epochs of 50,000 images take ([\d.]+) PFLOP", out)
        assert found and float(found[1]) == pytest.approx(stated, rel=0.03)
    result = cli("summary", "cifar_resnet20", "--epochs", "10", "--train_images", "45000", "--format", "json")
    (note,) = json.loads(result.out)["notes"]
    assert (
        note == f"10 epochs of 45,000 images take {6 * 40_551_040 * 450_000 / 1e15:.3g} PFLOP (multiply-adds x 2 x 3)"
    )
    result = cli("summary", "cifar_resnet20", "--epochs", "1", "--format", "csv")
    assert "PFLOP" in result.err and "PFLOP" not in result.out
    one_line(cli("summary", "cifar_resnet20", "--epochs", "0"), 2, "--epochs", "above 0")


def test_verify(cli: Callable[..., Result]) -> None:
    small = "{depths: [1, 1], widths: [8, 16], stem_width: 8}"
    result = cli("summary", "cifar_resnet20", "--network_args", small, "--verify")
    assert result.status == 0, result.err
    assert "theory and measurement agree in 10 of 10 layers measured" in result.out
    assert " 9 ok" in result.out


def test_a_disagreement_ends_with_status_1(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    import cifar_resnets.cli.summary
    from cifar_resnets.receptive_field.measured import Measurement

    wrong = Measurement("conv1", ((0, 2), (0, 2)), ((0, 3), (0, 2)), (32, 32))
    monkeypatch.setattr(cifar_resnets.cli.summary, "verify", lambda *_: {"conv1": wrong})
    result = cli("summary", "cifar_resnet20", "--verify")
    assert result.status == 1
    assert "4x3 WRONG" in result.out
    assert "agree in 0 of 1" in result.out


def test_plot(cli: Callable[..., Result], image_folder: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("cifar_resnet20").state_dict(), tmp_path / "weights.pt")
    for name, args in (("digits.png", []), ("own.png", ["--images", str(image_folder), "--weights", "weights.pt"])):
        result = cli("summary", "cifar_resnet20", "--plot", name, "--layers", "conv1,layer2", *args)
        assert result.status == 0, result.err
        assert result.err == f"written: {name}\n"
        assert Image.open(tmp_path / name).width > 500


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 2, ("network",)),
        (["cifar_resnet21"], 2, ("cifar_resnet21", "did you mean", "cifar_resnet20")),
        (["torchvision/cifar_resnet20"], 2, ("torchvision/cifar_resnet20",)),
        (["cifar_resnet20", "--input_size", "a"], 2, ("--input_size", "'a'")),
        (["cifar_resnet20", "--input_size", "0"], 2, ("input_size",)),
        (["cifar_resnet20", "--input_size", "1x2x3x4"], 2, ("input_size",)),
        (["cifar_resnet20", "--input_size", "4x32x32"], 2, ("conv1", "4 channels")),
        (["vgg11", "--input_size", "16"], 2, ("features", "16x16")),
        (["cifar_resnet20", "--network_args", "B"], 2, ("--network_args",)),
        (["cifar_resnet20", "--network_args", "{shortcuts: B}"], 2, ("shortcuts",)),
        (["cifar_resnet20", "--format", "xml"], 2, ("--format", "xml")),
        (["cifar_resnet20", "--formt", "csv"], 2, ("--formt",)),
        (["swin_tiny_patch4_window7_224"], 2, ("layers.0.blocks.0.attn",)),
        (["cifar_resnet20", "--plot", "fields.doc"], 2, ("--plot", ".png")),
        (["cifar_resnet20", "--plot", "nowhere/fields.png"], 6, ("--plot", "nowhere")),
        (["cifar_resnet20", "--plot", "fields.png", "--images", "nowhere"], 3, ("--images", "nowhere")),
        (["cifar_resnet20", "--plot", "fields.png", "--layers", "layer7"], 2, ("layer7",)),
        (["cifar_resnet20", "--plot", "fields.png", "--weights", "nowhere.pt"], 4, ("nowhere.pt",)),
    ],
)
def test_one_line_for_what_is_wrong(
    cli: Callable[..., Result], args: list[str], status: int, words: tuple[str, ...]
) -> None:
    one_line(cli("summary", *args), status, *words)


def test_broken_image(cli: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"no image")
    result = cli("summary", "cifar_resnet20", "--plot", "fields.png", "--images", "images")
    one_line(result, 3, "--images")


def test_numbers_are_read_as_in_a_recipe() -> None:
    assert build("resnet10t", network_args="{drop_path_rate: 1e-1}")


def test_a_function_that_takes_the_number_of_classes_needs_it() -> None:
    assert build("timm.layers.classifier:NormMlpClassifierHead", 5, "{in_features: 3}")
    with pytest.raises(ConfigurationError, match="argument: 'num_classes'; give --num_classes$"):
        build("timm.layers.classifier:NormMlpClassifierHead", None, "{in_features: 3}")

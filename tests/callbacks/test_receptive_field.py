"""The figure of receptive fields: in the event file after a fit, without a trace in the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnets.callbacks.receptive_field import ReceptiveField

ROOT = Path(__file__).parents[2]
SMALL = [
    *("fit", "-c", str(ROOT / "configs/recipes/quickstart.yaml"), "-c", str(ROOT / "configs/hardware/cpu.yaml")),
    *("--model.network_args", "{depths: [1, 1], widths: [16, 32]}", "--data.num_train", "200"),
    *("--trainer.max_epochs", "1", "--explain", "null"),
]
ON = ["--trainer.callbacks+", "ReceptiveField", "--trainer.callbacks.num_images", "4"]


def test_adds_a_figure_and_changes_nothing(cli: Callable[..., Result]) -> None:
    for args in (["--name", "with", *ON], ["--name", "without"]):
        result = cli(*SMALL, *args)
        assert result.status == 0, result.err
    events = EventAccumulator("logs/with/version_0").Reload()
    [image] = events.Images("receptive_field")
    assert min(image.width, image.height) > 300
    weights = [
        torch.load(f"logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("with", "without")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    assert EventAccumulator("logs/without/version_0").Reload().Tags()["images"] == []


def test_a_layer_that_is_not_there_is_refused_before_training(cli: Callable[..., Result]) -> None:
    result = cli(*SMALL, *ON, "--trainer.callbacks.layers", "[layer1, layer9]")
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert "layer9" in result.err
    assert "epoch" not in result.out


def test_number_of_images() -> None:
    with pytest.raises(ValueError, match="num_images"):
        ReceptiveField(num_images=0)

"""Every recipe with every hardware file: they parse, say what they are, and are what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from support import WITHOUT_PICTURES, Result

from cifar_resnets.models.shortcuts import SHORTCUTS

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs/recipes").glob("*.yaml"))
HARDWARE = sorted((ROOT / "configs/hardware").glob("*.yaml"))


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("hardware", HARDWARE, ids=name)
@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_parses(cli: Callable[..., Result], recipe: Path, hardware: Path) -> None:
    result = cli("fit", "-c", str(recipe), "-c", str(hardware), "--print_config")
    assert result.status == 0, result.err
    config, given = yaml.safe_load(result.out), yaml.safe_load(recipe.read_text())
    assert timm.is_model(config["model"]["network"])
    assert config["name"] == recipe.stem
    assert config["trainer"]["max_epochs"] == given["trainer"]["max_epochs"]
    assert config["trainer"]["accelerator"] == yaml.safe_load(hardware.read_text())["trainer"]["accelerator"]


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_opens_with_what_one_must_know(recipe: Path) -> None:
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    for entry in ("Source:", "Accuracy:", "Time:", "Command:"):
        assert any(line.startswith(f"# {entry}") for line in header), entry
    assert f"-c {recipe.stem}" in "\n".join(header)
    assert max(map(len, recipe.read_text().splitlines())) <= 120


@pytest.mark.parametrize("hardware", HARDWARE, ids=name)
def test_hardware_files_say_nothing_else(hardware: Path) -> None:
    config = yaml.safe_load(hardware.read_text())
    assert config.pop("model", None) == ({"compile": None} if hardware.stem in ("cpu", "cpu_bf16") else None)
    assert set(config) == {"trainer"}
    assert set(config["trainer"]) <= {"accelerator", "devices", "num_nodes", "strategy", "precision", "benchmark"}


@pytest.mark.parametrize(("recipe", "steps"), [("resnet20", 64_000), ("resnet56", 64_000), ("resnet110", 64_000)])
def test_he_et_al(recipe: str, steps: int) -> None:
    config = yaml.safe_load((ROOT / f"configs/recipes/{recipe}.yaml").read_text())
    assert config["trainer"]["max_steps"] == steps
    model, data = config["model"], config["data"]["init_args"]
    assert (model["network"], model["lr"], model["weight_decay"]) == (f"cifar_{recipe}", 0.1, 1e-4)
    assert [milestone * steps for milestone in model["schedule"]["init_args"]["milestones"]] == [32_000, 48_000]
    assert (data["batch_size"], data["val_fraction"], data["augment"]["crop_padding"]) == (128, 0.1, 4)
    warmup = model["schedule"]["init_args"].get("warmup_epochs", 0) * (45_000 // 128)
    assert warmup == pytest.approx(400 if recipe == "resnet110" else 0, rel=0.001)


@pytest.mark.parametrize(("recipe", "lr", "decay"), [("speed94", 11.5, 0.0153), ("speed96", 9.0, 0.0153)])
def test_the_published_rates_count_for_the_sum_of_the_losses_and_apart_from_each_other(
    recipe: str, lr: float, decay: float
) -> None:
    """There a step is lr / (n (1 + 1 / (1 - momentum))) of the sum over n images, and decays by decay / lr of that."""
    model = yaml.safe_load((ROOT / f"configs/recipes/{recipe}.yaml").read_text())["model"]
    momentum = model["optimizer_args"]["momentum"]
    assert model["lr"] == pytest.approx(lr / (1 + 1 / (1 - momentum)), rel=1e-3)
    assert model["weight_decay"] == pytest.approx(decay / lr, rel=5e-3)


FAST = ("speed94", "speed96", "custom_resnet_fast")


@pytest.mark.long
@pytest.mark.parametrize("recipe", FAST)
def test_the_fast_recipes_train_and_tell_both_accuracies(cli: Callable[..., Result], recipe: str) -> None:
    # the custom network has no narrow variant
    narrow, epochs = ({}, "1") if recipe.startswith("custom") else ({"widths": [8, 8], "depth": 2}, "2")
    result = cli(
        *("fit", "-c", str(ROOT / f"configs/recipes/{recipe}.yaml"), "-c", str(ROOT / "configs/hardware/cpu.yaml")),
        *("--data", "Digits", "--data.num_train", "64", "--data.batch_size", "16", "--trainer.max_epochs", epochs),
        *("--data.classes", "[0, 1]"),
        *("--model.network_args", str(narrow), *WITHOUT_PICTURES),
    )
    assert (result.status, result.err) == (0, "")
    assert "test by model.tta" in result.out


def test_identity_mappings_trains_as_resnet110() -> None:
    ours, resnet110 = (
        yaml.safe_load((ROOT / f"configs/recipes/{recipe}.yaml").read_text())
        for recipe in ("identity_mappings", "resnet110")
    )
    assert ours.pop("name") == "identity_mappings"
    assert ours["model"].pop("network_args") == {"shortcut": "A"}
    del resnet110["name"]
    assert ours == resnet110


IDENTITY_MAPPINGS = ("fit", "-c", str(ROOT / "configs/recipes/identity_mappings.yaml"))


@pytest.mark.parametrize("shortcut", sorted(SHORTCUTS))
def test_identity_mappings_takes_its_shortcut_as_one_key(cli: Callable[..., Result], shortcut: str) -> None:
    result = cli(*IDENTITY_MAPPINGS, "--model.network_args.shortcut", shortcut, "--print_config")
    assert result.status == 0, result.err
    assert yaml.safe_load(result.out)["model"]["network_args"] == {"shortcut": shortcut}


# Few blocks, and a run that is shorter than the warm-up.
ONE_STEP = [
    *("-c", str(ROOT / "configs/hardware/cpu.yaml"), "--data", "Digits", "--data.num_train", "64"),
    *("--data.batch_size", "32", *WITHOUT_PICTURES),
    *("--model.network_args.depths", "[1, 1, 1]", "--model.schedule.warmup_epochs", "0", "--trainer.max_steps", "1"),
]


@pytest.mark.long
def test_identity_mappings_trains_the_shortcut_it_is_given(cli: Callable[..., Result], tmp_path: Path) -> None:
    result = cli(*IDENTITY_MAPPINGS, "--model.network_args.shortcut", "exclusive_gating", *ONE_STEP)
    assert result.status == 0, result.err
    (path,) = tmp_path.glob("logs/identity_mappings/*/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["network_args"] == {"shortcut": "exclusive_gating", "depths": [1, 1, 1]}
    gates = [value for key, value in checkpoint["state_dict"].items() if key.endswith("shortcut.gate.bias")]
    assert len(gates) == 3
    assert all(((gate + 6).abs() < 1).all() for gate in gates)


def test_identity_mappings_names_the_shortcuts_there_are(cli: Callable[..., Result]) -> None:
    result = cli(*IDENTITY_MAPPINGS, "--model.network_args.shortcut", "gating", *ONE_STEP)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert "model.network_args of cifar_resnet110: shortcut='gating' is unknown: use 'A'" in result.err
    assert all(repr(shortcut) in result.err for shortcut in SHORTCUTS)


def test_a_recipe_runs_from_any_folder_with_any_source(cli: Callable[..., Result], image_folder: Path) -> None:
    result = cli(
        *("fit", "-c", str(ROOT / "configs/recipes/resnet20.yaml"), "-c", str(ROOT / "configs/hardware/cpu.yaml")),
        *("--data", "ImageFolder", "--data.root", str(image_folder), "--data.batch_size", "16"),
        *("--trainer.max_epochs", "1", *WITHOUT_PICTURES),
    )
    assert result.status == 0, result.err
    assert "epoch 1/1 " in result.out

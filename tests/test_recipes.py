"""Every recipe with every hardware file: they parse, say what they are, and are what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import yaml
from support import Result

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
    assert f"configs/recipes/{recipe.name}" in "\n".join(header)
    assert max(map(len, recipe.read_text().splitlines())) <= 120


@pytest.mark.parametrize("hardware", HARDWARE, ids=name)
def test_hardware_files_say_nothing_else(hardware: Path) -> None:
    config = yaml.safe_load(hardware.read_text())
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


def test_a_recipe_runs_from_any_folder_with_any_source(cli: Callable[..., Result], image_folder: Path) -> None:
    result = cli(
        *("fit", "-c", str(ROOT / "configs/recipes/resnet20.yaml"), "-c", str(ROOT / "configs/hardware/cpu.yaml")),
        *("--data", "ImageFolder", "--data.root", str(image_folder), "--data.batch_size", "16"),
        *("--trainer.max_epochs", "1"),
    )
    assert result.status == 0, result.err
    assert "epoch 1/1 " in result.out

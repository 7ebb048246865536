"""Recipes by their names: what each command finds, what is listed, and that a wheel holds them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support import TINY_NETWORK, Result, read_json

from cifar_resnets.cli import recipes
from cifar_resnets.cli.recipes import OF_SOURCE, find_recipe, listing, read_header, shipped, with_paths
from cifar_resnets.errors import ConfigurationError
from cifar_resnets.runs.resume import identity

ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in ROOT.glob("configs/*/*.yaml")}
PARTS = ("cifar_resnets", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "requirements.txt")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
SMALL = ["--data.num_train", "200", "--trainer.max_epochs", "1", "--explain", "null"]
SMALL += ["--model.network_args", str(TINY_NETWORK)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_files_of_the_repository_are_found(here: Path) -> None:
    assert len(CONFIGS) == len(list(ROOT.glob("configs/*/*")))  # no two have one name
    assert shipped().keys() == CONFIGS.keys()
    assert all(Path(find_recipe(name)).samefile(path) for name, path in CONFIGS.items())


def test_a_file_here_comes_first(here: Path) -> None:
    (here / "gpu").mkdir()  # which is no file
    assert Path(find_recipe("gpu")).samefile(CONFIGS["gpu"])
    (here / "gpu.yaml").touch()
    assert find_recipe("gpu") == "gpu.yaml"
    os.mkfifo(here / "cpu")
    assert find_recipe("cpu") == "cpu"


@pytest.mark.parametrize("text", ["{name: gpu}", "./gpu", "gpu.yaml", "~/gpu", "/dev/fd/63", "a/gpu", ""])
def test_what_is_no_name_is_left_alone(here: Path, text: str) -> None:
    assert find_recipe(text) == text


def test_only_values_of_the_option_are_names(here: Path) -> None:
    args = ["fit", "-c", "gpu", "--config=cpu", "-cddp", "--config", "slurm", "--name", "gpu", "--ckpt_path=auto"]
    found = with_paths(args)
    paths = {name: find_recipe(name) for name in ("gpu", "cpu", "ddp", "slurm")}
    assert found[:7] == ["fit", "-c", paths["gpu"], f"--config={paths['cpu']}", f"-c{paths['ddp']}", "--config",
                         paths["slurm"]]  # fmt: skip
    assert found[7:] == args[7:]


@pytest.mark.parametrize(("name", "meant"), [("quickstrat", "quickstart"), ("nothing-like-it", "recipes` lists them")])
def test_an_unknown_name(here: Path, name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--config: there is no file or recipe {name}.*{meant}"):
        find_recipe(name)


def test_each_recipe_has_a_line_with_its_accuracy() -> None:
    lines = listing().split("\n")
    assert len(lines) == len(CONFIGS) + 3
    found = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert found.keys() == CONFIGS.keys() | {"*"}
    for name, path in shipped("recipes").items():
        first = path.read_text().split("\n")[0].removeprefix("# ").rstrip(".")
        assert first in found[name]
    assert " 91.25 %*  ResNet-20 as in the paper" in found["resnet20"]
    assert " 99.18 %   ResNet-20 on scikit-learn's" in found["quickstart"]
    assert found["quickstart"].endswith("(about a minute on two CPU cores)")
    assert "%" not in found["custom_resnet_fixed_lr"]
    assert read_header(CONFIGS["gpu"]).summary.startswith("One GPU: bfloat16")
    assert OF_SOURCE in lines[-1 - len(shipped("hardware")) - 1]
    assert max(map(len, listing(80).split("\n"))) <= 80


def test_show_and_copy(cli: Callable[..., Result], tmp_path: Path) -> None:
    assert cli("recipes").out == listing() + "\n"
    assert cli("recipes", "show", "resnet20").out == CONFIGS["resnet20"].read_text()
    assert cli("recipes", "copy", "resnet20").status == 0
    copy = tmp_path / "resnet20.yaml"
    assert copy.read_bytes() == CONFIGS["resnet20"].read_bytes()
    copy.write_text("mine")
    again = cli("recipes", "copy", "resnet20")
    assert (again.status, again.err.count("\n"), copy.read_text()) == (6, 1, "mine")
    assert "resnet20.yaml is already there" in again.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["recipes", "show"], "takes the NAME"),
        (["recipes", "copy", "resnet2"], "there is no recipe resnet2, did you mean resnet20"),
        (["recipes", "delete", "resnet20"], "invalid choice: 'delete'"),
        (["fit", "-c", "quickstrat"], "there is no file or recipe quickstrat, did you mean quickstart?"),
        (["find-lr", "--config=quickstrat"], "there is no file or recipe quickstrat, did you mean quickstart?"),
        (["fit", "-c", "configs/recipes/resnet20.yaml"], "cannot be read (No such file or directory); the one that "
         "comes with the package is -c resnet20"),
    ],
)  # fmt: skip
def test_one_line_for_what_is_wrong(cli: Callable[..., Result], args: list[str], words: str) -> None:
    result = cli(*args)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert words in result.err


def test_help_says_where_recipes_are_looked_for(cli: Callable[..., Result]) -> None:
    for command in ("fit", "find-lr"):
        assert "name of one that comes with the package" in " ".join(cli(command, "--help").out.split())
    assert "NAME.yaml in the current folder" in cli("recipes", "--help").out


def test_keys_come_from_both_files_and_from_the_copy(cli: Callable[..., Result], tmp_path: Path) -> None:
    config = yaml.safe_load(cli("fit", "-c", "quickstart", "--config=cpu", "--print_config").out)
    assert (config["name"], config["trainer"]["accelerator"]) == ("quickstart", "cpu")
    cli("recipes", "copy", "quickstart")
    (tmp_path / "quickstart.yaml").write_text("name: mine\n")
    assert yaml.safe_load(cli("fit", "-c", "quickstart", "--data", "Digits", "--print_config").out)["name"] == "mine"


def test_a_run_by_name_is_resumed_by_the_same_words_wherever_the_package_lies(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    args = ["fit", "-c", "quickstart", "-c", "cpu", "--name", "quickstart", *SMALL, "--ckpt_path", "auto"]
    assert cli(*args).status == 0
    run = tmp_path / "logs/quickstart/version_0"
    assert read_json(run / "run.json")["command_digest"] == identity(args)["command_digest"]
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["network"] == "cifar_resnet20"
    assert cli("test", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/best.ckpt")).status == 0


@pytest.mark.process
def test_a_wheel_is_used_in_another_folder(tmp_path: Path) -> None:
    source, site, folder = (tmp_path / name for name in ("source", "site", "folder"))
    folder.mkdir()
    source.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part, **({"symlinks": True} if copy is shutil.copytree else {}))
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    shutil.rmtree(source)
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*args: str) -> str:
        command = [sys.executable, "-m", "cifar_resnets", *args]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("recipes") == listing() + "\n"
    run("recipes", "copy", "resnet20")
    assert (folder / "resnet20.yaml").read_bytes() == CONFIGS["resnet20"].read_bytes()
    run("fit", "-c", "quickstart", "-c", "cpu", *SMALL)
    record = read_json(folder / "logs/quickstart/version_0/run.json")
    assert record["command"][1:5] == ["fit", "-c", "quickstart", "-c"]
    assert record["command"][0].startswith(str(site))


def test_a_link_to_nothing_is_no_shipped_recipe(here: Path) -> None:
    for name in ("resnet20", "cpu.yaml"):
        (here / name).symlink_to("gone")
    assert find_recipe("resnet20") == "resnet20" and find_recipe("cpu") == "cpu.yaml"


def test_no_half_of_a_copy_is_left_on_a_full_disk(here: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            recipes.run(["recipes", "copy", "quickstart"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.filename == "quickstart.yaml" and os.listdir(here) == []

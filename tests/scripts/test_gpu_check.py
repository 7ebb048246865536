"""scripts/gpu_check.sh and scripts/results.sh, without a GPU and with tiny images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from processes import interpreter
from support import WITHOUT_PICTURES, Result

ROOT = Path(__file__).parents[2]
PARTS = ("tests", "data", "trainer", "networks", "sharing", "speed94", "resnet18")
pytestmark = pytest.mark.process


def script(name: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of the repository from another folder."""
    command = [str(ROOT / "scripts" / name), *args]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """An interpreter that has imported what the scripts' programs import, each of which begins with that otherwise."""
    with interpreter() as command:
        yield str(command)


def test_every_part_of_the_gpu_check_runs_without_a_gpu(image_folder: Path, python: str, tmp_path: Path) -> None:
    args = ("--accelerator", "cpu", "--tiny", "--images", str(image_folder), "--output", str(tmp_path))
    done = script("gpu_check.sh", *args, PYTHON=python)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "gpu_check.md").read_text()
    assert [line[3:] for line in report.splitlines() if line.startswith("## ")] == list(PARTS)
    for expected in (
        "skipped",
        "TrainLoader",
        "`cifar-resnets fit`",
        "cifar_resnet20",
        "second",
        "with TTA",
        "test_mean",
    ):
        assert expected in report
    # what is there is not measured again
    (tmp_path / "data.md").write_text("as it was")
    (tmp_path / "networks.md").unlink()
    again = script("gpu_check.sh", *args, PYTHON="true")  # one that measures nothing
    assert again.stderr.splitlines() == ["networks: at most 600 s"]
    assert "as it was" in (tmp_path / "gpu_check.md").read_text()


def test_a_part_that_fails_is_named_and_ends_with_status_1(tmp_path: Path) -> None:
    done = script("gpu_check.sh", "--accelerator", "cpu", "--tiny", "--output", str(tmp_path), "data", PYTHON="false")
    assert done.returncode == 1
    assert "data failed, see" in done.stderr
    assert not (tmp_path / "data.md").exists()


@pytest.mark.parametrize(
    ("args", "message"), [(["--quick"], "--quick is not allowed"), (["speed94"], "needs --images")]
)
def test_arguments_of_the_gpu_check_that_are_refused(args: list[str], message: str, tmp_path: Path) -> None:
    done = script("gpu_check.sh", "--output", str(tmp_path), *args)
    assert (done.returncode, message in done.stderr) == (2, True)


def rows() -> dict[str, tuple[str, list[str]]]:
    """Returns recipe and further arguments of each row of the results."""
    runs = [line.split(";") for line in script("results.sh", "--list").stdout.splitlines()]
    return {name: (recipe.strip(), more.split()) for name, _, recipe, more in runs}


def test_every_row_of_the_results_is_a_command_that_parses(cli: Callable[..., Result]) -> None:
    found = rows()
    assert {recipe for recipe, _ in found.values()} <= {path.stem for path in (ROOT / "configs/recipes").iterdir()}
    for name in ("speed94/8_epochs", "airplane_or_bird", "degradation/plain56", "shortcuts/exclusive_gating"):
        recipe, more = found[name]
        path = str(ROOT / f"configs/recipes/{recipe}.yaml")
        result = cli("fit", "-c", path, "--data", "ImageFolder", "--data.root", "photos", *more, "--print_config")
        assert result.status == 0, result.err
        config = yaml.safe_load(result.out)
        assert config["data"]["class_path"].endswith("ImageFolder")
    assert config["model"]["network_args"] == {"shortcut": "exclusive_gating"}


def test_the_results_need_images_and_run_each_seed_once(image_folder: Path, python: str, tmp_path: Path) -> None:
    assert "give --images" in script("results.sh").stderr
    row = ("degradation/plain20", "--", "--trainer.max_epochs", "1", "--data.batch_size", "8", *WITHOUT_PICTURES)
    args = ("--images", str(image_folder), "--logs", str(tmp_path), *row)
    done = script("results.sh", *args, PYTHON=python)
    assert "| degradation/plain20 | cifar_plain20 |" in done.stdout, done.stderr
    assert (tmp_path / "seed_0/degradation/plain20/version_0/test.json").exists()
    script("results.sh", *args, PYTHON=python)
    assert not (tmp_path / "seed_0/degradation/plain20/version_1").exists()

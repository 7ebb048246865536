"""Which run each task of `scripts/sweep.sbatch` is, with an `srun` that only says what it was told."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support import Result

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
RECIPES = ["resnet20", "configs/recipes/resnet56.yaml"]
SRUN = """#!/bin/sh
printf '%s\\n' "$@"
exit 75
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository's folder, as far as the script looks at it."""
    for name in ("sweep.sbatch", "train.sbatch"):
        (tmp_path / "scripts").mkdir(exist_ok=True)
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)
    return tmp_path


def sweep(folder: Path, *args: str, **env: str) -> Result:
    """Runs the script, without what a job around the tests may have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM") and name != "HARDWARE"}
    kept["PATH"] = f"{folder / 'bin'}:{kept['PATH']}"
    done = subprocess.run(
        ["bash", "scripts/sweep.sbatch", *args], cwd=folder, env=kept | env, capture_output=True, text=True
    )
    return Result(done.returncode, done.stdout, done.stderr)


def task(number: int, low: int, high: int, **more: str) -> dict[str, str]:
    """What SLURM sets in a task of an array."""
    array = {"ID": number, "MIN": low, "MAX": high, "COUNT": high - low + 1, "STEP": 1}
    job = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "11", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2"}
    return {**job, **{f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}, **more}


def told(result: Result, option: str) -> str:
    """The last value of an option that srun was told, which is the one that counts."""
    words = result.out.splitlines()
    return words[len(words) - 1 - words[::-1].index(option) + 1]


def test_each_pair_of_recipe_and_seed_is_a_task(folder: Path) -> None:
    pairs = []
    for number in range(6):
        result = sweep(folder, *RECIPES, "--seeds", "0", "7", "12", **task(number, 0, 5))
        assert (result.status, result.err) == (75, "")  # the status of the program, which SLURM requeues by
        words = result.out.splitlines()
        fit = words.index("fit")
        assert words[fit + 1] == "-c"
        pairs.append((words[fit + 2], int(told(result, "--seed_everything"))))
        assert words[0] == f"task {number} of 0-5: {pairs[-1][0]}, seed {pairs[-1][1]}"
    assert sorted(pairs) == sorted(itertools.product(RECIPES, (0, 7, 12)))
    assert {recipe for recipe, _ in pairs[:2]} == set(RECIPES)


def test_overrides_go_on_word_by_word(folder: Path) -> None:
    overrides = ["--model.network_args", "{shortcut: 'B'}", "--name", "two words", "-c", "configs/hardware/gpu.yaml"]
    result = sweep(folder, RECIPES[0], "--seeds", "3", *overrides, **task(0, 0, 0))
    words = result.out.splitlines()
    start = words.index("--model.network_args")
    assert words[start:] == [*overrides, "--seed_everything", "3"]


@pytest.mark.parametrize(
    ("more", "hardware"),
    [
        ({}, "cpu"),
        ({"SLURM_GPUS_ON_NODE": "1"}, "slurm"),
        ({"SLURM_GPUS_ON_NODE": "1", "HARDWARE": "my.yaml"}, "my.yaml"),
    ],
)
def test_the_hardware_is_that_of_the_job(folder: Path, more: dict[str, str], hardware: str) -> None:
    result = sweep(folder, RECIPES[0], "--seeds", "3", **task(0, 0, 0, **more))
    assert told(result, "-c") == hardware


@pytest.mark.parametrize(("low", "high"), [(0, 4), (0, 6), (1, 6), (5, 5)])
def test_another_array_is_refused_with_the_right_one(folder: Path, low: int, high: int) -> None:
    result = sweep(folder, *RECIPES, "--seeds", "0", "1", "2", **task(low, low, high))
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert "2 x 3 recipes and seeds take --array=0-5" in result.err
    assert f"{low} to {high}" in result.err


def test_an_array_with_gaps_is_refused(folder: Path) -> None:
    result = sweep(folder, *RECIPES, "--seeds", "0", "1", **task(0, 0, 3, SLURM_ARRAY_TASK_COUNT="2"))
    assert (result.status, result.out) == (2, "")
    assert "--array=0-3" in result.err


def test_a_job_that_is_no_array_is_refused(folder: Path) -> None:
    result = sweep(folder, RECIPES[0], "--seeds", "0", "1", SLURM_JOB_ID="12")
    assert (result.status, result.out) == (2, "")
    assert "--array=0-1, this job is no array" in result.err


def test_without_slurm_it_prints_what_submits_it(folder: Path) -> None:
    args = [*RECIPES, "--seeds", "0", "1", "2", "--name", "two words", "--model.network_args", "{shortcut: 'B'}"]
    result = sweep(folder, *args)
    assert (result.status, result.err) == (0, "")
    assert shlex.split(result.out) == ["sbatch", "--array=0-5", "scripts/sweep.sbatch", *args]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "--seeds SEED"),
        ([RECIPES[0]], "--seeds SEED"),
        ([RECIPES[0], "--seeds"], "--seeds SEED"),
        ([RECIPES[0], "--seeds", "--model.lr", "0.1"], "--seeds SEED"),
        (["--seeds", "0"], "--seeds SEED"),
        ([RECIPES[0], "nowhere.yaml", "--seeds", "0"], "there is no recipe nowhere.yaml"),
        ([RECIPES[0], "--seeds", "0", "--seed_everything", "3"], "--seed_everything"),
        ([RECIPES[0], "--seeds", "0", "--seed_everything=3"], "--seed_everything"),
    ],
)
def test_one_line_for_what_is_wrong(folder: Path, args: list[str], words: str) -> None:
    for env in ({}, task(0, 0, 0)):
        result = sweep(folder, *args, **env)
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
        assert words in result.err


def test_another_folder_is_refused(folder: Path) -> None:
    (folder / "scripts/train.sbatch").unlink()
    result = sweep(folder, RECIPES[0], "--seeds", "0", **task(0, 0, 0))
    assert (result.status, result.out) == (2, "")
    assert "from the repository's folder" in result.err


def test_both_scripts_ask_slurm_for_the_same() -> None:
    texts = [(ROOT / "scripts" / name).read_text().splitlines() for name in ("train.sbatch", "sweep.sbatch")]
    train, own = ({line for line in text if line.startswith("#SBATCH")} for text in texts)
    assert own - train == {"#SBATCH --gpus-per-node=1"}
    assert train <= own

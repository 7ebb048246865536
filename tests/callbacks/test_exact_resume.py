"""Runs that are killed and resumed, against runs that nothing happens to: every bit, however a fit is set up."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from exactness import RICH, differences, kill_when
from processes import run, run_two_ranks
from support import TINY

from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.classifier import ImageClassifier

pytestmark = pytest.mark.process

Differing = Callable[..., list[str]]
TWO_RANKS = "{devices: 2, strategy: ddp_fork}"
SYNC = "{devices: 2, strategy: ddp_fork, sync_batchnorm: true}"


def recipe(changes: str, text: str = RICH) -> str:
    """A recipe with other settings of the Trainer."""
    content = yaml.safe_load(text)
    content["trainer"] |= {"max_epochs": 2} | yaml.safe_load(changes)
    content["explain"] = None  # pictures take most of the time of so small a run
    return yaml.safe_dump(content)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a run of a recipe to which nothing happens; tests of one recipe share it."""

    @functools.cache
    def fit(text: str) -> Path:
        folder = tmp_path_factory.mktemp("straight")
        (folder / "r.yaml").write_text(text)
        assert run("fit", "-c", "r.yaml", cwd=folder).status == 0
        (run_dir,) = (folder / "logs").glob("*/version_*")
        return run_dir

    return fit


@pytest.fixture
def differing(straight: Callable[[str], Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Returns what differs between a run that was killed and resumed, and one that was not."""

    def differing(text: str, method: str, call: int, owner: type = LastCheckpoint, **options: Any) -> list[str]:
        (tmp_path / "r.yaml").write_text(text)
        kill = functools.partial(kill_when, owner, method, call)
        assert run("fit", "-c", "r.yaml", cwd=tmp_path, before=kill).status == 137
        result = run("fit", "-c", "r.yaml", "--ckpt_path", "last", cwd=tmp_path)
        assert (result.status, result.err) == (0, ""), result
        (run_dir,) = (tmp_path / "logs").glob("*/version_*")
        return differences(straight(text), run_dir, **options)

    return differing


@pytest.mark.parametrize(
    ("changes", "method", "call"),
    [
        ("{val_check_interval: 0.4}", "on_train_batch_end", 3),
        ("{val_check_interval: 0.4}", "on_train_batch_end", 4),  # on which a validation follows within the epoch
        ("{check_val_every_n_epoch: 2, num_sanity_val_steps: 0}", "on_train_batch_end", 5),  # no validation follows
        ("{accumulate_grad_batches: 2, gradient_clip_val: 0.5}", "on_train_batch_end", 9),
        ("{max_epochs: -1, max_steps: 12}", "on_train_batch_end", 11),
        (SYNC, "on_train_batch_end", 7),
    ],
)
def test_the_same_bits(changes: str, method: str, call: int, differing: Differing) -> None:
    assert differing(recipe(changes), method, call) == []


def test_what_a_network_starts_from_is_not_done_again(differing: Differing) -> None:
    text = RICH.replace("flip: true,", "flip: true, alternating_flip: true,")
    content = yaml.safe_load(recipe("{max_epochs: 2}", text))
    content["model"] |= {"network": "cifar_speednet", "network_args": {"widths": [8, 8], "depth": 1}}
    content["model"] |= {"init": ["whiten", "dirac"], "norm_bias_scale": 8.0, "tta": ["mirror", "shift1"], "fast": True}
    content["model"]["class_weights"], content["data"]["init_args"]["balance"] = "balanced", False
    assert differing(yaml.safe_dump(content), "on_train_batch_end", 7) == []


@pytest.mark.parametrize(("changes", "call"), [("{}", 4), (TWO_RANKS, 7)])
def test_before_and_after_an_unfreezing(changes: str, call: int, differing: Differing) -> None:
    content = yaml.safe_load(recipe(changes))
    content["model"] |= {"freeze": "backbone", "unfreeze_epoch": 1, "layer_decay": 0.75, "fast": True}
    assert differing(yaml.safe_dump(content), "on_train_batch_end", call) == []


def test_without_a_validation(differing: Differing) -> None:
    text = recipe("{limit_val_batches: 0}", TINY + "last_checkpoint: {every_n_steps: 5}")
    # and so there is no best one
    assert differing(text, "on_train_batch_end", 5, checkpoints=["last.ckpt"]) == []


def test_early_stopping_is_not_forgotten(differing: Differing) -> None:
    stopping = "{class_path: EarlyStopping, init_args: {monitor: train/loss, patience: 1, min_delta: 99}}"
    text = recipe(f"{{max_epochs: 9, callbacks: [{stopping}]}}", TINY)
    # the epoch after which the run is to stop: a resumed run does not train one more
    assert differing(text, "on_train_epoch_end", 2) == []


def test_others_of_lightnings_callbacks_and_several_best_checkpoints(
    differing: Differing, straight: Callable[[str], Path], tmp_path: Path
) -> None:
    names = ["WeightAveraging", "LearningRateMonitor", "ModelSummary"]
    named = [{"class_path": name} for name in names]
    named.append({"class_path": "OnExceptionCheckpoint", "init_args": {"dirpath": "failed"}})
    text = recipe(yaml.safe_dump({"max_epochs": 4, "callbacks": named}), TINY + "last_checkpoint: {every_n_steps: 1}\n")
    text += "checkpoint: {save_top_k: 2}\n"
    assert differing(text, "on_train_batch_end", 13, checkpoints=["last.ckpt"]) == []
    runs = straight(text), tmp_path / "logs/tiny/version_0"
    kept = [sorted(path.name for path in each.glob("checkpoints/best*")) for each in runs]
    assert kept[0] == kept[1] and len(kept[0]) == 2


def test_the_validation_after_an_epochs_last_step_is_not_skipped(differing: Differing, tmp_path: Path) -> None:
    assert differing(recipe("{}"), "on_validation_start", 2, ImageClassifier) == []
    rows = (tmp_path / "logs/rich/version_0/metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("val/acc")
    assert sum(bool(row.split(",")[place]) for row in rows[1:]) == 2


def test_another_number_of_ranks_keeps_the_figures_of_the_epoch(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        recipe("{max_epochs: 1}", TINY.replace("name: tiny", "name: tiny\nlast_checkpoint: {every_n_steps: 1}"))
    )
    kill = functools.partial(kill_when, LastCheckpoint, "on_train_batch_end", 3)
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert run("fit", "-c", "r.yaml", *two, cwd=tmp_path, before=kill).status == 137
    result = run("fit", "-c", "r.yaml", "--ckpt_path", "last", cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    # all 200 images of the epoch count, those of both ranks and those after
    accuracy = result.out.split("train ")[1].split(" %")[0]
    assert float(accuracy) * 200 / 100 == pytest.approx(round(float(accuracy) * 2), abs=1e-6)


def test_ranks_that_lightning_starts(tmp_path: Path) -> None:
    saves = TINY + "last_checkpoint: {every_n_steps: 1}\n"
    (tmp_path / "r.yaml").write_text(recipe("{devices: 2, strategy: ddp}", saves))
    kill = functools.partial(kill_when, LastCheckpoint, "on_train_batch_end", 7)
    assert run("fit", "-c", "r.yaml", cwd=tmp_path, before=kill).status == 137
    result = run("fit", "-c", "r.yaml", "--ckpt_path", "auto", cwd=tmp_path)
    assert (result.status, result.err) == (0, ""), result
    run_two_ranks("fit", "-c", "r.yaml", "--trainer.default_root_dir", "straight", cwd=tmp_path)
    assert differences(tmp_path / "straight/tiny/version_0", tmp_path / "logs/tiny/version_0") == []

"""The proof of an export: what it accepts, what it refuses, and the images that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exports import random_images, untrained, write_small
from support import TINY_NETWORK, write_images

from cifar_resnets.data.digits import Digits
from cifar_resnets.errors import CheckpointError, DataError
from cifar_resnets.export.graph import ImagesToProbabilities
from cifar_resnets.export.programs import Runner
from cifar_resnets.export.proof import SCALES, TOLERANCE, proof_images, prove
from cifar_resnets.inference.classifier import TrainedClassifier, load


def right(classifier: TrainedClassifier) -> Runner:
    module = ImagesToProbabilities(classifier).eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_the_same_network_is_proven(dynamic_batch: bool) -> None:
    classifier, images = untrained(**TINY_NETWORK), random_images(5, 32, 32)
    proof = prove(right(classifier), classifier, images, raw=False, dynamic_batch=dynamic_batch)
    assert proof.num_images == 5 and proof.difference < 1e-6
    assert proof.resized is not None and proof.resized.num_images == 5 * len(SCALES)
    assert proof.resized.levels <= 2 and proof.resized.pixels < 0.05 and proof.resized.difference < 0.05


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: found + 2 * TOLERANCE, "0 of 5 classes are others, and a probability differs by 0.0002"),
        (lambda found: np.roll(found, 1, axis=1), "5 of 5 classes are others"),
        (lambda found: found * np.nan, "it gives no probabilities"),
        (lambda found: found[:, :-1], "it gives no probabilities"),
    ],
)
def test_another_network_is_refused(change: Runner, reason: str) -> None:
    classifier, images = untrained(**TINY_NETWORK), random_images(5, 32, 32)
    run = right(classifier)
    with pytest.raises(CheckpointError, match=f"not the checkpoint's: .*{reason}.*; nothing is written"):
        prove(lambda batch: change(run(batch)), classifier, images, raw=False, dynamic_batch=True)


def test_another_resizing_is_refused() -> None:
    classifier, images = untrained(**TINY_NETWORK), random_images(5, 32, 32)
    run = right(classifier)

    def cropping(batch: np.ndarray) -> np.ndarray:
        return run(np.ascontiguousarray(batch[:, :32, :32]))

    with pytest.raises(CheckpointError, match="a probability differs"):
        prove(cropping, classifier, images, raw=False, dynamic_batch=True)


def test_the_images_are_those_of_the_validation(tmp_path: Path) -> None:
    images, what = proof_images(load(write_small(tmp_path / "a.ckpt", split_seed=3)))
    data = Digits(split_seed=3, mean=[0.0] * 3, std=[1 / 255] * 3)
    data.setup("validate")
    expected = torch.cat([batch for batch, _ in data.val_dataloader()])
    assert what == "validation images"
    np.testing.assert_array_equal(images, expected.permute(0, 2, 3, 1).numpy())
    few, _ = proof_images(load(tmp_path / "a.ckpt"), num_images=3)
    np.testing.assert_array_equal(few, images[[0, len(images) // 2, -1]])


def test_digits_stand_in_for_images_that_are_not_at_hand(tmp_path: Path) -> None:
    classifier = load(write_small(tmp_path / "a.ckpt"))
    classifier.data = {"class_path": "cifar_resnets.data.image_folder.ImageFolder", "init_args": {"root": "gone"}}
    classifier.image_size = 40
    images, what = proof_images(classifier)
    assert what.startswith("digits, for the validation images are not at hand (") and "gone" in what
    assert images.shape == (364, 40, 40, 3)
    with pytest.raises(DataError, match="nowhere"):
        proof_images(classifier, root="nowhere")
    classifier.data["init_args"]["image_size"] = 40
    images, what = proof_images(classifier, root=str(write_images(tmp_path / "images", num_train=20)))
    assert what == "validation images" and images.shape == (6, 40, 40, 3)


def test_no_code_of_others_is_run_for_the_images(tmp_path: Path) -> None:
    classifier = load(write_small(tmp_path / "a.ckpt"))
    classifier.data = {"class_path": "evil.Source", "init_args": {}}
    assert proof_images(classifier)[1].startswith(
        "digits, for the validation images are not at hand (their data source"
    )

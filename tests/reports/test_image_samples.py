from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_runs import write_run

from cifar_resnets.reports.image_samples import MAX_THUMBNAILS, gallery, panels, thumbnail, thumbnails
from cifar_resnets.results.comparison import Comparison, compare
from cifar_resnets.results.json_files import Mistakes
from cifar_resnets.results.run_folder import Run, read_run

Both = tuple[Run, Run, Comparison]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("runs")
    runs = [read_run(write_run(root / name, num_test=200, seed=n, skill=s), name) for name, n, s in
            (("a", 0, 0.5), ("b", 1, 2.5))]  # fmt: skip
    assert runs[0].predictions
    assert runs[1].predictions
    return runs[0], runs[1], compare(runs[0].predictions, runs[1].predictions)


def test_the_gallery_shows_the_samples_in_their_order(both: Both) -> None:
    run = both[0]
    assert run.gallery is not None
    samples = gallery(run)
    assert [sample["index"] for sample in samples] == run.gallery.index.tolist()
    assert all(len(sample["pictures"]) == 4 for sample in samples)
    assert {sample["true"] for sample in samples} <= {"cat", "dog", "bird"}


def test_without_a_gallery_the_mistakes_are_shown(both: Both) -> None:
    samples = gallery(replace(both[0], gallery=None))
    assert len(samples) == MAX_THUMBNAILS
    assert all(len(sample["pictures"]) == 1 for sample in samples)
    assert gallery(replace(both[0], gallery=None, mistakes=None)) == []


def test_each_side_shows_images_of_the_run_that_was_wrong(both: Both) -> None:
    first, second, comparison = both
    for found, wrong, indices in (
        (thumbnails(first, comparison.newly_right), first, comparison.newly_right),
        (thumbnails(second, comparison.newly_wrong), second, comparison.newly_wrong),
    ):
        assert wrong.mistakes is not None
        assert wrong.predictions is not None
        assert found["total"] == len(indices) > 0
        assert len(found["samples"]) == min(found["total"], MAX_THUMBNAILS)
        shown = [sample["index"] for sample in found["samples"]]
        assert set(shown) <= set(indices.tolist())
        confidence = wrong.predictions.probabilities.max(axis=1)
        assert confidence[shown].tolist() == sorted(confidence[indices], reverse=True)[: len(shown)]
        row = int(np.flatnonzero(wrong.mistakes.index == shown[0])[0])
        assert found["samples"][0]["address"] == thumbnail(wrong.mistakes, row)
        assert found["samples"][0]["predicted"] == wrong.predictions.class_names[wrong.predictions.predicted[shown[0]]]


def test_only_what_is_among_the_stored_mistakes_is_shown(both: Both) -> None:
    first, _, comparison = both
    assert first.mistakes is not None
    columns = ("index", "label", "predicted", "p_label", "p_predicted", "images")
    few = replace(first.mistakes, **{name: getattr(first.mistakes, name)[:5] for name in columns})
    found = thumbnails(replace(first, mistakes=few), comparison.newly_right)
    assert len(found["samples"]) <= 5 < found["total"] == len(comparison.newly_right)


def test_why_nothing_is_shown(both: Both) -> None:
    first, _, comparison = both
    assert "no mistakes.npz of a" in thumbnails(replace(first, mistakes=None), comparison.newly_right)["reason"]
    assert first.mistakes is not None
    for index in (first.mistakes.index[::-1], first.mistakes.index + 10_000):
        other = replace(first, mistakes=replace(first.mistakes, index=index))
        found = thumbnails(other, comparison.newly_right)
        assert found["samples"] == []
        assert "another test" in found["reason"]


def test_a_class_that_nobody_named(both: Both) -> None:
    run = both[0]
    assert run.gallery is not None
    strange = replace(run, gallery=replace(run.gallery, label=run.gallery.label * 0 - 1), predictions=None)
    assert gallery(strange)[0]["true"] == "class -1"
    assert Path(strange.folder).name == "a"


# Addresses are decoded again by Pillow.


def decoded(address: str) -> np.ndarray:
    kind, _, text = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text, validate=True))))


def mistakes(height: int, width: int, heat: bool = True) -> Mistakes:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    columns = [np.array([0, 1]), np.array([0, 0]), np.array([1, 1]), *[np.array([0.1, 0.2], np.float32)] * 2]
    maps = np.zeros((2, 2, height, width), np.float32)
    maps[1, :, : height // 2] = 1  # the true class above
    return Mistakes(*columns, images, (maps[0], maps[1]) if heat else None, ("layer3", "gradcam"))


def test_a_small_image_is_shown_as_it_is() -> None:
    shown = mistakes(8, 6)
    assert (decoded(thumbnail(shown, 1)) == shown.images[1]).all()


def test_a_large_image_is_shrunk() -> None:
    assert decoded(thumbnail(mistakes(224, 112), 0)).shape == (96, 48, 3)


def test_panels() -> None:
    shown = mistakes(8, 8)
    pictures = {name: decoded(address).astype(int) for name, address in panels(shown, 1)}
    assert list(pictures) == ["image", "predicted", "true", "difference"]
    image = shown.images[1].astype(int)
    assert (pictures["image"] == image).all()
    assert (pictures["predicted"] == image).all()  # no heat
    assert (pictures["true"][4:] == image[4:]).all()
    assert np.ptp(pictures["true"][:4], axis=(0, 1)).max() < 80  # hardly anything is seen below the heat
    above, below = pictures["difference"][:4].mean(axis=(0, 1)), pictures["difference"][4:].mean(axis=(0, 1))
    assert above[2] > above[0] + 50  # blue, the true class alone
    assert abs(below[2] - below[0]) < 1  # grey


def test_heat_of_large_images_and_heat_that_is_no_number() -> None:
    shown = mistakes(200, 100)
    assert shown.heat is not None
    shown.heat[0][:] = np.nan
    assert [decoded(address).shape for _, address in panels(shown, 0)] == [(96, 48, 3)] * 4


def test_without_heat() -> None:
    assert [name for name, _ in panels(mistakes(8, 8, heat=False), 0)] == ["image"]

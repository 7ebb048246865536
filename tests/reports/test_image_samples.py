from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_runs import write_run

from cifar_resnets.reports.data_urls import thumbnail
from cifar_resnets.reports.image_samples import MAX_THUMBNAILS, gallery, newly_right, newly_wrong
from cifar_resnets.results.comparison import Comparison, compare
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
    assert [sample.index for sample in samples] == run.gallery.index.tolist()
    assert all(len(sample.pictures) == 4 for sample in samples)
    assert {sample.true for sample in samples} <= {"cat", "dog", "bird"}


def test_without_a_gallery_the_mistakes_are_shown(both: Both) -> None:
    samples = gallery(replace(both[0], gallery=None))
    assert len(samples) == MAX_THUMBNAILS
    assert all(len(sample.pictures) == 1 for sample in samples)
    assert gallery(replace(both[0], gallery=None, mistakes=None)) == []


def test_each_side_shows_images_of_the_run_that_was_wrong(both: Both) -> None:
    first, second, comparison = both
    for found, wrong, indices in (
        (newly_right(first, comparison), first, comparison.newly_right),
        (newly_wrong(second, comparison), second, comparison.newly_wrong),
    ):
        assert wrong.mistakes is not None
        assert wrong.predictions is not None
        assert found.total == len(indices) > 0
        assert len(found.samples) == min(found.total, MAX_THUMBNAILS)
        shown = [sample.index for sample in found.samples]
        assert set(shown) <= set(indices.tolist())
        confidence = wrong.predictions.probabilities.max(axis=1)
        assert confidence[shown].tolist() == sorted(confidence[indices], reverse=True)[: len(shown)]
        row = int(np.flatnonzero(wrong.mistakes.index == shown[0])[0])
        assert found.samples[0].pictures == [("image", thumbnail(wrong.mistakes, row))]
        assert found.samples[0].predicted == wrong.predictions.class_names[wrong.predictions.predicted[shown[0]]]


def test_only_what_is_among_the_stored_mistakes_is_shown(both: Both) -> None:
    first, _, comparison = both
    assert first.mistakes is not None
    columns = ("index", "label", "predicted", "p_label", "p_predicted", "images")
    few = replace(first.mistakes, **{name: getattr(first.mistakes, name)[:5] for name in columns})
    found = newly_right(replace(first, mistakes=few), comparison)
    assert len(found.samples) <= 5 < found.total == len(comparison.newly_right)


def test_why_nothing_is_shown(both: Both) -> None:
    first, _, comparison = both
    assert "no mistakes.npz of a" in newly_right(replace(first, mistakes=None), comparison).reason
    assert first.mistakes is not None
    for index in (first.mistakes.index[::-1], first.mistakes.index + 10_000):
        other = replace(first, mistakes=replace(first.mistakes, index=index))
        found = newly_right(other, comparison)
        assert found.samples == []
        assert "another test" in found.reason


def test_a_class_that_nobody_named(both: Both) -> None:
    run = both[0]
    assert run.gallery is not None
    strange = replace(run, gallery=replace(run.gallery, label=run.gallery.label * 0 - 1), predictions=None)
    assert gallery(strange)[0].true == "class -1"
    assert Path(strange.folder).name == "a"

"""The most confident mistakes: against numpy and scipy, for any batches, with ties, NaN and right images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch
from finder_runs import changed, forgetful, snapshot
from PIL import Image
from scipy.special import log_softmax
from support import Synchronisations

from cifar_resnets.data.loaders import EvalLoader
from cifar_resnets.evaluation.mistakes import (
    HighestLosses,
    Samples,
    SamplesAt,
    classify,
    classify_again,
    concatenate,
    group_by_pair,
    limit_size,
    to_pixels,
)

CLASSES = 5


def outputs(num: int, seed: int = 0, coarse: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images that say which they are, labels, and logits; coarse ones, so that many losses are equal."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 2, (num, CLASSES)) * 4.0 if coarse else rng.normal(size=(num, CLASSES)) * 3
    images = torch.arange(num, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 4, 4)
    return images, torch.from_numpy(rng.integers(0, CLASSES, num)), torch.from_numpy(logits).float()


def top(num_samples: int, batches: Sequence[slice], images, labels, logits) -> Samples:
    keeper = HighestLosses(num_samples)
    for part in batches:
        index = torch.arange(part.start, part.stop)
        keeper.update(classify(images[part], labels[part], logits[part], index), range(part.start, part.stop))
    assert keeper.kept is not None
    return keeper.kept


def expected_order(labels: np.ndarray, logits: np.ndarray) -> list[int]:
    """Mistakes by loss, then right images by loss, of equals the first."""
    loss = -log_softmax(logits.astype(np.float32), axis=1)[np.arange(len(labels)), labels]
    right = logits.argmax(axis=1) == labels
    return sorted(range(len(labels)), key=lambda i: (right[i], -loss[i], i))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("num_samples", [1, 7, 60, 200])
@pytest.mark.parametrize("size", [1, 13, 100])
def test_keeps_the_largest_losses_whatever_the_batches(coarse, num_samples, size):
    images, labels, logits = outputs(100, coarse=coarse)
    batches = [slice(start, min(start + size, 100)) for start in range(0, 100, size)]
    kept = top(num_samples, batches, images, labels, logits)
    expected = expected_order(labels.numpy(), logits.numpy())[:num_samples]
    assert kept.index.tolist() == expected
    assert kept.images[:, 0, 0, 0].tolist() == expected
    assert torch.equal(kept.labels, labels[expected]) and torch.equal(kept.predicted, logits.argmax(1)[expected])
    p = np.exp(log_softmax(logits.numpy(), axis=1))[expected]
    np.testing.assert_allclose(kept.p_label, p[np.arange(len(p)), kept.labels], rtol=1e-5)
    np.testing.assert_allclose(kept.p_predicted, p.max(axis=1), rtol=1e-5)


def test_ties_are_many_in_the_test_above():
    _, labels, logits = outputs(100, coarse=True)
    loss = -log_softmax(logits.numpy(), axis=1)[np.arange(100), labels.numpy()]
    assert len(set(loss.tolist())) < 60


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_mistakes_that_are_no_numbers_come_after_those_that_are(bad):
    images, labels, logits = outputs(40)
    logits[3], logits[17, 2] = float("nan"), bad
    labels[3], labels[17] = 1, 1  # the class of NaN is its first place
    kept = top(40, [slice(0, 10), slice(10, 40)], images, labels, logits)
    finite = [i for i in range(40) if i not in (3, 17)]
    order = [finite[i] for i in expected_order(labels[finite].numpy(), logits[finite].numpy())]
    num_wrong = int((logits.argmax(1) != labels)[finite].sum())
    assert kept.index.tolist() == [*order[:num_wrong], 3, 17, *order[num_wrong:]]
    assert not kept.score.isnan().any()


def test_an_image_that_is_right_by_chance_without_a_number_comes_last():
    images, labels, logits = outputs(40)
    logits[3], labels[3] = float("nan"), 0
    assert top(40, [slice(0, 10), slice(10, 40)], images, labels, logits).index.tolist()[-1] == 3


def test_several_ranks_give_what_one_gives_and_an_image_that_came_twice_is_shown_once():
    images, labels, logits = outputs(51, coarse=True)
    alone = top(9, [slice(0, 51)], images, labels, logits)
    parts = []
    for rank in range(2):  # as DistributedSampler shares 51 images: the first comes twice
        index = torch.arange(rank, 52, 2) % 51
        keeper = HighestLosses(9)
        for rows in index.split(5):
            keeper.update(classify(images[rows], labels[rows], logits[rows], rows), range(0))
        parts.append(keeper.kept)
    together = HighestLosses(9).merge(concatenate(parts))
    assert together.index.tolist() == alone.index.tolist()
    twice = HighestLosses(9).merge(concatenate([alone, alone]))
    assert twice.index.tolist() == alone.index.tolist()
    assert torch.equal(together.images, alone.images)


def test_chosen_images_are_found_in_any_batch_and_put_in_their_order():
    images, labels, logits = outputs(30)
    keeper = SamplesAt([21, 4, 28, 5, 99])
    for start in range(0, 30, 8):
        places = range(start, min(start + 8, 30))
        rows = slice(places.start, places.stop)
        keeper.update(classify(images[rows], labels[rows], logits[rows], torch.tensor(places)), places)
    assert keeper.kept is not None and sorted(keeper.kept.index.tolist()) == [4, 5, 21, 28]
    found = keeper.merge(keeper.kept)
    assert found.index.tolist() == found.images[:, 0, 0, 0].tolist() == [21, 4, 28, 5]
    assert SamplesAt([]).kept is None


def test_pairs_are_kept_together_the_larger_first_and_right_images_last():
    pairs = [(0, 1), (2, 3), (0, 1), (4, 4), (1, 0), (2, 3), (4, 4), (4, 4), (0, 1), (3, 2)]
    scores = [1.0, 9.0, 3.0, -0.5, 5.0, 1.0, -0.1, -9.0, 2.0, 6.0]
    labels, predicted = (torch.tensor(each) for each in zip(*pairs, strict=True))
    index, p = torch.arange(10), torch.full((10,), 0.5)
    found = group_by_pair(Samples(torch.zeros(10, 3, 2, 2), index, labels, predicted, p, p, torch.tensor(scores)))
    assert found.index.tolist() == [2, 8, 0, 1, 5, 9, 4, 6, 3, 7]


def test_samples_are_classified_again_as_the_network_does_in_evaluation():
    model, many, labels = forgetful(), torch.randn(40, 3, 32, 32), torch.arange(40) % 4
    old = classify(many, labels, torch.zeros(40, 10), torch.arange(100, 140))
    before = snapshot(model.train())
    with torch.inference_mode():
        found = classify_again(model, old)
    assert changed(before, snapshot(model)) == []
    with torch.no_grad():
        p = model.eval()(many).softmax(dim=1)
    torch.testing.assert_close(found.p_predicted, p.max(dim=1).values)
    torch.testing.assert_close(found.p_label, p.gather(1, labels[:, None])[:, 0])
    assert torch.equal(found.predicted, p.argmax(dim=1)) and torch.equal(found.index, old.index)
    assert torch.equal(found.images, many)


def test_a_batch_brings_no_value_to_python():
    images, labels, logits = outputs(40)
    keepers = [HighestLosses(4), HighestLosses(20, max_side=3), SamplesAt([3, 17, 33])]
    with Synchronisations() as counter:
        for start in (0, 20):
            part, places = slice(start, start + 20), range(start, start + 20)
            batch = classify(images[part], labels[part], logits[part].half(), torch.arange(start, start + 20))
            for keeper in keepers:
                keeper.update(batch, places)
        assert counter.seen == []
        assert keepers[0].kept is not None
        keepers[0].kept.index.tolist()
        keepers[0].kept.wrong.any().item()
    assert counter.seen != []  # the counter itself


def test_only_as_much_is_kept_as_asked_for():
    images, labels, logits = outputs(100)
    batch = classify(images, labels, logits, torch.arange(100))
    keeper = HighestLosses(3)
    keeper.update(batch, range(100))
    assert keeper.kept is not None
    # no view that holds on to the whole batch
    assert all(getattr(keeper.kept, each.name).untyped_storage().nbytes() < 2000 for each in fields(Samples))
    keeper = SamplesAt([5, 7])
    keeper.update(batch, range(100))
    assert keeper.kept is not None
    assert all(getattr(keeper.kept, each.name).untyped_storage().nbytes() < 2000 for each in fields(Samples))


@pytest.mark.parametrize("size, expected", [((224, 224), (64, 64)), ((100, 40), (64, 26)), ((65, 300), (14, 64))])
def test_large_images_are_shrunk_as_pillow_does(size, expected):
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    found = limit_size(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), 64)
    assert tuple(found.shape[2:]) == expected
    for image, original in zip(found, pixels, strict=True):
        by_pillow = np.asarray(Image.fromarray(original).resize(expected[::-1], Image.Resampling.BILINEAR))
        assert np.abs(image.permute(1, 2, 0).numpy() - by_pillow).max() < 1.01


def test_images_that_are_not_large_are_not_touched():
    images = torch.rand(2, 3, 64, 20)
    assert limit_size(images, 64) is images


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.bfloat16, 4)])
def test_pixels_are_those_before_the_normalisation(dtype, tolerance):
    pixels = torch.randint(256, (6, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    loader = EvalLoader(pixels, torch.zeros(6, dtype=torch.long), batch_size=6, mean=mean, std=std)
    [(images, _)] = loader
    found = to_pixels(images.to(dtype), mean, std)
    assert found.shape == (6, 5, 7, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - pixels.numpy()).max() <= tolerance


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_without_statistics_the_values_are_stretched(channels):
    images = torch.linspace(-3, 5, 2 * channels * 6).reshape(2, channels, 2, 3)
    found = to_pixels(images)
    assert found.shape == (2, 2, 3, 3) and found.min() == 0
    assert found.max() == 255 if channels in (1, 3) else True
    assert (found[..., 0] == found[..., 2]).all() == (channels < 3)


def test_images_that_cannot_be_shown_are_black_or_grey_but_no_error():
    assert to_pixels(torch.full((2, 3, 4, 4), torch.nan)).max() == 0
    assert to_pixels(torch.zeros(0, 3, 4, 5)).shape == (0, 4, 5, 3)
    assert to_pixels(torch.full((1, 1, 2, 2), 7.0)).shape == (1, 2, 2, 3)

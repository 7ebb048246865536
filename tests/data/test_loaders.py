import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from support import needs_compiler, needs_gpu
from torchvision.transforms import v2

from cifar_resnets.data.augment import Augmentation, augment
from cifar_resnets.data.loaders import EpochSampler, EvalLoader, TrainLoader
from cifar_resnets.data.stored_images import Compiled
from cifar_resnets.errors import ConfigurationError

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
PLAIN = Augmentation(crop_padding=0, flip=False)
FULL = Augmentation(crop_padding=2, cutout_size=3, cutout_holes=2)
NUM, SIZE = 37, (9, 7)


def random_images(num: int = NUM, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randint(256, (num, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def train_loader(augmentation: Augmentation = FULL, images: torch.Tensor | None = None, **changes) -> TrainLoader:
    """A loader whose labels are the images' numbers."""
    images = random_images() if images is None else images
    values = {"batch_size": 8, "mean": MEAN, "std": STD, "seed": 3, "num_classes": len(images)} | changes
    return TrainLoader(images, torch.arange(len(images)), augmentation=augmentation, **values)


def eval_loader(num: int, **changes) -> EvalLoader:
    values = {"batch_size": 8, "mean": MEAN, "std": STD} | changes
    return EvalLoader(random_images(num), torch.arange(num), **values)


def at_epoch(loader: TrainLoader, epoch: int) -> list:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one: list, other: list) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def plain_augmented(image, augmentation: Augmentation, corner, flip: bool, holes) -> np.ndarray:
    """One image, in the simplest words: pad, cut, mirror, normalise, punch."""
    p, (height, width) = augmentation.crop_padding, image.shape[:2]
    image = np.pad(image, ((p, p), (p, p), (0, 0)), mode=augmentation.padding_mode)
    image = image[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
    image = image[:, ::-1] if flip else image
    mean, std = (np.float32(np.array(values) * 255) for values in (MEAN, STD))
    image = (image.astype(np.float32) - mean) / std
    for row, column in holes:
        top, left = row - augmentation.cutout_size // 2, column - augmentation.cutout_size // 2
        image[max(top, 0) : max(top + augmentation.cutout_size, 0), max(left, 0) : left + augmentation.cutout_size] = 0
    return image.transpose(2, 0, 1)


# The training loader.


@pytest.mark.parametrize(
    "augmentation",
    [
        PLAIN,
        Augmentation(),
        FULL,
        Augmentation(padding_mode="reflect", cutout_size=4),
        Augmentation(cutout_holes=0),
        Augmentation(alternating_flip=True),
    ],
)
@pytest.mark.parametrize("epoch", [0, 5])
def test_the_whole_pipeline_equals_a_plain_reference_image_by_image(augmentation, epoch):
    images = random_images()
    loader = train_loader(augmentation)
    batches = at_epoch(loader, epoch)
    order, draws = loader.sampler.plan()
    position = 0
    for batch, labels in batches:
        for image, label in zip(batch, labels, strict=True):
            assert label == order[position]
            chance = (draws.corners[position].tolist(), bool(draws.flips[position]), draws.holes[position].tolist())
            np.testing.assert_array_equal(image, plain_augmented(images[label].numpy(), augmentation, *chance))
            position += 1
    assert position == len(loader) * 8 == 32


AUGMENTATIONS = [
    PLAIN,
    FULL,
    Augmentation(padding_mode="reflect", cutout_size=4),
    Augmentation(cutout_holes=0, cutout_size=5),
    Augmentation(alternating_flip=True, cutout_size=99),
]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_in_one_go_as_on_a_gpu_it_is_the_same_to_the_last_bit(augmentation):
    steps, one_go = train_loader(augmentation), train_loader(augmentation)
    one_go._images.function = augment
    for epoch in (0, 5):
        assert equal(at_epoch(one_go, epoch), at_epoch(steps, epoch))


@needs_compiler
@pytest.mark.parametrize("augmentation", [Augmentation(), FULL])
def test_compiled_it_is_the_same_and_is_compiled_once(augmentation):
    steps, compiled = train_loader(augmentation), train_loader(augmentation)
    compiled._images.function = Compiled(augment)
    at_epoch(compiled, 0)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert equal(at_epoch(compiled, 5), at_epoch(steps, 5))


def test_without_a_compiler_it_goes_on_as_it_is_and_says_so(monkeypatch):
    def fail(*args):
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setattr(torch, "compile", lambda function: fail)
    steps, one_go = train_loader(FULL), train_loader(FULL)
    one_go._images.function = Compiled(augment)
    with pytest.warns(UserWarning, match="^augment is not compiled, and so takes longer: no compiler here$"):
        assert equal(list(one_go), list(steps))
    at_epoch(one_go, 1)  # says it once


def test_memory_that_does_not_suffice_is_no_missing_compiler(monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("much")

    monkeypatch.setattr(torch, "compile", lambda function: fail)
    loader = train_loader()
    loader._images.function = Compiled(augment)
    with pytest.raises(torch.OutOfMemoryError):
        next(iter(loader))


@needs_gpu
def test_on_a_gpu_it_is_drawn_there_and_gives_the_images_of_the_reference():
    images = random_images()
    loader = train_loader(FULL, images.cuda())
    order, draws = loader.sampler.plan()
    assert {part.device.type for part in (order, draws.corners, draws.flips, draws.holes)} == {"cuda"}
    reference = train_loader(FULL)
    reference.sampler.plan = lambda: (order.cpu(), draws.to(torch.device("cpu")))
    for (found, labels), (expected, same) in zip(loader, reference, strict=True):
        assert torch.equal(labels.cpu(), same)
        assert torch.allclose(found.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_order_and_augmentation_follow_from_seed_and_epoch_alone():
    walked = train_loader()
    epochs = [at_epoch(walked, epoch) for epoch in range(4)]
    torch.manual_seed(99)
    np.random.seed(99)
    assert equal(at_epoch(train_loader(), 3), epochs[3])  # without the epochs before, and any global state
    next(iter(walked))
    assert equal(at_epoch(walked, 1), epochs[1])  # back again, after an iteration that was given up
    assert equal(list(walked), epochs[1])


def test_epochs_and_seeds_differ_in_order_and_in_augmentation():
    samplers = [EpochSampler(200, SIZE, FULL, seed) for seed in (0, 1, 2)]
    plans = []
    for sampler in samplers:
        for epoch in range(3):
            sampler.set_epoch(epoch)
            order, draws = sampler.plan()
            assert order.sort().values.tolist() == list(range(200))
            plans.append([order, draws.corners, draws.flips, draws.holes])
    for kind in zip(*plans, strict=True):
        assert len({tuple(values.flatten().tolist()) for values in kind}) == 9


def test_an_alternating_flip_shows_both_sides_of_each_image_in_any_two_epochs():
    sampler = EpochSampler(2000, SIZE, Augmentation(alternating_flip=True), 7)
    flips = []
    for epoch in (0, 1, 2, 5):
        sampler.set_epoch(epoch)
        order, draws = sampler.plan()
        flips.append(torch.empty(2000, dtype=torch.bool).index_put((order,), draws.flips))  # of each image
    assert torch.equal(flips[1], ~flips[0]) and torch.equal(flips[2], flips[0]) and torch.equal(flips[3], flips[1])
    assert 900 < flips[0].sum() < 1100
    sampler.set_epoch(1)
    plain = EpochSampler(2000, SIZE, Augmentation(), 7)
    plain.set_epoch(1)
    (order, draws), (other_order, others) = sampler.plan(), plain.plan()
    assert torch.equal(order, other_order) and torch.equal(draws.corners, others.corners)
    assert not torch.equal(draws.flips, others.flips)


def test_no_two_generators_of_a_sampler_are_the_same():
    seeds = []
    for seed in (0, 1):
        sampler = EpochSampler(4, SIZE, FULL, seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            keys = [(), (0,), (0, 0), (0, 1), (1,), (1, 0), (1, 1)]
            seeds += [sampler.generator(*key).initial_seed() for key in keys]
    assert len(set(seeds)) == len(seeds) == 28


def test_augmentation_belongs_to_the_position_in_the_epoch_and_not_to_the_batch():
    small, large = (list(train_loader(batch_size=size)) for size in (4, 12))
    together = [torch.cat([batch[i] for batch in small])[:36] for i in (0, 1)]
    assert equal([together], [[torch.cat([batch[i] for batch in large]) for i in (0, 1)]])


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_share_the_batch_of_a_single_rank(world_size):
    single = at_epoch(train_loader(), 2)
    ranks = [at_epoch(train_loader(rank=rank, world_size=world_size), 2) for rank in range(world_size)]
    assert [len(part) for part in ranks] == [len(single)] * world_size
    joined = [[torch.cat(parts) for parts in zip(*step, strict=True)] for step in zip(*ranks, strict=True)]
    assert equal(joined, single)


@pytest.mark.parametrize("batch_size, num_batches", [(1, 37), (8, 4), (18, 2), (19, 1), (37, 1)])
def test_the_last_incomplete_batch_is_left_out_and_no_image_comes_twice(batch_size, num_batches):
    loader = train_loader(batch_size=batch_size)
    labels = [labels for _, labels in loader]
    assert len(loader) == len(labels) == num_batches
    assert {len(part) for part in labels} == {batch_size}
    assert len(set(torch.cat(labels).tolist())) == num_batches * batch_size


def test_a_balanced_epoch_is_as_long_the_same_on_ranks_and_resumed_where_it_was():
    labels = torch.arange(NUM) % 9 // 6  # six images of one class to three of the other
    changes = {"batch_size": 8, "mean": MEAN, "std": STD, "seed": 3, "num_classes": 2, "balance": True}

    def balanced(**more) -> TrainLoader:
        return TrainLoader(random_images(), labels, augmentation=FULL, **changes | more)

    alone = at_epoch(balanced(), 2)
    assert len(alone) == len(at_epoch(train_loader(), 2)) == 4
    assert abs(torch.cat([labels for _, labels in alone]).float().mean() - 0.5) < 0.1
    ranks = [at_epoch(balanced(rank=rank, world_size=2), 2) for rank in (0, 1)]
    joined = [tuple(torch.cat(parts) for parts in zip(*pair, strict=True)) for pair in zip(*ranks, strict=True)]
    assert equal(joined, alone)
    resumed = balanced()
    resumed.load_state_dict({"done": 3})
    assert equal(at_epoch(resumed, 2), alone[3:])


def test_a_loader_that_repeats_has_the_same_batches_in_each_epoch():
    changing = Augmentation(crop_padding=2, cutout_size=3, alternating_flip=True, mixup_alpha=0.5)
    loader, plain = train_loader(changing, repeats=True), train_loader(changing)
    assert equal(at_epoch(loader, 5), at_epoch(loader, 0))
    assert equal(at_epoch(loader, 5), at_epoch(plain, 0))
    assert not equal(at_epoch(plain, 5), at_epoch(plain, 0))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size: 38 is more than the 37 training images"):
        train_loader(batch_size=38)


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size: 8 cannot be divided by 3 ranks"):
        train_loader(world_size=3)


@pytest.mark.parametrize("augmentation", [PLAIN, FULL, Augmentation(mixup_alpha=1), Augmentation(cutmix_alpha=1)])
def test_batches_are_float_images_in_channels_last_memory(augmentation):
    for images, labels in [next(iter(train_loader(augmentation))), next(iter(eval_loader(20)))]:
        assert images.shape[1:] == (3, *SIZE) and images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        assert len(labels) == len(images)


def test_images_may_have_any_layout_in_memory():
    # CIFAR's files hold (n, c, h, w): a view of them as (n, h, w, c) is not contiguous
    images = random_images()
    view = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert equal(list(train_loader(images=view)), list(train_loader()))
    evaluated = EvalLoader(view, torch.arange(NUM), batch_size=8, mean=MEAN, std=STD)
    assert equal(list(evaluated), list(eval_loader(NUM)))


# Mixup and CutMix.


def mixed_pairs(**alpha) -> list:
    """Mixed batches of a few epochs, each with the batch before mixing, and step and epoch."""
    mixed, plain = train_loader(Augmentation(crop_padding=2, **alpha)), train_loader(Augmentation(crop_padding=2))
    pairs = []
    for epoch in range(6):
        both = zip(at_epoch(mixed, epoch), at_epoch(plain, epoch), strict=True)
        pairs += [(epoch, step, *images_and_labels) for step, images_and_labels in enumerate(both)]
    return pairs


def own_shares(soft: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return soft.gather(1, labels[:, None]).flatten()


@pytest.mark.parametrize("alpha", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_mixed_labels_are_soft_rows_that_sum_to_one(alpha):
    shares = []
    for _, _, (_, soft), (_, labels) in mixed_pairs(**alpha):
        assert soft.shape == (8, NUM) and soft.dtype == torch.float32 and soft.min() >= 0
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
        own = own_shares(soft, labels)
        torch.testing.assert_close(own + own_shares(soft, labels.roll(1)), torch.ones(8))
        shares.append(round(float(own[0]), 6))
    assert sum(0 < share < 1 for share in shares) > len(shares) * 0.8
    assert len(set(shares)) > 8  # drawn anew for each step of each epoch; CutMix has few sizes of box on 9x7 pixels


def test_mixup_blends_each_image_with_its_neighbour_by_the_share_in_the_label():
    for _, _, (images, soft), (plain, labels) in mixed_pairs(mixup_alpha=0.8):
        share = own_shares(soft, labels)[:, None, None, None]
        torch.testing.assert_close(images, share * plain + (1 - share) * plain.roll(1, 0))


def test_cutmix_takes_a_box_of_the_neighbour_as_large_as_the_label_says():
    for _, _, (images, soft), (plain, labels) in mixed_pairs(cutmix_alpha=1.0):
        neighbour = plain.roll(1, 0)
        own, other = (images == plain).all(1), (images == neighbour).all(1)  # (n, h, w)
        assert (own | other).all()
        # a pixel that both images share by chance counts for either side
        assert (own.double().mean((1, 2)) >= own_shares(soft, labels) - 1e-6).all()
        assert (other.double().mean((1, 2)) >= own_shares(soft, labels.roll(1)) - 1e-6).all()


@pytest.mark.parametrize("name, transform", [("mixup_alpha", v2.MixUp), ("cutmix_alpha", v2.CutMix)])
def test_mixing_is_torchvisions(name, transform):
    reference = v2.RandomChoice([transform(alpha=0.7, num_classes=NUM)])
    sampler = train_loader().sampler
    for epoch, step, mixed, plain in mixed_pairs(**{name: 0.7}):
        sampler.set_epoch(epoch)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(sampler.generator(step, 0).get_state())
            expected = reference(*plain)
        assert equal([mixed], [expected])


def test_with_both_each_batch_gets_one_of_them():
    cut = [
        bool(((images == plain) | (images == plain.roll(1, 0))).all())
        for _, _, (images, _), (plain, _) in mixed_pairs(mixup_alpha=1.0, cutmix_alpha=1.0)
    ]
    assert 0.2 < sum(cut) / len(cut) < 0.8


@pytest.mark.parametrize("alpha", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_mixing_leaves_the_global_generator_alone_and_does_not_depend_on_it(alpha):
    loader = train_loader(Augmentation(**alpha))
    state = torch.get_rng_state()
    first = list(loader)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert equal(list(loader), first)


def test_ranks_mix_by_draws_of_their_own_within_their_part():
    augmentation = Augmentation(mixup_alpha=1.0)
    ranks = [train_loader(augmentation, rank=rank, world_size=2) for rank in (0, 1)]
    plain = [train_loader(Augmentation(), rank=rank, world_size=2) for rank in (0, 1)]
    shares = []
    for mixed, unmixed in zip(ranks, plain, strict=True):
        (_, soft), (_, labels) = next(iter(mixed)), next(iter(unmixed))
        assert set(soft.nonzero()[:, 1].tolist()) <= set(labels.tolist())
        shares.append(float(own_shares(soft, labels)[0]))
    assert shares[0] != shares[1]


# The evaluation loader.


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_each_image_is_evaluated_once_for_any_number_batch_and_ranks(world_size):
    for num in [*range(world_size, 40), 101]:
        for batch_size in (1, 2, 5, 8, 16, 100):
            loader = eval_loader(num, batch_size=batch_size, world_size=world_size)
            parts = [loader.part(step, rank) for step in range(len(loader)) for rank in range(world_size)]
            # in order of step and rank the parts are all images in their order
            assert [i for part in parts for i in range(num)[part]] == list(range(num))
            sizes = {part.stop - part.start for part in parts}
            assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "num, batch_size, world_size",
    [(101, 16, 2), (101, 16, 4), (5, 8, 2), (8, 8, 8), (7, 100, 3), (40, 8, 1), (9, 2, 4)],
)
def test_what_the_ranks_evaluate_can_be_put_in_order_again(num, batch_size, world_size):
    loaders = [eval_loader(num, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(loader) for loader in loaders]
    assert {len(part) for part in batches} == {len(loaders[0])}
    restored, seen = torch.full((num, 3, *SIZE), torch.nan), []
    for rank, (loader, part) in enumerate(zip(loaders, batches, strict=True)):
        for step, (images, labels) in enumerate(part):
            restored[loader.part(step, rank)] = images
            seen += labels.tolist()
            assert labels.tolist() == list(range(num))[loader.part(step, rank)]
    assert sorted(seen) == list(range(num))
    alone = torch.cat([images for images, _ in eval_loader(num)])
    assert torch.equal(restored, alone)


@pytest.mark.parametrize("num, batch_size, world_size", [(101, 16, 1), (101, 16, 3), (7, 100, 2)])
def test_the_indices_of_a_batch_are_the_places_of_its_images(num, batch_size, world_size):
    for rank in range(world_size):
        loader = eval_loader(num, batch_size=batch_size, rank=rank, world_size=world_size)
        for step, (_, labels) in enumerate(loader):
            assert list(loader.indices(step)) == labels.tolist()


@pytest.mark.parametrize("num, batch_size, world_size", [(101, 16, 1), (101, 16, 2), (96, 16, 4), (10, 16, 2)])
def test_a_batch_over_all_ranks_is_no_larger_than_asked_for(num, batch_size, world_size):
    loader = eval_loader(num, batch_size=batch_size, world_size=world_size)
    for step in range(len(loader)):
        parts = [loader.part(step, rank) for rank in range(world_size)]
        assert sum(part.stop - part.start for part in parts) <= batch_size
    assert len(loader) == -(-num // batch_size)


def test_evaluation_neither_shuffles_nor_augments():
    images = random_images(11).numpy()
    got = torch.cat([batch for batch, _ in eval_loader(11, batch_size=4)])
    for image, normalised in zip(images, got, strict=True):
        expected = plain_augmented(image, PLAIN, (0, 0), False, [])
        np.testing.assert_array_equal(normalised, expected)


@pytest.mark.parametrize("num, world_size", [(0, 1), (1, 2), (7, 8)])
def test_fewer_images_than_ranks_are_refused(num, world_size):
    with pytest.raises(ConfigurationError, match=f"{num} images cannot be shared by {world_size} ranks"):
        eval_loader(num, world_size=world_size)


# What Lightning does with the training loader: these notice when a new version does otherwise.


class Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return (batch[0].mean() * self.weight).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, max_epochs: int, loader: TrainLoader, **arguments) -> tuple[pl.Trainer, list]:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(default_root_dir=folder, max_epochs=max_epochs, accelerator="cpu", logger=False, **quiet)
    model = Recorder()
    trainer.fit(model, train_dataloaders=loader, **arguments)
    return trainer, model.batches


def test_lightning_sets_the_epoch_of_the_sampler():
    loader = train_loader()
    _set_sampler_epoch(loader, 7)
    assert loader.sampler.epoch == 7


@pytest.mark.filterwarnings("ignore")  # Lightning's remarks on loggers, devices and workers
def test_a_trainer_goes_through_the_epochs_in_turn_also_after_a_resume(tmp_path):
    trainer, first = fit(tmp_path, 2, train_loader())
    trainer.save_checkpoint(tmp_path / "two_epochs.ckpt")
    loader = train_loader()
    trainer, rest = fit(tmp_path, 4, loader, ckpt_path=tmp_path / "two_epochs.ckpt")
    expected = [batch for epoch in range(4) for batch in at_epoch(train_loader(), epoch)]
    assert trainer.train_dataloader is loader  # neither replaced nor sharded
    assert equal(first + rest, expected)

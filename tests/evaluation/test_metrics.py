import json
import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    recall_score,
    top_k_accuracy_score,
)
from support import Synchronisations, needs_gpu
from torchmetrics.classification import MulticlassF1Score

from cifar_resnets.classifier import ImageClassifier
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.evaluation.metrics import Evaluation, EvaluationMetrics, TrainingMetrics, wilson_interval

BATCHES = [1, 17, 64, 3, 40]


def random_batches(classes: int, sizes: list[int] = BATCHES, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits that know something about the labels, and the more the later: batches differ in their figures."""
    rng = np.random.default_rng(seed)
    batches = []
    for number, size in enumerate(sizes):
        labels = rng.integers(classes, size=size)
        logits = rng.normal(size=(size, classes)) + number * np.eye(classes)[labels] / 2
        batches.append((torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)))
    return batches


def evaluate(batches: list[tuple[torch.Tensor, torch.Tensor]], classes: int) -> Evaluation:
    metrics = EvaluationMetrics(classes)
    for logits, labels in batches:
        metrics.update(logits, labels)
    return metrics.pop()


def together(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits).double().numpy(), torch.cat(labels).numpy()


# Against scikit-learn.


@pytest.mark.parametrize("classes", [6, 10, 100])
def test_all_figures_are_those_of_scikit_learn_over_uneven_batches(classes):
    batches = random_batches(classes)
    logits, labels = together(batches)
    found, every = evaluate(batches, classes), range(classes)
    predicted = logits.argmax(axis=1)
    np.testing.assert_array_equal(found.confusion, confusion_matrix(labels, predicted, labels=every))
    assert found.accuracy == accuracy_score(labels, predicted)
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=every), rel=1e-6)
    assert found.loss == pytest.approx(log_loss(labels, softmax(logits, axis=1), labels=every), rel=1e-5)
    recall = recall_score(labels, predicted, labels=every, average=None, zero_division=np.nan)
    np.testing.assert_allclose(found.class_accuracy, recall, rtol=1e-6)


@pytest.mark.parametrize(
    "labels, predicted",
    [
        ([0] * 50 + [1] * 5 + [2], [0] * 40 + [1] * 13 + [2, 0, 2]),
        ([0, 0, 1, 1], [0, 1, 1, 1]),  # no image of class 2, and none predicted
        ([0, 0, 1, 1], [0, 2, 1, 1]),  # none, but one predicted
        ([0, 0, 2, 2], [0, 0, 0, 0]),  # one that is never predicted
        ([1, 1], [0, 0]),
    ],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_and_macro_f1_are_those_of_scikit_learn_and_torchmetrics(labels, predicted):
    found = Evaluation(0.0, torch.tensor(confusion_matrix(labels, predicted, labels=range(3))), None)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    torchs = MulticlassF1Score(3, average="macro")(torch.tensor(predicted), torch.tensor(labels))
    assert found.macro_f1 == pytest.approx(torchs.item(), rel=1e-6)
    report = found.to_dict("abc")
    assert (report["balanced_accuracy"], report["macro_f1"]) == (found.balanced_accuracy, found.macro_f1)


def test_half_precision_logits_are_measured_in_single_precision():
    batches = [(logits.bfloat16(), labels) for logits, labels in random_batches(10)]
    logits, labels = together(batches)
    expected = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
    assert evaluate(batches, 10).loss == pytest.approx(expected, rel=1e-5)


def test_test_time_augmentation_has_an_accuracy_of_its_own():
    plain, other = random_batches(6), random_batches(6, seed=1)
    metrics = EvaluationMetrics(6)
    for (logits, labels), (tta_logits, _) in zip(plain, other, strict=True):
        metrics.update(logits, labels, tta_logits)
    found = metrics.pop()
    labels = together(plain)[1]
    right = accuracy_score(labels, together(other)[0].argmax(axis=1), normalize=False)
    assert (found.tta_correct, found.tta_accuracy) == (right, right / len(labels))
    assert found.accuracy == evaluate(plain, 6).accuracy != found.tta_accuracy
    assert found.scalars("test", "abcdef")["test/acc_tta"] == found.tta_accuracy
    assert found.to_dict("abcdef")["tta"]["correct"] == right
    for logits, labels in plain:  # the next pass is without
        metrics.update(logits, labels)
    later = metrics.pop()
    assert later.tta_accuracy is None
    assert "val/acc_tta" not in later.scalars("val", "abcdef") and "tta" not in later.to_dict("abcdef")


def test_up_to_five_classes_there_is_no_top5():
    found = evaluate(random_batches(5), 5)
    assert found.top5 is None
    assert not any("top5" in tag for tag in found.scalars("val", "abcde"))
    assert found.to_dict("abcde")["top5"] is None
    assert evaluate(random_batches(6), 6).scalars("val", "abcdef")["val/acc_top5"] > 0.5


def test_each_figure_has_its_tag():
    found = evaluate(random_batches(6), 6)
    scalars = found.scalars("test", "abcdef")
    figures = {"test/loss": found.loss, "test/acc": found.accuracy, "test/acc_top5": found.top5}
    figures |= {"test/acc_balanced": found.balanced_accuracy, "test/f1_macro": found.macro_f1}
    per_class = zip("abcdef", found.class_accuracy, strict=True)
    assert scalars == figures | {f"test_class_acc/{name}": value for name, value in per_class}


# A class without images.


def without_class(missing: int) -> Evaluation:
    return evaluate([(logits, labels % missing) for logits, labels in random_batches(7)], 7)


def test_a_class_without_images_is_nan_in_the_scalars_and_nothing_in_json():
    found = without_class(6)
    scalars = found.scalars("val", "abcdefg")
    assert [tag for tag, value in scalars.items() if math.isnan(value)] == ["val_class_acc/g"]
    report = found.to_dict("abcdefg")
    assert report["classes"][6] == {"name": "g", "accuracy": None, "correct": 0, "images": 0, "interval": None}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_report_counts_what_the_confusion_matrix_counts():
    confusion = torch.tensor([[8, 2], [5, 15]])
    report = Evaluation(loss=0.5, confusion=confusion, top5=None).to_dict(["cat", "dog"])
    cat, dog = report["classes"]
    assert (cat["name"], cat["correct"], cat["images"], cat["accuracy"]) == ("cat", 8, 10, 0.8)
    assert (dog["name"], dog["correct"], dog["images"], dog["accuracy"]) == ("dog", 15, 20, 0.75)
    assert (report["correct"], report["images"], report["accuracy"], report["loss"]) == (23, 30, 23 / 30, 0.5)
    for part in (report, cat, dog):
        interval = binomtest(part["correct"], part["images"]).proportion_ci(method="wilson")
        assert part["interval"] == pytest.approx([interval.low, interval.high], rel=1e-9)


def test_a_name_for_each_class_is_required():
    with pytest.raises(ValueError, match="zip"):
        evaluate(random_batches(7), 7).scalars("val", "abc")


# The interval.


@pytest.mark.parametrize(
    ("correct", "total"), [(0, 1), (1, 1), (0, 10), (10, 10), (7, 10), (1, 1000), (9312, 10_000), (50_000, 50_000)]
)
def test_the_interval_is_wilsons(correct, total):
    # his equation: |p - correct / total| = z sqrt(p (1 - p) / total) at both ends
    p, z = correct / total, 1.959963984540054
    centre, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + (z / total) ** 2 / 4)
    expected = [(centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)]
    found = wilson_interval(correct, total)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert 0 <= found[0] < found[1] <= 1


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(correct, total, low, high):
    """Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


# Accumulation.


def test_pop_starts_anew():
    metrics = EvaluationMetrics(10)
    one, other = random_batches(10, [30], seed=1), random_batches(10, [50], seed=2)
    for batches in (one, other):
        metrics.update(*batches[0])
        found, alone = metrics.pop(), evaluate(batches, 10)
        assert torch.equal(found.confusion, alone.confusion)
        assert (found.loss, found.top5) == (alone.loss, alone.top5)


def test_the_metrics_leave_nothing_in_a_checkpoint():
    metrics = EvaluationMetrics(10)
    metrics.update(*random_batches(10)[0])
    assert dict(metrics.state_dict()) == {}


def test_an_update_brings_no_value_to_python():
    metrics = EvaluationMetrics(10)
    batches = random_batches(10)
    with Synchronisations() as counter:
        for logits, labels in batches:
            metrics.update(logits, labels)
    assert counter.seen == []
    with counter:  # the counter itself: it sees what is to be avoided
        metrics.pop()
    assert counter.seen != []


def take_in(metrics, batches):
    for logits, labels in batches:
        metrics.add(torch.nn.functional.cross_entropy(logits, labels), logits, labels)
        metrics.count()


def test_training_figures_are_those_of_scikit_learn_without_a_synchronisation():
    metrics, batches = TrainingMetrics(12), random_batches(11, [30, 40] * 60)  # one class without images
    batches = [(torch.nn.functional.pad(logits, (0, 1), value=-9), labels) for logits, labels in batches]
    assert metrics.is_empty
    with Synchronisations() as counter:
        take_in(metrics, batches)
    assert counter.seen == []
    assert not metrics.is_empty
    logits, labels = together(batches)
    loss, accuracy, of_classes = metrics.pop()
    assert loss == pytest.approx(log_loss(labels, softmax(logits, axis=1), labels=range(12)), rel=1e-5)
    assert accuracy == pytest.approx(accuracy_score(labels, logits.argmax(axis=1)))
    recall = recall_score(labels, logits.argmax(axis=1), labels=range(12), average=None, zero_division=np.nan)
    np.testing.assert_allclose(of_classes, recall, rtol=1e-6)
    assert metrics.is_empty
    assert dict(metrics.state_dict()) == {}


@pytest.mark.parametrize("taken", [0, 1, 49, 50, 51, 120])
def test_training_figures_do_not_depend_on_when_they_were_saved(taken):
    batches = random_batches(10, [30] * 120)
    whole, first, second = (TrainingMetrics(10) for _ in range(3))
    take_in(whole, batches)
    take_in(first, batches[:taken])
    second.load_states(first.states(), 0, 1)
    assert second.is_empty == (taken == 0)
    for metrics in (first, second):
        take_in(metrics, batches[taken:])
        for one, other in zip(metrics.figures(), whole.figures(), strict=True):
            assert torch.equal(one, other)


def test_training_figures_of_version_0_1_0_are_read_and_written():
    state = {"loss": torch.tensor(4.5), "correct": torch.tensor([2, 0]), "images": torch.tensor([3, 1])}
    state |= {"losses": [torch.tensor(1.5), torch.tensor(2.0)], "num_batches": 7}
    metrics = TrainingMetrics(2)
    metrics.load_states([state], 0, 1)
    [saved] = metrics.states()
    assert list(saved) == list(state)
    assert all(torch.equal(saved[name], state[name]) for name in ("loss", "correct", "images"))
    assert (saved["losses"], saved["num_batches"]) == (state["losses"], 7)
    loss, accuracy, of_classes = metrics.pop()
    assert (loss, accuracy, of_classes.tolist()) == (2.0, 0.5, [2 / torch.tensor(3), 0])


@needs_gpu
def test_training_figures_go_on_on_a_gpu():
    batches, metrics, whole = random_batches(10, [30] * 6), TrainingMetrics(10), TrainingMetrics(10)
    take_in(whole, batches)
    take_in(metrics, batches[:3])
    moved = TrainingMetrics(10)
    moved.load_states(metrics.states(), 0, 1)
    moved.cuda()
    take_in(moved, [(logits.cuda(), labels.cuda()) for logits, labels in batches[3:]])
    for found, expected in zip(moved.figures(), whole.figures(), strict=True):
        assert torch.allclose(found.cpu(), expected)


def test_training_figures_of_two_ranks_go_on_on_one_and_on_three():
    batches = random_batches(10, [30] * 6)
    ranks, whole = [TrainingMetrics(10), TrainingMetrics(10)], TrainingMetrics(10)
    take_in(whole, batches)
    for metrics, part in zip(ranks, (batches[::2], batches[1::2]), strict=True):
        take_in(metrics, part)
    states = [metrics.states()[0] for metrics in ranks]
    one, *three = (TrainingMetrics(10) for _ in range(4))
    one.load_states(states, 0, 1)
    for found, expected in zip(one.figures(), whole.figures(), strict=True):
        assert torch.allclose(found, expected)
    for rank, metrics in enumerate(three):
        metrics.load_states(states, rank, 3)
        assert not metrics.is_empty  # on all alike, or one would wait for the others
        metrics.figures()
        assert metrics.images.sum() == (180 if rank == 0 else 0)


# Ranks.


class Blobs(ImageDataModule):
    """Images of seven classes, whose number is odd."""

    def __init__(self, num_test: int = 37) -> None:
        super().__init__(batch_size=8, eval_batch_size=8, mean=[0.5] * 3, std=[0.25] * 3)
        self.num_test = num_test

    def source_classes(self) -> list[str]:
        return list("abcdefg")

    def load(self, split):
        rng = np.random.default_rng(7)
        num = self.num_test if split == "test" else 28
        return rng.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8), np.arange(num) % 7


class Recorder(pl.Callback):
    """Writes what each rank measured and how many images it saw."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, 0

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.images += len(batch[0])

    def on_test_end(self, trainer, pl_module) -> None:
        found = pl_module.evaluations["test"]
        figures = {"confusion": found.confusion.tolist(), "top5": found.top5, "loss": found.loss}
        figures |= {"tta_correct": found.tta_correct, "images": self.images}
        (self.folder / f"{trainer.world_size}-{trainer.global_rank}.json").write_text(json.dumps(figures))


@pytest.fixture
def one_thread(monkeypatch):
    """A forked process hangs in OpenMP when its parent has used several threads."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_on(ranks: int, model: ImageClassifier, data: Blobs, folder: Path) -> list[dict]:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        logger=False,
        callbacks=[Recorder(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(model, datamodule=data, verbose=False)
    return [json.loads((folder / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


test_on.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_test", [37, 9])
@pytest.mark.process
def test_two_ranks_measure_exactly_what_one_measures(tmp_path, one_thread, num_test):
    torch.manual_seed(0)
    network_args = {"depths": (1, 1, 1), "widths": (4, 8, 8), "stem_width": 4}
    model = ImageClassifier(list("abcdefg"), network_args=network_args, tta=["mirror"])
    data = Blobs(num_test)
    (one,) = test_on(1, model, data, tmp_path)
    both = test_on(2, model, data, tmp_path)
    assert sum(rank["images"] for rank in both) == one["images"] == num_test
    assert both[0]["images"] != both[1]["images"]
    for rank in both:
        for name in ("confusion", "top5", "tta_correct"):
            assert rank[name] == one[name] is not None
        assert rank["loss"] == pytest.approx(one["loss"], rel=1e-6)

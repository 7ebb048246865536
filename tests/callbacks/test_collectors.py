"""Outputs of an evaluation: softmax in double precision, and the order of the data over two ranks."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from finder_runs import digits, small
from lightning.pytorch.strategies import DDPStrategy
from scipy.special import softmax

from cifar_resnets.callbacks.collectors import OutputCollector, in_data_order

pytestmark = pytest.mark.usefixtures("one_thread")

ALONE = SimpleNamespace(world_size=1)


def filled(*sizes: int, dtype: torch.dtype = torch.float32) -> tuple[OutputCollector, np.ndarray, np.ndarray]:
    collector, generator = OutputCollector(), torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 3, generator=generator).to(dtype), torch.arange(n) % 3) for n in sizes]
    for logits, labels in batches:
        collector.update(logits, labels)
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return collector, logits.double().numpy(), labels.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_are_joined_in_their_order(dtype):
    collector, logits, labels = filled(4, 1, 3, dtype=dtype)
    outputs = collector.pop(ALONE)
    np.testing.assert_array_equal(outputs.labels, labels)
    np.testing.assert_allclose(outputs.probabilities, softmax(logits, axis=1), rtol=1e-6)
    assert (outputs.labels.dtype, outputs.probabilities.dtype) == (torch.int64, torch.float32)


def test_it_starts_anew():
    collector, _, _ = filled(4)
    assert len(collector) == 1
    collector.pop(ALONE)
    assert not collector
    collector.update(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    collector.reset()
    assert not collector


def test_a_loader_may_use_its_buffer_again():
    collector, labels, logits = OutputCollector(), torch.tensor([1, 2]), torch.zeros(2, 3)
    collector.update(logits, labels)
    labels.zero_(), logits.fill_(9)
    assert collector.pop(ALONE).labels.tolist() == [1, 2]


def test_a_view_of_all_labels_does_not_travel_whole():
    collector, labels = OutputCollector(), torch.zeros(100_000, dtype=torch.int64)
    collector.update(torch.zeros(2, 3), labels[:2])
    assert len(pickle.dumps(collector._batches)) < 5000


def test_what_was_taken_in_under_inference_mode_can_be_computed_with():
    with torch.inference_mode():
        collector, _, _ = filled(2, 2)
        outputs = collector.pop(ALONE)
    weight = torch.ones(3, requires_grad=True)
    (outputs.probabilities * weight).sum().backward()
    assert weight.grad.sum() == pytest.approx(4)


class Collect(pl.Callback):
    """Writes the labels of all test images, and the logits that the module returned."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.collector = folder, OutputCollector()

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.collector.update(outputs, batch[1])

    def on_test_end(self, trainer, pl_module) -> None:
        found = self.collector.pop(trainer)
        sizes = [len(batch) for batch in in_data_order(trainer, [[0] * (1 + trainer.global_rank)] * 3)]
        noted = {"labels": found.labels.tolist(), "probabilities": found.probabilities.tolist(), "turns": sizes}
        (self.folder / f"{trainer.world_size}-{trainer.global_rank}.json").write_text(json.dumps(noted))


def collected(ranks: int, folder: Path) -> list[dict]:
    # 364 test images in batches of 91 over all ranks: of two ranks one sees 45 and the other 46
    data, module = digits(eval_batch_size=100), small()
    fork = DDPStrategy(start_method="fork", process_group_backend="gloo")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = pl.Trainer(callbacks=[Collect(folder)], **quiet, **({"strategy": fork, "devices": 2} if ranks == 2 else {}))
    run.test(module, data, verbose=False)
    return [json.loads((folder / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.process
def test_two_ranks_see_what_one_sees_in_the_same_order(tmp_path):
    [alone], [first, second] = collected(1, tmp_path), collected(2, tmp_path)
    data = digits()
    data.setup("test")
    expected = torch.cat([labels for _, labels in data.test_dataloader()]).tolist()
    assert alone["labels"] == first["labels"] == second["labels"] == expected
    assert len(set(expected[:20])) > 5
    np.testing.assert_allclose(first["probabilities"], alone["probabilities"], atol=1e-5)
    assert first["turns"] == second["turns"] == [1, 2, 1, 2, 1, 2]

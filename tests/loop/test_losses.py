"""Losses of parts of a batch, put together."""

from __future__ import annotations

import pytest
import torch

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop.losses import BatchLoss, look_at_loss
from lightning_edge.plan.plan import Plan
from lightning_edge.replicate.probe import Probe
from lightning_edge.train.replay import MicroBatch

DIVIDED = Plan.from_mapping({"pipelines": [{"stages": [{"devices": [0]}]}], "micro_batches": 2})
WHOLE = Plan.from_mapping({"pipelines": [{"stages": [{"devices": [0]}]}], "micro_batches": 1})


def parts(adds: bool, weighted: bool = False) -> tuple[BatchLoss, list[float]]:
    """Two micro-batches of 3 and 5 rows, of a batch of 8, two of which are accumulated."""
    loss = BatchLoss(8, 2, weighted, heard=False, adds=lambda: adds)
    scaled = []
    for index, (rows, value) in enumerate([(3, 6.0), (5, 14.0)]):
        micro_batch = MicroBatch(index, None, rows, 0, 1.0)
        output = torch.tensor(value)
        loss.add(micro_batch, {"loss": output, "loss_weight": 2 * rows} if weighted else output)
        assert micro_batch.loss is not None
        scaled.append(float(micro_batch.loss))
    return loss, scaled


def test_means_weigh_by_rows():
    loss, scaled = parts(adds=False)
    assert scaled == [6 * 3 / 8 / 2, 14 * 5 / 8 / 2]
    assert loss.share()["loss"] / loss.share()["weight"] == (6 * 3 + 14 * 5) / 8


def test_sums_add_up():
    loss, scaled = parts(adds=True)
    assert scaled == [3, 7]
    assert loss.share()["loss"] == 20
    assert loss.share()["adds"]


def test_a_weight_says_that_it_is_a_mean():
    loss, _ = parts(adds=True, weighted=True)
    assert loss.share()["loss"] / loss.share()["weight"] == (6 * 3 + 14 * 5) / 8
    assert not loss.share()["adds"]


def test_what_cannot_be_told_is_said():
    with pytest.warns(UserWarning, match="could not be told.*loss_weight"):
        look_at_loss(Probe((), {}, loss="unknown"), DIVIDED)
    with pytest.warns(UserWarning, match="loss_weight.*class_weights"):
        look_at_loss(Probe((), {}, loss="weighed"), DIVIDED)
    with pytest.raises(UnsupportedError, match="Write both as means"):
        look_at_loss(Probe((), {}, loss="mixed"), DIVIDED)


@pytest.mark.parametrize("kind", ["unknown", "mixed", "weighed"])
def test_whole_batches_and_weights_need_no_word(kind, recwarn):
    look_at_loss(Probe((), {}, loss=kind), WHOLE)
    look_at_loss(Probe((), {}, loss=kind, weighted=True), DIVIDED)
    assert not recwarn.list

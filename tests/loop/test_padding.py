"""The warning about token-averaged losses: when, and what it says."""

import warnings

import pytest
import torch

from lightning_edge.loop.padding import PaddingWatch

EVEN = {"ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.tensor([[1, -100], [2, -100]])}
UNEVEN = {"ids": torch.ones(2, 4), "labels": torch.tensor([[1, 2], [2, -100]])}


def test_unequal_counts_are_named_once_with_the_line_to_change():
    watch = PaddingWatch(divided=True, weighted=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.look(UNEVEN)
        watch.look(UNEVEN)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert text.startswith("rows of batch['labels'] have between 1 and 2 labels")
    assert '{"loss": loss, "loss_weight": (labels != -100).sum()}' in text


@pytest.mark.parametrize(
    ("divided", "weighted", "batch"),
    [(False, False, UNEVEN), (True, True, UNEVEN), (True, False, EVEN), (True, False, None)],
)
def test_nothing_is_said_where_nothing_can_go_wrong(divided, weighted, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PaddingWatch(divided, weighted).look(batch)

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_edge.errors import DataError, TransportError
from lightning_edge.loop.parcels import Parcel
from lightning_edge.train.axes import Axis
from lightning_edge.train.message import Message, pack, unpack
from lightning_edge.train.microbatch import BatchRows


def sent(parcel: Parcel) -> tuple[int, Parcel]:
    return Parcel.from_message(unpack(pack(parcel.to_message(7, "batch"))))


def test_a_parcel_arrives_as_it_was():
    rows = BatchRows(8, 3, {"x": Axis(1, 2), "name": None}, first=2)
    indices = [np.int64(4), 5, (6, "key")]  # samplers give indices of any kind
    batch = {"x": torch.arange(6).reshape(1, 6), "name": "train"}
    session, parcel = sent(Parcel(1, 2, 3, batch, rows, indices))
    assert session == 7
    assert (parcel.loader, parcel.round, parcel.index, parcel.rows) == (1, 2, 3, rows)
    assert parcel.indices == indices
    assert parcel.batch["x"].tolist() == batch["x"].tolist()
    assert parcel.batch["name"] == "train"


def test_ends_and_problems_have_no_batch():
    assert sent(Parcel(1, 2, 3)) == (7, Parcel(1, 2, 3))
    long = "the disk is gone " * 10_000
    assert sent(Parcel(1, 2, 3, problem=long))[1].problem == long


def test_what_cannot_be_sent_is_named():
    parcel = Parcel(0, 1, 0, {"image": [object()]}, BatchRows(1, 1, None))
    with pytest.raises(DataError, match=r"batch\['image'\]\[0\] is a builtins.object"):
        parcel.to_message(7, "batch")


@pytest.mark.parametrize("damage", ["label", "tree", "rows"])
def test_damaged_parcels_are_refused(damage):
    message = Parcel(0, 1, 0, torch.ones(2), BatchRows(2, 2, Axis(0))).to_message(7, "batch")
    meta = dict(message.meta)
    if damage == "rows":
        meta["label"] = ["l", 7, 0, 1, 0, ["l", 2], None, None]
    else:
        del meta[damage]
    with pytest.raises(TransportError, match="damaged"):
        Parcel.from_message(Message(meta, message.tensors))

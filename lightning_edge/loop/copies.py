"""`data="every"`: each device has a copy of the data, and all have to draw the same batches.

At the start of each round every device's random streams are set to those of rank 0. Then the first
batches are compared by their shapes and a checksum, before anything is computed from them: inputs
and labels of different samples would train to garbage without any error.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_edge.errors import DataError
from lightning_edge.loop.parcels import Parcel
from lightning_edge.loop.streams import Streams
from lightning_edge.train.axes import describe
from lightning_edge.train.transport import Transport
from lightning_edge.train.tree import walk

__all__: list[str] = []


def align(transport: Transport, loader: Any) -> None:
    """Set all random streams, and the loader's own generators, to the states of rank 0.

    Raises:
        DataError: The loaders of two devices own different generators.
    """
    streams = Streams.capture(loader)
    states = transport.broadcast(streams.to_plain() if transport.rank == 0 else None)
    if transport.rank != 0:
        try:
            streams.adopt(states)
        except ValueError as error:
            raise DataError(
                f"the loader of {transport.names[transport.rank]} is no copy of rank 0's: {error}"
            ) from None


def card(batch: Any, parcel: Parcel) -> dict[str, Any]:
    """Describe a batch so that copies of it can be compared."""
    if parcel.rows is None:
        return {"problem": parcel.problem, "lines": [f"no batch {parcel.index}"]}
    leaves = list(walk(batch))
    ends = [leaves[0], leaves[-1]] if leaves else []
    lines = [f"{parcel.rows.rows} rows", *(f"{path}, {_kind(leaf)}" for path, leaf in leaves)]
    lines += [f"{path} with checksum {_checksum(leaf)}" for path, leaf in ends]
    return {"problem": None, "lines": lines}


def compare(transport: Transport, own: dict[str, Any], what: str) -> None:
    """Compare the cards of all devices.

    Raises:
        DataError: They differ; names the ranks and the first difference.
    """
    cards = transport.all_gather(own)
    problems = [other["problem"] for other in cards if other["problem"]]
    if problems:
        raise DataError("; ".join(problems))
    if all(other == cards[0] for other in cards):
        return
    length = max(len(other["lines"]) for other in cards)
    columns = [other["lines"] + ["nothing"] * (length - len(other["lines"])) for other in cards]
    line = next(i for i in range(length) if len({column[i] for column in columns}) > 1)
    groups: dict[str, list[str]] = {}
    for rank, column in enumerate(columns):
        groups.setdefault(column[line], []).append(transport.names[rank])
    said = "; ".join(f"{', '.join(names)}: {text}" for text, names in groups.items())
    raise DataError(
        f'with data="every" all devices must load the same {what} batches, but they differ'
        f" ({said}). Give every device the same data, code and seed (seed_everything), or let one"
        f' of them load with data="owner"'
    )


def _kind(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    return describe(leaf) + (f" of {dtype}" if dtype is not None else "")


def _checksum(leaf: Any) -> str:
    if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
        leaf = leaf.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufcM":
        return f"{zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data):08x}"
    if leaf is None or isinstance(leaf, (str, bytes, bool, int, float)):
        return f"{zlib.crc32(repr(leaf).encode()):08x}"
    return "not compared"

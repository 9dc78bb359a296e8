"""Checkpoints: ordinary single-device Lightning files, from any layout and to any layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from lightning_edge.errors import CheckpointError
from lightning_edge.replicate.placeholder import is_fake
from lightning_edge.replicate.state import (
    Path,
    collect,
    held_optimizer_state,
    whole_optimizer_state,
)
from lightning_edge.train.exchange import TensorExchange
from lightning_edge.train.stage import Stage
from lightning_edge.train.transport import Transport

__all__: list[str] = []


def optimizer_state(
    state: dict[str, Any], transport: Transport, mode: FakeTensorMode
) -> dict[str, Any]:
    """An optimizer's state as on one device, with placeholders for what others hold."""
    return whole_optimizer_state(state, TensorExchange(transport), mode)


def held_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved optimizer state without what this rank does not hold."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return held_optimizer_state(state, [not is_fake(p) for p in parameters])


def save(
    checkpoint: dict[str, Any],
    stage: Stage,
    write: Callable[[dict[str, Any]], None],
    where: str,
) -> None:
    """Put the whole checkpoint together on rank 0 and write it there; collective.

    Args:
        checkpoint: As dumped on this rank, with placeholders.
        stage: This rank's.
        write: Writes the whole one.
        where: For messages.

    Raises:
        CheckpointError: On every rank when something is missing or rank 0 cannot write.
    """
    transport = stage.transport
    stage.synchronise()
    elsewhere = stage.buffers_elsewhere()

    def better_elsewhere(path: Path) -> bool:
        return len(path) == 2 and path[0] == "state_dict" and path[1] in elsewhere

    whole = collect(checkpoint, TensorExchange(transport), better_elsewhere)
    failure: str | None = None
    error: Exception | None = None
    if transport.rank == 0:
        try:
            write(whole)
        except Exception as caught:  # told to all, else they would wait for a rank that is gone
            failure, error = f"{type(caught).__name__}: {caught}", caught
    failure = transport.broadcast(failure)
    if failure is not None:
        raise CheckpointError(f"rank 0 could not write {where}: {failure}") from error


def load(path: Any, transport: Transport, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a checkpoint on every rank; collective.

    Ranks that find the same file read it themselves, else rank 0 sends what it reads.

    Raises:
        CheckpointError: On every rank when rank 0 cannot read it.
    """
    digests = transport.all_gather(_digest(path))
    if digests[0] is not None and all(digest == digests[0] for digest in digests):
        return read()
    content: dict[str, Any] | None = None
    failure: str | None = None
    if transport.rank == 0:
        try:
            content = read()
        except Exception as caught:
            failure = f"{type(caught).__name__}: {caught}"
    failure = transport.broadcast(failure)
    if failure is not None:
        raise CheckpointError(f"rank 0 could not read the checkpoint {path}: {failure}")
    received: dict[str, Any] = transport.broadcast(content)
    return received


def _digest(path: Any) -> str | None:
    try:
        file = FilePath(path)
        if not file.is_file():
            return None
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except (TypeError, OSError):
        return None

"""Checkpoints: ordinary single-device Lightning files, from any layout and to any layout."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from lightning_edge.errors import CheckpointError
from lightning_edge.loop.averages import names_one_of
from lightning_edge.replicate import placeholder
from lightning_edge.replicate.disk import why
from lightning_edge.replicate.placeholder import fake_mode, is_fake
from lightning_edge.replicate.state import (
    Path,
    arriving,
    collect,
    filled,
    held_optimizer_state,
    tensor_paths,
    whereabouts,
    whole_optimizer_state,
)
from lightning_edge.replicate.stream import StreamedFile
from lightning_edge.train.exchange import TensorExchange
from lightning_edge.train.stage import Stage
from lightning_edge.train.transport import Transport

__all__: list[str] = []

_SAMPLED_BYTES = 256 << 20  # larger files are compared by samples


def optimizer_state(
    state: dict[str, Any], transport: Transport, mode: FakeTensorMode | None
) -> dict[str, Any]:
    """An optimizer's state as on one device, with placeholders for what others hold.

    Args:
        state: Of this rank's optimizer.
        transport: Connects the ranks.
        mode: Of the run's placeholders; None after the run.
    """
    return whole_optimizer_state(state, TensorExchange(transport), mode or fake_mode())


def held_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A saved optimizer state without what this rank does not hold."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return held_optimizer_state(state, [not is_fake(p) for p in parameters])


def save(
    checkpoint: dict[str, Any],
    transport: Transport,
    stage: Stage | None,
    write: Callable[[dict[str, Any]], None] | None,
    where: str,
) -> None:
    """Put the whole checkpoint on rank 0's disk; collective.

    Args:
        checkpoint: As dumped on this rank, with placeholders.
        transport: Connects the ranks.
        stage: This rank's; None after a run.
        write: Writes the whole one, put together in memory first; None for an ordinary local file,
            which is filled tensor by tensor.
        where: The file.

    Raises:
        CheckpointError: On every rank when something is missing or rank 0 cannot write.
    """
    elsewhere: frozenset[str] = frozenset()
    if stage is not None:
        stage.synchronise()
        elsewhere = stage.buffers_elsewhere()

    def better_elsewhere(path: Path) -> bool:
        return names_one_of(path, elsewhere)

    exchange = TensorExchange(transport)
    if write is None:
        write_stream(checkpoint, exchange, where, better_elsewhere)
        return
    whole = collect(checkpoint, exchange, better_elsewhere)
    _on_rank_0(exchange, lambda: write(whole), where)


def write_stream(
    checkpoint: dict[str, Any],
    exchange: TensorExchange,
    where: str,
    better_elsewhere: Callable[[Path], bool] | None = None,
) -> None:
    """Fill a file on rank 0's disk tensor by tensor; collective.

    Args:
        checkpoint: With placeholders, in the same places on all ranks.
        exchange: Connects the ranks.
        where: The file.
        better_elsewhere: Places of real tensors that another rank than 0 knows better.

    Raises:
        CheckpointError: On every rank when something is missing or rank 0 cannot write.
    """
    held = whereabouts(checkpoint, exchange, better_elsewhere)
    file = _on_rank_0(exchange, lambda: StreamedFile(checkpoint, FilePath(where)), where)
    stream = arriving(checkpoint, held, exchange)

    def fill() -> None:
        assert file is not None
        try:
            file.fill(stream)
        except BaseException:
            file.give_up()
            for _ in stream:  # the others are sending
                pass
            raise

    if exchange.rank != 0:
        for _ in stream:
            pass
    _on_rank_0(exchange, fill, where)


def _on_rank_0(exchange: TensorExchange, act: Callable[[], Any], where: str) -> Any:
    """Act on rank 0 and tell all whether it went well, else they would wait for it."""
    failure: str | None = None
    error: Exception | None = None
    result = None
    if exchange.rank == 0:
        try:
            result = act()
        except Exception as caught:
            failure, error = why(caught, FilePath(where)), caught
    failure = exchange.broadcast(failure)
    if failure is not None:
        raise CheckpointError(f"rank 0 could not write {where}: {failure}") from error
    return result


def share_path(
    trainer: pl.Trainer,
    transport: Transport,
    together: Callable[[str, Transport, bool | None], str],
) -> None:
    """Let rank 0 say which checkpoint a run begins with, whatever the others find on their disks.

    Args:
        trainer: About to run.
        transport: Connects the ranks.
        together: Makes an ordinary checkpoint of a folder of parts; collective.
    """
    connector = trainer._checkpoint_connector
    start = type(connector).resume_start

    def resume_start(checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        if checkpoint_path is not None and not isinstance(checkpoint_path, (str, os.PathLike)):
            start(connector, checkpoint_path, weights_only)  # what a user's CheckpointIO knows
            return
        own = None if checkpoint_path is None else str(checkpoint_path)
        found = transport.broadcast(own)
        if found is not None:
            found = together(found, transport, weights_only)
        start(connector, found, weights_only)

    connector.resume_start = resume_start  # type: ignore[method-assign]


def load(path: Any, transport: Transport, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a checkpoint on every rank; collective.

    Ranks that find the same file read it themselves, else rank 0 sends what it reads.

    Raises:
        CheckpointError: On every rank when rank 0 cannot read it.
    """
    if _all_have(path, transport):
        return read()
    content = _read_on_rank_0(path, transport, read)
    received: dict[str, Any] = transport.broadcast(content)
    return received


def load_in_parts(path: Any, transport: Transport, weights_only: bool | None) -> dict[str, Any]:
    """Read a checkpoint that may be larger than any rank's memory; collective.

    Tensors stay in the file until they are used. Ranks without the file have stand-ins for all
    but the small ones; see `fetch`.

    Raises:
        CheckpointError: On every rank when rank 0 cannot read it.
    """

    def read() -> dict[str, Any]:
        content: dict[str, Any] = torch.load(
            path, mmap=True, map_location="cpu", weights_only=weights_only
        )
        return content

    if _all_have(path, transport):
        return read()
    content = _read_on_rank_0(path, transport, read)
    outline = _outline(content) if transport.rank == 0 else None
    tree, far = transport.broadcast(outline)
    if transport.rank == 0:
        assert content is not None
        return content
    mode, found = fake_mode(), {}
    for place, shape, dtype in far:
        with mode:
            found[tuple(place)] = torch.empty(tuple(shape), dtype=getattr(torch, dtype))
    result: dict[str, Any] = filled(tree, found)
    return result


def _outline(content: Any) -> list[Any]:
    large = {p: t for p, t in tensor_paths(content) if t.numel() > placeholder.SMALL_ENTRIES}
    tree = filled(content, dict.fromkeys(large, torch.empty(0)))
    far = [[list(p), list(t.shape), str(t.dtype).split(".")[1]] for p, t in large.items()]
    return [tree, far]


def fetch(tree: Any, source: Any, transport: Transport) -> Any:
    """Get what a rank's tree has stand-ins for from rank 0, tensor by tensor; collective.

    Args:
        tree: What this rank needs.
        source: On rank 0, the tree that has everything at the same paths.
        transport: Connects the ranks.
    """
    exchange, found = TensorExchange(transport), {}
    far: list[Path] = [path for path, tensor in tensor_paths(tree) if is_fake(tensor)]
    have: dict[Path, Tensor] = dict(tensor_paths(source)) if exchange.rank == 0 else {}
    for rank, paths in enumerate(exchange.all_gather(far)):
        for path in map(tuple, paths):
            if exchange.rank == 0:
                exchange.send_tensor(rank, have[path])
            elif exchange.rank == rank:
                found[path] = exchange.receive_tensor(0)
    return filled(tree, found)


def _read_on_rank_0(
    path: Any, transport: Transport, read: Callable[[], dict[str, Any]]
) -> dict[str, Any] | None:
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
    return content


def _all_have(path: Any, transport: Transport) -> bool:
    digests = transport.all_gather(_digest(path))
    return digests[0] is not None and all(digest == digests[0] for digest in digests)


def _digest(path: Any) -> str | None:
    try:
        file = FilePath(path)
        if not file.is_file():
            return None
        size = file.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        step = max(1 << 20, size // 256) if size > _SAMPLED_BYTES else 1 << 20
        with file.open("rb") as content:
            for start in range(0, size, step):
                content.seek(start)
                digest.update(content.read(1 << 20))
        return digest.hexdigest()
    except (TypeError, OSError):
        return None

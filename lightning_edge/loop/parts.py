"""Go on from the parts that devices kept when one of them failed: each has its own on its own disk.

rank 0   step-12-3f/rank-0.part  --+
rank 1   step-12-3f/rank-1.part  --+-->  step-12-3f/whole.ckpt on rank 0's disk: an ordinary one
rank 2   (nothing, or new here)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import torch

from lightning_edge.errors import CheckpointError
from lightning_edge.loop.checkpoint import write_stream
from lightning_edge.replicate import parts
from lightning_edge.replicate.parts import Origin
from lightning_edge.replicate.placeholder import fake_mode
from lightning_edge.replicate.state import Path, filled, tensor_paths, whole_optimizer_state
from lightning_edge.train.exchange import TensorExchange
from lightning_edge.train.transport import Transport

__all__: list[str] = []

WHOLE = "whole.ckpt"
State = tuple[int, str]  # step and run


def whole(path: str, transport: Transport, weights_only: bool | None = None) -> str:
    """Put a checkpoint together if `path` is a folder of parts on any rank; collective.

    Args:
        path: A checkpoint, the folder of one state's parts, or the folder of several such.
        transport: Connects the ranks.
        weights_only: As for a checkpoint.

    Returns:
        The path of an ordinary checkpoint, which rank 0 has: `path` itself if it is one.

    Raises:
        CheckpointError: On every rank, if parts are missing; names whose they are.
    """
    own: list[tuple[Origin, Any]] = []
    problem = None
    try:
        own = [parts.read(file, weights_only) for file in _files(FilePath(path))]
    except CheckpointError as error:
        problem = str(error)
    told = transport.all_gather([problem, [_plain(origin) for origin, _ in own]])
    problems = [text for text, _ in told if text is not None]
    if problems:
        raise CheckpointError("; ".join(dict.fromkeys(problems)))
    if not any(origins for _, origins in told):
        return path
    step, run = _choose(path, [origin for _, origins in told for origin in origins])
    mine = [tree for origin, tree in own if (origin.step, origin.run) == (step, run)]
    tree = _tree(mine, transport)
    name = f"step-{step}-{run}"
    folder = FilePath(path) if FilePath(path).name == name else FilePath(path) / name
    write_stream(tree, TensorExchange(transport), str(folder / WHOLE))
    return str(folder / WHOLE)


def _files(folder: FilePath) -> list[FilePath]:
    if not folder.is_dir():
        return []
    return sorted(folder.glob(parts.PATTERN)) or sorted(folder.glob(f"step-*/{parts.PATTERN}"))


def _plain(origin: Origin) -> list[Any]:
    return [origin.step, origin.run, origin.rank, list(origin.names), list(origin.holders)]


def _choose(path: str, told: Sequence[Sequence[Any]]) -> State:
    """The furthest state of which every part is there."""
    ranks: dict[State, set[int]] = {}
    about: dict[State, Sequence[Any]] = {}
    for step, run, rank, *rest in told:
        ranks.setdefault((step, run), set()).add(rank)
        about[step, run] = rest
    for state in sorted(ranks, reverse=True):
        if not parts.lost(about[state][1], ranks[state]):
            return state
    lines = []
    for step, run in sorted(ranks, reverse=True):
        names, holders = about[step, run]
        missing = [_either(group, names) for group in parts.lost(holders, ranks[step, run])]
        lines.append(f"of step {step} ({run}) the part of {' and of '.join(missing)} is missing")
    raise CheckpointError(
        f"{path} is no state to go on from: {'; '.join(lines)}. Start the devices that have these"
        " parts on their disks too, or go on from the last whole checkpoint"
    )


def _either(ranks: Sequence[int], names: Sequence[str]) -> str:
    return " or ".join(f"rank {rank} ({names[rank]})" for rank in ranks)


def _tree(mine: Sequence[Any], transport: Transport) -> Any:
    """What this rank has of a checkpoint, with placeholders, in the same places on all ranks."""
    exchange, mode = TensorExchange(transport), fake_mode()
    first = next(r for r, has in enumerate(transport.all_gather(bool(mine))) if has)
    tree = parts.together(mine) if mine else None
    outline = transport.broadcast(_outline(tree) if transport.rank == first else None, first)
    if tree is None:
        plain, shapes = outline
        missing: dict[Path, Any] = {
            tuple(place): torch.empty(tuple(shape), dtype=dtype, device="meta")
            for place, shape, dtype in shapes
        }
        tree = filled(plain, missing)
    tree = parts.with_placeholders(tree, mode)
    if "optimizer_states" in tree:
        states = [whole_optimizer_state(s, exchange, mode) for s in tree["optimizer_states"]]
        tree = {**tree, "optimizer_states": states}
    return tree


def _outline(tree: Any) -> list[Any]:
    """A tree without values, and without the state of optimizers, which everybody asks for."""
    if "optimizer_states" in tree:
        tree = {
            **tree,
            "optimizer_states": [{**state, "state": {}} for state in tree["optimizer_states"]],
        }
    tensors = dict(tensor_paths(tree))
    shapes = [[list(path), list(tensor.shape), tensor.dtype] for path, tensor in tensors.items()]
    return [filled(tree, dict.fromkeys(tensors, torch.empty(0))), shapes]

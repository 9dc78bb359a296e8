"""Parts of a checkpoint: what one device holds, with room for what the others hold.

    rank-0.part   state_dict/h.0.weight           state_dict/h.3.weight  (meta)     optimizer  0
    rank-1.part   state_dict/h.0.weight  (meta)   state_dict/h.3.weight             optimizer     3
    together      state_dict/h.0.weight           state_dict/h.3.weight             optimizer  0  3

A device can write its part without asking anybody. What it does not hold is a tensor on the meta
device: shape and dtype, no values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_edge.errors import CheckpointError
from lightning_edge.replicate.disk import part_of, publish
from lightning_edge.replicate.placeholder import is_fake
from lightning_edge.replicate.state import Path, filled, tensor_paths

__all__: list[str] = []

VERSION = 1
PATTERN = "rank-*.part"


@dataclass(frozen=True)
class Origin:
    """Where a part comes from.

    Attributes:
        run: Tells parts of one run from those of another.
        step: Optimizer steps done.
        rank: Who held it.
        names: The devices' names, by rank.
        holders: The sets of ranks that hold something together: of each, one has to be there.
    """

    run: str
    step: int
    rank: int
    names: tuple[str, ...]
    holders: tuple[tuple[int, ...], ...]

    def call(self, rank: int) -> str:
        """How to call a device."""
        return f"rank {rank} ({self.names[rank]})"

    @property
    def folder(self) -> str:
        """Name of the folder for all parts of this state."""
        return f"step-{self.step}-{self.run}"

    @property
    def file(self) -> str:
        """Name of the file for this part."""
        return f"rank-{self.rank}.part"


def lost(holders: Iterable[Sequence[int]], ranks: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """The sets of holders of which nobody is among `ranks`."""
    there = set(ranks)
    return tuple(tuple(group) for group in holders if not there & set(group))


def without(tree: Any, elsewhere: Callable[[Path], bool]) -> Any:
    """A tree with meta tensors for placeholders and for what others know better."""
    missing = {
        path: torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta")
        for path, tensor in tensor_paths(tree)
        if is_fake(tensor) or elsewhere(path)
    }
    return filled(tree, missing)


def write(origin: Origin, tree: Any, folder: FilePath) -> FilePath:
    """Write a part; the file is whole or not there.

    Raises:
        OSError: The disk.
    """
    path = folder / origin.folder / origin.file
    part = part_of(path)
    try:
        torch.save({"part": VERSION, "origin": asdict(origin), "checkpoint": tree}, part)
        publish(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return path


def read(path: FilePath, weights_only: bool | None = None) -> tuple[Origin, Any]:
    """Read a part; its tensors stay in the file until they are used.

    Raises:
        CheckpointError: It is none, or cannot be read.
    """
    try:
        content = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        if content["part"] != VERSION:
            raise CheckpointError(f"{path} is a part of another version: {content['part']}")
        plain = dict(content["origin"])
        plain["names"] = tuple(plain["names"])
        plain["holders"] = tuple(map(tuple, plain["holders"]))
        return Origin(**plain), content["checkpoint"]
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged file makes of torch.load
        raise CheckpointError(f"{path} cannot be read as a part of a checkpoint: {error}") from None


def together(trees: Sequence[Any]) -> Any:
    """One tree of several parts, with what any of them has."""
    tree = dict(trees[0])
    if "optimizer_states" in tree:
        of_parts = zip(*(part["optimizer_states"] for part in trees), strict=True)
        tree["optimizer_states"] = [_optimizer(states) for states in of_parts]
    found: dict[Path, Tensor] = {}
    for part in trees:
        found.update((p, t) for p, t in tensor_paths(part) if p not in found and not t.is_meta)
    return filled(tree, {p: t for p, t in found.items() if p[0] != "optimizer_states"})


def _optimizer(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    entries: dict[Any, Any] = {}
    for state in states:
        for index, entry in state["state"].items():
            entries.setdefault(index, entry)
    return {**states[0], "state": dict(sorted(entries.items()))}


def with_placeholders(tree: Any, mode: FakeTensorMode) -> Any:
    """A tree with placeholders for its meta tensors."""
    missing = {}
    for path, tensor in tensor_paths(tree):
        if tensor.is_meta:
            with mode:
                missing[path] = torch.empty(tuple(tensor.shape), dtype=tensor.dtype)
    return filled(tree, missing)

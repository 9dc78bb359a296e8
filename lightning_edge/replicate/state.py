"""Weights, buffers and optimizer state between the devices that hold them and one device's view.

A checkpoint is built as the same tree on every device; what a device does not hold is a placeholder
in it. Rank 0 then asks, path by path, whoever holds the real tensor:

    rank 0   state_dict/h.0.weight  real      state_dict/h.3.weight  fake  <--.
    rank 1   state_dict/h.0.weight  fake      state_dict/h.3.weight  real  ---'

The same walk serves weights, buffers, optimizer state and averaged copies made by callbacks.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_edge.errors import CheckpointError
from lightning_edge.replicate.placeholder import is_fake

__all__: list[str] = []

Path = tuple[str | int, ...]


class Exchange(Protocol):
    """What this module needs of the transport."""

    rank: int
    world_size: int

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Give `obj` of rank `src` to all."""

    def all_gather(self, obj: Any) -> list[Any]:
        """Give every rank's `obj` to all."""

    def send_tensor(self, peer: int, tensor: Tensor) -> None:
        """Send one tensor."""

    def receive_tensor(self, peer: int) -> Tensor:
        """Receive one tensor."""


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    content: Any = flat.view(torch.uint8).numpy()
    return zlib.crc32(content) if flat.numel() else 0


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def spread_initial(
    module: nn.Module,
    holders: Mapping[str, tuple[int, ...]],
    exchange: Exchange,
    settled: Collection[str] = (),
) -> int:
    """Give every holder rank 0's initial values, sending only what differs.

    Args:
        module: Real on every rank, but for what is settled.
        holders: By name of a parameter or buffer the ranks that hold it.
        exchange: Connects the ranks.
        settled: What its holders have the right values of already; rank 0 may not.

    Returns:
        Bytes this rank sent.
    """
    tensors = {
        name: tensor
        for name, tensor in named_tensors(module).items()
        if name not in settled and not is_fake(tensor)
    }
    sums: dict[str, int] = exchange.broadcast(
        {n: checksum(t) for n, t in tensors.items()} if exchange.rank == 0 else None
    )
    differing = [
        name
        for name, tensor in tensors.items()
        if name in sums and exchange.rank in holders[name] and checksum(tensor) != sums[name]
    ]
    sent = 0
    for rank, names in enumerate(exchange.all_gather(differing)):
        for name in names:
            if exchange.rank == 0:
                exchange.send_tensor(rank, tensors[name].detach())
                sent += tensors[name].numel() * tensors[name].element_size()
            elif exchange.rank == rank:
                tensors[name].copy_(exchange.receive_tensor(0))
    return sent


@torch.no_grad()
def hold_together(
    module: nn.Module, holders: Mapping[str, tuple[int, ...]], exchange: Exchange
) -> tuple[str, ...]:
    """Give all holders of a parameter its first holder's value where they have come to differ.

    Every holder runs the optimizer by itself on equal gradients; unlike processors may round
    differently. Collective.

    Args:
        module: With placeholders.
        holders: By name the ranks that hold it.
        exchange: Connects the ranks.

    Returns:
        The names that differed, on every rank.
    """
    shared = {
        name: parameter
        for name, parameter in module.named_parameters()
        if len(holders[name]) > 1 and exchange.rank in holders[name]
    }
    sums = exchange.all_gather({name: checksum(tensor) for name, tensor in shared.items()})
    differing = sorted(
        name
        for name in {name for part in sums for name in part}
        if len({part[name] for part in sums if name in part}) > 1
    )
    for name in differing:
        first, *others = holders[name]
        for rank in others:
            if exchange.rank == first:
                exchange.send_tensor(rank, shared[name].detach())
            elif exchange.rank == rank:
                shared[name].copy_(exchange.receive_tensor(first))
    return tuple(differing)


@torch.no_grad()
def whole_again(
    module: nn.Module,
    names: Sequence[str],
    holders: Mapping[str, tuple[int, ...]],
    exchange: Exchange,
    materialize: Callable[[str], None],
) -> None:
    """Give every rank the values of parameters and buffers, from their first holders.

    Args:
        module: With placeholders.
        names: Of those.
        holders: By name the ranks that hold it.
        exchange: Connects the ranks.
        materialize: Makes a real parameter of a placeholder, by name, in the module.
    """
    for name in names:
        first = holders[name][0]
        if exchange.rank == first:
            tensor = _get(module, name)
            for rank in range(exchange.world_size):
                if rank not in holders[name]:
                    exchange.send_tensor(rank, tensor.detach())
        elif exchange.rank not in holders[name]:
            received = exchange.receive_tensor(first)
            materialize(name)
            mine = _get(module, name)
            if is_fake(mine) or mine.shape != received.shape:  # a buffer that steps replace
                owner, _, key = name.rpartition(".")
                module.get_submodule(owner)._buffers[key] = received.to(mine.device)
            else:
                mine.copy_(received)


def _get(module: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), key)
    assert isinstance(tensor, Tensor)
    return tensor


def tensor_paths(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in nested dicts, lists and tuples, with its place."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, dict):  # not any Mapping: asking an OmegaConf one for a value resolves it
        for key, value in tree.items():
            yield from tensor_paths(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from tensor_paths(value, (*path, i))


Copies = Callable[[Path], bool]


def collect(tree: Any, exchange: Exchange, copies: Copies | None = None) -> Any:
    """Fill the placeholders in rank 0's tree with what their holders have at the same paths.

    Args:
        tree: Nested dicts, lists and tuples; equal paths on all ranks, placeholders where a rank
            holds nothing.
        exchange: Connects the ranks; all of them call this.
        copies: Of real tensors on rank 0, those that another rank knows better (buffers of a stage
            rank 0 is not in).

    Returns:
        The tree without placeholders on rank 0, the tree as given elsewhere.

    Raises:
        CheckpointError: On all ranks, when nobody holds something.
    """
    found = dict(arriving(tree, whereabouts(tree, exchange, copies), exchange))
    return filled(tree, found) if exchange.rank == 0 else tree


def whereabouts(
    tree: Any, exchange: Exchange, copies: Copies | None = None
) -> list[tuple[Path, int]]:
    """Who holds what rank 0 does not; see `collect`."""
    mine = dict(tensor_paths(tree))

    def elsewhere(path: Path) -> bool:
        return is_fake(mine[path]) or (copies is not None and copies(path))

    wanted = exchange.broadcast([p for p in mine if elsewhere(p)] if exchange.rank == 0 else None)
    asked = [tuple(path) for path in wanted]
    have = exchange.all_gather([path in mine and not elsewhere(path) for path in asked])
    found: list[tuple[Path, int]] = []
    missing = []
    for i, path in enumerate(asked):
        holder = next((rank for rank, flags in enumerate(have) if flags[i]), None)
        if holder is not None:
            found.append((path, holder))
        elif exchange.rank == 0 and is_fake(mine[path]):
            missing.append(path)
    missing = exchange.broadcast(missing)
    if missing:
        names = ", ".join("/".join(map(str, path)) for path in missing[:5])
        raise CheckpointError(f"{len(missing)} tensors of the checkpoint are on no device: {names}")
    return found


def arriving(
    tree: Any, held: Sequence[tuple[Path, int]], exchange: Exchange
) -> Iterator[tuple[Path, Tensor]]:
    """The tensors that rank 0 does not hold, one at a time; nothing on the ranks that send them."""
    mine = dict(tensor_paths(tree))
    for path, holder in held:
        if exchange.rank == 0:
            yield path, exchange.receive_tensor(holder)
        elif exchange.rank == holder:
            exchange.send_tensor(0, mine[path].detach())


def filled(tree: Any, found: Mapping[Path, Tensor]) -> Any:
    """The tree with other tensors at some paths; parts without any are the very same objects."""
    return _filled(tree, found, ())


def _filled(tree: Any, found: Mapping[Path, Tensor], path: Path) -> Any:
    if isinstance(tree, Tensor):
        return found.get(path, tree)
    if not isinstance(tree, (dict, list, tuple)):
        return tree
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))
    parts = [(key, _filled(value, found, (*path, key))) for key, value in pairs]
    if all(new is old for (_, new), (_, old) in zip(parts, pairs, strict=True)):
        return tree
    if isinstance(tree, dict):
        changed = copy.copy(tree)  # with what an OrderedDict of a module knows besides its items
        changed.update(parts)
        return changed
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(part for _, part in parts))
    return type(tree)(part for _, part in parts)


def whole_optimizer_state(
    state_dict: dict[str, Any], exchange: Exchange, mode: FakeTensorMode
) -> dict[str, Any]:
    """An optimizer's state with placeholders for the parameters that other ranks hold.

    Args:
        state_dict: Of this rank's optimizer: state only for what it holds (entries of placeholders
            that some optimizers make are dropped).
        exchange: Connects the ranks; all of them call this.
        mode: For the placeholders.

    Returns:
        The state dict with an entry for every parameter that has state anywhere, in order.
    """
    own = {
        index: entry
        for index, entry in state_dict["state"].items()
        if not any(is_fake(tensor) for _, tensor in tensor_paths(entry))
    }
    shapes = exchange.all_gather({index: _described(entry) for index, entry in own.items()})
    merged: dict[int, Any] = {}
    for index in sorted({index for part in shapes for index in part}):
        if index in own:
            merged[index] = own[index]
        else:
            described = next(part[index] for part in shapes if index in part)
            merged[index] = {key: _empty(value, mode) for key, value in described.items()}
    return {**state_dict, "state": merged}


def _described(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: ("tensor", tuple(value.shape), value.dtype)
        if isinstance(value, Tensor)
        else ("plain", value)
        for key, value in entry.items()
    }


def _empty(described: Sequence[Any], mode: FakeTensorMode) -> Any:
    if described[0] == "plain":
        return described[1]
    with mode:
        return torch.empty(tuple(described[1]), dtype=described[2])


def held_optimizer_state(state_dict: Mapping[str, Any], held: Sequence[bool]) -> dict[str, Any]:
    """A whole optimizer state without the entries of parameters this rank does not hold.

    Args:
        state_dict: As saved by one device.
        held: Whether this rank holds the parameter, in the order of the optimizer's groups.
    """
    state = {index: entry for index, entry in state_dict["state"].items() if held[index]}
    return {**state_dict, "state": state}

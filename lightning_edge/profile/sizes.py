"""Bytes of blocks and cuts, and what tells models apart: known without running anything."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_edge.plan.workload import Shared
from lightning_edge.profile.blocks import Site, Sites
from lightning_edge.replicate.probe import Leaf, Probe
from lightning_edge.replicate.split import carried, crossing
from lightning_edge.train.microbatch import batch_leaves

__all__: list[str] = []

NORMALISED_ROWS = 8
"""Statistics of fewer make models train worse (Wu and He, "Group Normalization", ECCV 2018)."""


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers."""
    return tensor.numel() * tensor.element_size()


def own_bytes(sites: Sites, module: nn.Module) -> list[tuple[int, int]]:
    """Per block the bytes of its own parameters, and of their gradients."""
    named = dict(module.named_parameters())
    return [
        (
            sum(size_of(named[name]) for name in own),
            sum(size_of(named[name]) for name in own if named[name].requires_grad),
        )
        for own in sites.own
    ]


def shared_parameters(sites: Sites, module: nn.Module, state_ratio: float) -> tuple[Shared, ...]:
    """Parameters used by several blocks, put together by who uses them."""
    named = dict(module.named_parameters())
    together: dict[tuple[int, ...], list[str]] = {}
    for name, users in sites.shared.items():
        together.setdefault(users, []).append(name)
    found = []
    for users, names in together.items():
        size = sum(size_of(named[name]) for name in names)
        trained = sum(size_of(named[name]) for name in names if named[name].requires_grad)
        blocks = tuple(sites.blocks[user].name for user in users)
        found.append(Shared(names[0], blocks, size, trained, round(trained * state_ratio)))
    return tuple(found)


def crossing_bytes(
    probe: Probe, site: Site, probe_rows: int, rows: int, wire_dtype: torch.dtype | None
) -> tuple[float, float]:
    """Bytes per row across the cut in front of a block, forwards and backwards.

    Args:
        probe: Of the training step.
        site: The block.
        probe_rows: Rows that the probe's shapes belong to.
        rows: Of the whole batch: what has no rows is spread over them.
        wire_dtype: What floating tensors are cast to on the way.
    """
    if site.start is None:
        return 0.0, 0.0
    forward = backward = 0.0
    for leaf in _leaves(probe, site):
        per_row = _entries_per_row(leaf, probe_rows, rows) * _item_bytes(leaf, wire_dtype)
        forward += per_row
        backward += per_row if leaf.requires_grad else 0.0
    return forward, backward


def _entries_per_row(leaf: Leaf, probe_rows: int, rows: int) -> float:
    entries = 1
    for size in leaf.shape:
        entries *= size
    if leaf.row_dim is not None:
        return entries / leaf.shape[leaf.row_dim] * leaf.per_row
    return entries / (rows if leaf.per_row == 0 else probe_rows)


def _item_bytes(leaf: Leaf, wire_dtype: torch.dtype | None) -> int:
    if wire_dtype is None or not leaf.floating:
        return leaf.itemsize
    return min(leaf.itemsize, wire_dtype.itemsize)


def row_bytes(batch: Any, rows: int) -> float:
    """Bytes of a batch per row."""
    tensors = [leaf for _, leaf in batch_leaves(batch) if isinstance(leaf, Tensor)]
    return sum(size_of(tensor) for tensor in tensors) / rows


def least_rows(module: nn.Module) -> int:
    """Fewest rows of a micro-batch that make sense: more than one if statistics are taken of them.

    Only modules that are to train count: in evaluation mode they use what they know.
    """
    normalising = any(
        isinstance(child, _BatchNorm) and (child.training or child.running_mean is None)
        for child in module.modules()
    )
    return NORMALISED_ROWS if normalising else 1


def alike(sites: Sites, module: nn.Module, probe: Probe) -> list[int]:
    """Per block the first one that does the same work; the first and the last are like no other.

    Two blocks are alike if their modules print alike, their parameters have the same shapes and
    what crosses in front of both and behind both has, too.
    """
    named = dict(module.named_parameters())
    last = len(sites.blocks) - 1
    first_with: dict[Any, int] = {}
    found = []
    for index, site in enumerate(sites.blocks):
        key: Any = index
        if 0 < index < last:
            own = [named[name] for name in sites.own[index]]
            others = [name for name, users in sites.shared.items() if index in users]
            key = (
                repr(module.get_submodule(site.name)),
                tuple((tuple(p.shape), p.dtype, p.requires_grad) for p in own),
                tuple(others),
                _shapes(probe, site),
                _shapes(probe, sites.blocks[index + 1]),
            )
        found.append(first_with.setdefault(key, index))
    return found


def _shapes(probe: Probe, site: Site) -> tuple[Any, ...]:
    return tuple(
        (leaf.path, leaf.shape, leaf.itemsize, leaf.requires_grad) for leaf in _leaves(probe, site)
    )


def _leaves(probe: Probe, site: Site) -> tuple[Leaf, ...]:
    """Everything that is sent to a stage that begins at a block."""
    beside = tuple(value.leaf for value in carried(probe, site.name))
    return (*crossing(probe, site.name), *beside)


def signature(module: nn.Module, probe: Probe, sites: Sites, batch: Any) -> str:
    """A short text that two models have in common only if their timings may be compared.

    Args:
        module: Its class, and the names, shapes and dtypes of its parameters.
        probe: What its step calls, with which shapes.
        sites: Its blocks.
        batch: Kinds of its leaves.
    """
    facts = [
        f"{type(module).__module__}.{type(module).__qualname__}",
        [(n, tuple(p.shape), str(p.dtype), p.requires_grad) for n, p in module.named_parameters()],
        [(call.name, [(leaf.path, leaf.shape) for leaf in call.leaves]) for call in probe.calls],
        [site.name for site in sites.blocks],
        [(p, str(leaf.dtype)) for p, leaf in batch_leaves(batch) if isinstance(leaf, Tensor)],
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

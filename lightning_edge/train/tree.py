"""One walk over whatever a DataLoader yields or a step returns.

Containers are taken apart and put together again as what they were: dicts of any class (also
transformers' BatchEncoding and ModelOutput), lists, tuples, named tuples and dataclasses, in any
nesting. Everything else is a leaf. Each child has a key, and a path made of keys names a leaf in
messages:

    batch['tokens']['ids']      batch[1]      batch.image
"""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

__all__: list[str] = []

# Tuples by construction, but one value by meaning.
_LEAF_TUPLES = (torch.Size, PackedSequence)


def is_sequence(node: Any) -> bool:
    """Return whether a node is a list or a plain tuple: its children have positions, not names."""
    return (
        isinstance(node, (list, tuple))
        and not isinstance(node, _LEAF_TUPLES)
        and not hasattr(node, "_fields")
    )


def children(node: Any) -> list[tuple[Any, Any]] | None:
    """Return the (key, child) pairs of a container, None for a leaf."""
    if isinstance(node, Mapping):
        return list(node.items())
    if is_sequence(node):
        return list(enumerate(node))
    if isinstance(node, tuple) and not isinstance(node, _LEAF_TUPLES):
        return [(name, getattr(node, name)) for name in node._fields]  # type: ignore[attr-defined]
    if is_dataclass(node) and not isinstance(node, type):
        return [
            (field.name, getattr(node, field.name))
            for field in fields(node)
            if hasattr(node, field.name)
        ]
    return None


def rebuild(node: Any, new: Sequence[Any]) -> Any:
    """Return a container like `node` with other children.

    Args:
        node: A container; it is left as it is.
        new: Its children, in the order of `children(node)`.
    """
    if isinstance(node, Mapping):
        return _rebuild_mapping(node, new)
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        named: Any = node
        return named._replace(**dict(zip(named._fields, new, strict=True)))
    if isinstance(node, (list, tuple)):
        return type(node)(new)
    pairs = children(node)
    assert pairs is not None, "only containers can be rebuilt"
    other = copy.copy(node)
    for (name, _), value in zip(pairs, new, strict=True):
        object.__setattr__(other, name, value)  # also for frozen dataclasses
    return other


def _rebuild_mapping(node: Mapping[Any, Any], new: Sequence[Any]) -> Any:
    pairs = dict(zip(node, new, strict=True))
    if type(node) is dict:
        return pairs
    other: Any = copy.copy(node)
    if isinstance(node, UserDict):
        other.data = pairs
        if getattr(other, "_encodings", None) is not None:
            # BatchEncoding keeps the tokenizer's own view of all samples; it would no longer fit.
            other._encodings = None
        return other
    for key, value in pairs.items():
        other[key] = value
    return other


def walk(node: Any, path: str = "batch") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every leaf, depth first."""
    pairs = children(node)
    if pairs is None:
        yield path, node
        return
    for key, child in pairs:
        yield from walk(child, path + step(node, key))


def step(node: Any, key: Any) -> str:
    """Return how a child is reached from its container, as Python would write it."""
    if isinstance(node, Mapping) or is_sequence(node):
        return f"[{key!r}]"
    return f".{key}"

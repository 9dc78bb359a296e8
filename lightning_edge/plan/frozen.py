"""A mapping that cannot change, so that frozen dataclasses which hold one can be hashed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenMap(Mapping[K, V]):
    """Read-only, hashable mapping whose order counts: another order makes it another value.

    It equals a plain mapping with the same entries. The standard library's `MappingProxyType` can
    be neither hashed, copied nor pickled.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._entries = dict(entries)

    def __getitem__(self, key: K) -> V:
        return self._entries[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMap):
            return tuple(self._entries.items()) == tuple(other._entries.items())
        return self._entries == other

    def __hash__(self) -> int:
        return hash(tuple(self._entries.items()))

    def __repr__(self) -> str:
        return repr(self._entries)

    def __reduce__(self) -> tuple[type, tuple[dict[K, V]]]:
        return type(self), (self._entries,)

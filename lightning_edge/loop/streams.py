"""The random streams of a process, as a value that can be compared, put back and sent.

A loader may draw from Python's, NumPy's and torch's global streams and from generators of its own
(`DataLoader(generator=...)`, a sampler's). All of them are one state here:

    before = Streams.capture(loader)        batch = next(iterator)
    Streams.capture(loader) == before       False: loading drew random numbers
    before.restore()                        as if nothing had been loaded
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

__all__: list[str] = []

_KINDS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_PARTS = ("sampler", "batch_sampler", "dataset", "collate_fn")  # of a loader, that may own some


class Streams:
    """States of the global streams on the CPU, and of generators that objects own."""

    def __init__(self, owned: list[Any]) -> None:
        self._owned = owned
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._states = [_get(generator) for generator in owned]

    @classmethod
    def capture(cls, *owners: object) -> Streams:
        """Return the states as they are now.

        Args:
            owners: Objects whose generators are included, such as a DataLoader; its samplers,
                dataset and collate function are looked at too.
        """
        return cls(list(_generators(owners)))

    def restore(self) -> None:
        """Put all streams back to this state."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        for generator, state in zip(self._owned, self._states, strict=True):
            _set(generator, state)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Streams):
            return NotImplemented
        return self._python == other._python and _equal(
            [self._numpy, self._torch, self._states], [other._numpy, other._torch, other._states]
        )

    __hash__ = None  # type: ignore[assignment]

    def to_plain(self) -> dict[str, Any]:
        """Return plain values and tensors, for a message."""
        version, words, gauss = self._python
        return {
            "python": [version, np.array(words, dtype=np.uint32), gauss],
            "numpy": list(self._numpy),
            "torch": self._torch,
            "owned": self._states,
        }

    def adopt(self, plain: dict[str, Any]) -> None:
        """Put all streams to the state that another process sent.

        Raises:
            ValueError: The two processes do not own the same generators.
        """
        version, words, gauss = plain["python"]
        states = plain["owned"]
        if len(states) != len(self._owned):
            raise ValueError(f"{len(self._owned)} generators here, {len(states)} there")
        random.setstate((version, tuple(int(word) for word in words), gauss))
        np.random.set_state(tuple(plain["numpy"]))
        torch.set_rng_state(plain["torch"])
        for generator, state in zip(self._owned, states, strict=True):
            _set(generator, state)


def _generators(owners: Iterable[object]) -> Iterable[Any]:
    seen: set[int] = set()
    waiting = list(owners)
    while waiting:
        owner = waiting.pop(0)
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for name, value in list(getattr(owner, "__dict__", {}).items()):
            if isinstance(value, _KINDS) and not isinstance(value, random.SystemRandom):
                if id(value) not in seen:
                    seen.add(id(value))
                    yield value
            elif name in _PARTS:
                waiting.append(value)


def _get(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return [version, np.array(words, dtype=np.uint32), gauss]
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return list(generator.get_state())


def _set(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate((state[0], tuple(int(word) for word in state[1]), state[2]))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(tuple(state))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)

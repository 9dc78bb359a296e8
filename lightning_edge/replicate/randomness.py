"""Random streams: the user's stay as they were, and a step draws the same for every cut.

The loop's own stream (shuffling, workers) must not notice how many devices take part, so every step
runs on a stream of its own and the outer one is put back behind it. Inside the step each module
that draws is seeded at every call from (run seed, step, micro-batch, module path, first row): a
device that skips the modules in front of its stage does not fall behind, and dropout masks are the
same for every cut.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__: list[str] = []

_MASK_63 = (1 << 63) - 1


def mix(*parts: int | str) -> int:
    """One 63-bit seed from numbers and names, equal on every device and Python version."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        value = zlib.crc32(part.encode()) if isinstance(part, str) else int(part)
        # splitmix64's finaliser (Steele, Lea, Flood 2014): nearby inputs give unrelated seeds
        state = (state + value + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
        state ^= state >> 31
    return state & _MASK_63


def seed_torch(seed: int) -> None:
    """Seed torch's streams of the devices in use.

    `torch.manual_seed` also writes a stack trace for each kind of device that is not: 1 ms a call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's streams."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    seed_torch(seed)


def torch_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The states of torch's CPU stream and, where CUDA is in use, of each device's."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    return torch.get_rng_state(), cuda


def restore_torch(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Put back what `torch_states` gave."""
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])


def host_states() -> tuple[object, bytes]:
    """The states of Python's and NumPy's streams, comparable."""
    legacy: Any = np.random.get_state()
    return random.getstate(), legacy[1].tobytes() + repr(legacy[2:]).encode()


@contextmanager
def kept(seed: int | None = None) -> Iterator[None]:
    """Run the body on streams of its own, seeded if asked, and put the user's back."""
    python: Any = random.getstate()
    legacy: Any = np.random.get_state()
    states = torch_states()
    if seed is not None:
        seed_all(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        restore_torch(states)

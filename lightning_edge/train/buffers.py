"""Host memory for messages, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault per 4 KB, more than the copy itself. The tensors of a received
message are parts of its buffer and live as long as the model wants, saved by autograd or not, so
only the memory's own reference count can tell when it is free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_edge.train.message import ordinary_tensors

__all__ = ["Buffers"]

SMALL_BYTES = 64 << 10  # not worth keeping: malloc has such memory at hand
IDLE_CALLS = 64  # what was not wanted for so many calls is given back

# Private, but what torch's own memory pools go by; without it every buffer is fresh.
_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


@dataclass
class _Piece:
    storage: Any
    idle_count: int  # references when nobody else holds it
    last_call: int

    def is_free(self) -> bool:
        assert _use_count is not None
        return _use_count(self.storage._cdata) == self.idle_count


class Buffers:
    """Makes flat uint8 tensors, from memory used before where there is some.

    Args:
        pinned: Page-locked memory, for copies to and from CUDA devices; torch itself keeps that.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._pieces: list[_Piece] = []
        self._calls = 0
        self._lock = threading.Lock()

    def get(self, size: int) -> Tensor:
        """Return an uninitialised tensor of ``size`` bytes, aligned for any dtype."""
        with ordinary_tensors():
            if self._pinned or size <= SMALL_BYTES or _use_count is None:
                return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
            with self._lock:  # no two threads may find the same piece free
                self._calls += 1
                piece = self._find(size) or self._make(size)
                piece.last_call = self._calls
                return torch.empty(0, dtype=torch.uint8).set_(piece.storage, 0, (size,), (1,))

    @property
    def bytes_held(self) -> int:
        """Size of the memory that is kept for use again, in use at present or not."""
        return sum(piece.storage.nbytes() for piece in self._pieces)

    def _find(self, size: int) -> _Piece | None:
        # A piece is given back after IDLE_CALLS, or is its user's alone if it is still in use then.
        oldest = self._calls - IDLE_CALLS
        self._pieces = [piece for piece in self._pieces if piece.last_call >= oldest]
        fitting = [p for p in self._pieces if size <= p.storage.nbytes() <= 2 * size]
        return min(
            (piece for piece in fitting if piece.is_free()),
            key=lambda piece: int(piece.storage.nbytes()),
            default=None,
        )

    def _make(self, size: int) -> _Piece:
        assert _use_count is not None
        storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
        self._pieces.append(_Piece(storage, _use_count(storage._cdata), self._calls))
        return self._pieces[-1]

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
IDLE_BYTES = 32 << 20  # and of the rest what is more than this: small devices need their memory

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
        best, kept, idle_bytes = None, list[_Piece](), 0
        for piece in sorted(self._pieces, key=lambda piece: -piece.last_call):
            nbytes = int(piece.storage.nbytes())
            # What is in use for so long belongs to its user, and is not looked at again.
            if self._calls - piece.last_call > IDLE_CALLS:
                continue
            if piece.is_free():
                fits = size <= nbytes <= 2 * size
                if fits and (best is None or nbytes < best.storage.nbytes()):
                    best = piece
                idle_bytes += nbytes
                if idle_bytes > IDLE_BYTES and piece is not best:
                    continue
            kept.append(piece)
        self._pieces = kept
        return best

    def _make(self, size: int) -> _Piece:
        assert _use_count is not None
        storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
        self._pieces.append(_Piece(storage, _use_count(storage._cdata), self._calls))
        return self._pieces[-1]

"""Host memory for messages, used again as soon as nobody looks at it any more.

Fresh memory costs a page fault per 4 KB, more than the copy itself. The tensors of a received
message are parts of its buffer and live as long as the model wants, saved by autograd or not, so
only the memory's own reference count can tell when it is free.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Buffers"]

SMALL_BYTES = 64 << 10  # not worth keeping: malloc has such memory at hand
IDLE_CALLS = 64  # what was not wanted for so many calls is given back
_use_count = torch._C._storage_Use_Count  # private, but what torch's own memory pools go by


@dataclass
class _Piece:
    storage: Any
    idle_count: int  # references when only we hold it
    used: int  # when, in calls


class Buffers:
    """Makes flat uint8 tensors, from memory used before where there is some.

    Args:
        pinned: Page-locked memory, for copies to and from CUDA devices. torch keeps that itself.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._pieces: list[_Piece] = []
        self._calls = 0
        self._lock = threading.Lock()

    def get(self, size: int) -> Tensor:
        """Return an uninitialised tensor of ``size`` bytes, aligned for any dtype."""
        with torch.inference_mode(False):
            if self._pinned or size <= SMALL_BYTES:
                return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
            with self._lock:  # no two threads may find the same piece free
                self._calls += 1
                piece = self._find(size)
                if piece is None:
                    piece = self._make(size)
                piece.used = self._calls
                return torch.empty(0, dtype=torch.uint8).set_(piece.storage, 0, (size,), (1,))

    @property
    def bytes_held(self) -> int:
        """Size of all memory that is in use or kept."""
        return sum(piece.storage.nbytes() for piece in self._pieces)

    def _find(self, size: int) -> _Piece | None:
        best, kept = None, []
        for piece in self._pieces:
            nbytes = piece.storage.nbytes()
            free = _use_count(piece.storage._cdata) == piece.idle_count
            if (
                free
                and size <= nbytes <= 2 * size
                and (best is None or nbytes < best.storage.nbytes())
            ):
                best = piece
            # Memory still in use after so long is its user's: it is not worth looking at again.
            if self._calls - piece.used <= IDLE_CALLS or piece is best:
                kept.append(piece)
        self._pieces = kept
        return best

    def _make(self, size: int) -> _Piece:
        storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
        piece = _Piece(storage, _use_count(storage._cdata), self._calls)
        self._pieces.append(piece)
        return piece

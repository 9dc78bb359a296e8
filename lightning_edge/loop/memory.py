"""How much memory training itself takes: the peak since it began, above what was there before."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from lightning_edge.replicate.placeholder import is_fake

__all__: list[str] = []

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class TrainingMemory:
    """Begins to watch when it is made, just before training.

    Args:
        held: Parameters that are in memory already and belong to the training.
        device: Where they are.
    """

    def __init__(self, held: Iterable[Tensor], device: torch.device) -> None:
        self._device = device
        own = sum(t.numel() * t.element_size() for t in held if not is_fake(t))
        self._before: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device) - own
        elif sys.platform == "linux":
            gc.collect()
            _give_back()
            try:
                _CLEAR.write_text("5")  # the kernel's word for: the peak starts anew
                self._before = _kilobytes("VmRSS") * 1024 - own
            except OSError:
                self._before = None

    def peak_bytes(self) -> int | None:
        """The most since the beginning; None where the system does not say."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        return _kilobytes("VmHWM") * 1024 - self._before


def _kilobytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} has no {name}")


def _give_back() -> None:
    """Let the C library return what it keeps for later: it would hide what training takes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return

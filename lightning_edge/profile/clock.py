"""Moments that can be subtracted: on the processor at once, on a GPU when its stream gets there."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

__all__: list[str] = []


class Clock(Protocol):
    """Takes moments, and tells the seconds between two of them."""

    def mark(self) -> Any:
        """Take a moment: everything launched before belongs in front of it."""

    def settle(self) -> None:
        """Wait until all moments taken so far have passed."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Seconds between two moments, once settled."""


class HostClock:
    """For devices that compute when they are told to."""

    def mark(self) -> float:
        """The monotonic time."""
        return time.perf_counter()

    def settle(self) -> None:
        """Nothing is pending."""

    def seconds(self, start: float, stop: float) -> float:
        """The difference."""
        return stop - start


class CudaClock:
    """For a GPU, which computes behind the program: an event in its stream for every moment."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """Put an event into the stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self._device)

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        """What the GPU measured between two events."""
        return float(start.elapsed_time(stop)) / 1e3


class WaitingClock(HostClock):
    """For other accelerators: every moment waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> float:
        """The time at which everything launched is done."""
        torch.accelerator.synchronize(self._device)
        return super().mark()


def clock_for(device: torch.device) -> Clock:
    """Return the clock for a device."""
    if device.type == "cuda":
        return CudaClock(device)
    return HostClock() if device.type in ("cpu", "meta") else WaitingClock(device)

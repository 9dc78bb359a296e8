"""What the energy estimate of last resort assumes of machines that no table knows."""

from __future__ import annotations

__all__: list[str] = []

WATTS_PER_THREAD = 4.0
"""What a PC's CPU draws per hardware thread at most.

Where nothing better is known (CodeCarbon's rule of thumb).
"""
IDLE_SHARE = 0.15
"""Idle power of a PC's CPU as a share of its full power; a rule of thumb."""

"""Joules, samples and tokens of one stage of a run on this rank.

Over all stretches that it is on.
"""

from __future__ import annotations

from typing import Any

import torch

from lightning_edge.energy.meter import EnergyMeter, Window
from lightning_edge.energy.report import EnergyReport

__all__: list[str] = []


class StageAccount:
    """Adds up the stretches of one stage: training pauses while validation runs.

    Args:
        meter: The running meter.
        name: The stage.
    """

    def __init__(self, meter: EnergyMeter, name: str) -> None:
        self.name = name
        self.samples = 0
        self.whole_samples: int | None = None
        self._meter = meter
        self._closed: EnergyReport | None = None
        self._window: Window | None = None
        self._stretches: list[tuple[float, float]] = []
        self._tokens: Any = None

    def open(self) -> None:
        """Begin a stretch, if none is on."""
        if self._window is None:
            self._window = self._meter.window(self.name)

    def close(self) -> None:
        """End the stretch, if one is on."""
        if self._window is not None:
            report = self._window.close()
            self._stretches.append((self._window.start_s, self._window.stop_s or 0.0))
            self._closed = report if self._closed is None else self._closed + report
            self._window = None

    def count(self, rows: int, whole_rows: int | None, tokens: Any) -> None:
        """Take one batch: its rows here, the rows of the whole batch if known, and its tokens.

        Tokens may be a tensor on a GPU; it is added up there, and read only when an account is
        wanted.
        """
        self.samples += rows
        if whole_rows is not None:
            self.whole_samples = (self.whole_samples or 0) + whole_rows
        if tokens is not None:
            self._tokens = tokens if self._tokens is None else self._tokens + tokens

    @property
    def tokens(self) -> float | None:
        """Tokens so far; None if they are not counted."""
        if isinstance(self._tokens, torch.Tensor):
            return float(self._tokens.item())
        return None if self._tokens is None else float(self._tokens)

    def phase_seconds(self, now_s: float) -> dict[str, float]:
        """Seconds per phase over all stretches so far."""
        found: dict[str, float] = {}
        running = [] if self._window is None else [(self._window.start_s, now_s)]
        for start_s, stop_s in self._stretches + running:
            for name, seconds in self._meter.phases.seconds(start_s, stop_s).items():
                found[name] = found.get(name, 0.0) + seconds
        return found

    @property
    def report(self) -> EnergyReport:
        """The joules of all stretches so far."""
        if self._window is None:
            return self._closed or EnergyReport(self.name, 0.0, {})
        report = self._window.report
        return report if self._closed is None else self._closed + report

"""Buffers that follow the data: what to say when several devices see some of the rows each."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from lightning_edge.replicate.probe import Probe
from lightning_edge.replicate.split import changing
from lightning_edge.train.stage import Stage

__all__: list[str] = []


def warn_of_statistics(probe: Probe, stage: Stage) -> None:
    """Warn of buffers (BatchNorm's) that replicas of a stage change, each by its own rows."""
    devices = [len(stage.plan.ranks(index)) for index in range(len(stage.plan.stages))]
    names = [name for name in changing(probe, stage.starts, devices) if name in stage.holders]
    if names:
        others = f" and {len(names) - 1} others" if len(names) > 1 else ""
        rank_zero_warn(
            f"{names[0]!r}{others} change with the rows that a device sees, and their stage is on "
            f"several devices: each normalises and counts by its own rows, and buffers are averaged"
            f" before validation and saving. Give that stage one device for the numbers of one "
            f"device, or use LayerNorm or GroupNorm (docs/models.md)"
        )

"""`ThroughputMonitor` counts what all devices do together, not what it sees on this one.

It multiplies this device's samples per second by the number of processes, as if each had other
samples. Here all devices work on the same batches, each on its rows or layers, so it is given the
rows of the whole batch and one process: the numbers are those of one device that does it all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ThroughputMonitor

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__: list[str] = []


def install(trainer: pl.Trainer, rows: Callable[[], tuple[int, int]]) -> Callable[[], None]:
    """Give a Trainer's monitors the counts of whole batches.

    Args:
        trainer: Has the callbacks, set up.
        rows: Gives the rows of the current batch: of this device, and of all.

    Returns:
        Undoes it.
    """
    changed: list[tuple[ThroughputMonitor, dict[str, Any]]] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ThroughputMonitor):
            before = {name: getattr(callback, name) for name in ("batch_size_fn", "length_fn")}
            changed.append((callback, before))
            for name, count in before.items():
                if count is not None:
                    setattr(callback, name, _scaled(count, rows))
            for throughput in callback._throughputs.values():
                throughput.world_size = 1

    def remove() -> None:
        for callback, before in changed:
            for name, count in before.items():
                setattr(callback, name, count)

    return remove


def _scaled(count: Callable[[Any], int], rows: Callable[[], tuple[int, int]]) -> Any:
    def scaled(batch: Any) -> int:
        own, whole = rows()
        return round(count(batch) * whole / own) if own else whole

    return scaled

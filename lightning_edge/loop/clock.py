"""Validation after so much time: rank 0's clock says when, for all devices.

``Trainer(val_check_interval="00:10:00")`` asks the clock of each process, and two clocks do not
reach ten minutes at the same step: one device would validate while another trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_edge.train.transport import Transport

__all__: list[str] = []


def install(trainer: pl.Trainer, transport: Transport) -> Callable[[], None]:
    """Let all devices validate when rank 0 does, if the Trainer goes by time.

    Args:
        trainer: Only this instance is changed.
        transport: Connects the devices.

    Returns:
        Undoes it.
    """
    loop = trainer.fit_loop.epoch_loop
    original = type(loop)._should_check_val_fx

    def should_check(data_fetcher: Any) -> bool:
        due: bool = transport.broadcast(original(loop, data_fetcher))
        return due

    if getattr(trainer, "_val_check_time_interval", None) is not None:
        loop._should_check_val_fx = should_check  # type: ignore[method-assign]

    def remove() -> None:
        loop.__dict__.pop("_should_check_val_fx", None)

    return remove

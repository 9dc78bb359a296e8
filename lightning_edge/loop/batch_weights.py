"""How much a batch weighs in means over an epoch: its rows on all devices.

``self.log(..., on_epoch=True)`` in a hook or a callback, outside the step, weighs values by the
batch that Lightning sees, which is this device's part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning_edge.train.microbatch import RowsTree, whole_rows

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__: list[str] = []


def install(trainer: pl.Trainer, rows: Callable[[], RowsTree]) -> Callable[[], None]:
    """Let a Trainer weigh batches by all their rows.

    Args:
        trainer: Only this instance is changed.
        rows: Gives those of the batch that was handed out last.

    Returns:
        Undoes it.
    """
    connector = trainer._logger_connector
    original = type(connector).on_batch_start

    def on_batch_start(batch: Any, dataloader_idx: int | None = None) -> None:
        original(connector, batch, dataloader_idx)
        results, tree = trainer._results, rows()
        if results is not None and tree is not None:
            results.batch_size = whole_rows(tree)

    connector.on_batch_start = on_batch_start  # type: ignore[method-assign]

    def remove() -> None:
        connector.__dict__.pop("on_batch_start", None)

    return remove

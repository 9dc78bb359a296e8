"""From the loader to the step: the user's batch hooks, and the rows of the batch they are given.

loader -> on_before_batch_transfer -> transfer_batch_to_device -> on_after_batch_transfer -> step

The hooks run on every device, on its own rows. What they draw (mixup, augmentation on the device)
has to agree between devices that hold the same rows in different stages, and must not move the
stream that shuffling draws from: each call runs on a stream seeded from (run, batch, hook, first
row), and the outer stream is put back behind it. Where stages divide the rows differently no seed
could make them agree, so drawing is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_unflatten

from lightning_edge.errors import DataError
from lightning_edge.loop.loader import Feed
from lightning_edge.loop.wrapped import EdgeLoader
from lightning_edge.replicate.randomness import host_states, kept, mix, torch_states
from lightning_edge.train.microbatch import BatchRows, RowsTree, as_tree

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["BatchTransfer"]

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class BatchTransfer:
    """Moves batches to the device, and knows the rows of the one in the step.

    Args:
        feed: Hands out the batches.
        trainer: Runs the loops.
        device: Where batches go.
        seed: Of the run, equal on all devices.
        aligned: Tells whether all stages divide a batch of so many rows in the same places.

    Attributes:
        rows: Of the batch that was moved last.
    """

    def __init__(
        self,
        feed: Feed,
        trainer: pl.Trainer,
        device: torch.device,
        *,
        seed: int,
        aligned: Callable[[int], bool],
    ) -> None:
        self._feed, self._trainer, self._device = feed, trainer, device
        self._seed, self._aligned = seed, aligned
        self._undo: list[Callable[[], None]] = []
        self.rows: RowsTree = None

    def install(self) -> None:
        """Wrap the batch hooks that the user's module or data module overrides."""
        selector = self._trainer._data_connector._datahook_selector
        assert selector is not None, "hooks are known once the Trainer has its data"
        for number, name in enumerate(HOOKS):
            target = selector.get_instance(name)
            if not is_overridden(name, target):
                continue
            earlier = vars(target).get(name)
            vars(target)[name] = self._guarded(number, getattr(target, name))
            self._undo.append(functools.partial(_put_back, target, name, earlier))

    def remove(self) -> None:
        """Take the wraps off."""
        while self._undo:
            self._undo.pop()()

    def __call__(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Move a batch to the device through the user's hooks; what `batch_to_device` has to do.

        Raises:
            DataError: The batch is none of the feed's, or a hook drew random numbers that other
                devices could not have drawn.
        """
        from_loop = self._trainer.lightning_module._current_fx_name == "batch_to_device"
        if from_loop:
            found, self.rows = self._next_rows()
            if not found:
                raise DataError(
                    "a batch came to the loop that did not come through the strategy's loaders, so"
                    " its rows are unknown. Pass DataLoaders to the Trainer, and let its loops"
                    " iterate them"
                )
        moved = self._trainer.lightning_module._apply_batch_transfer_handler(
            batch, device=device or self._device, dataloader_idx=dataloader_idx
        )
        if from_loop:
            self._drop(found)
        return moved

    def _guarded(self, number: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        name = HOOKS[number]

        @functools.wraps(hook)
        def guarded(batch: Any, *args: Any, **kwargs: Any) -> Any:
            _, tree = self._next_rows()
            part = _first_part(tree)
            if part is None:
                return hook(batch, *args, **kwargs)
            if part.mine == 0:
                # No row of this batch is computed here; a hook need not know how to take none.
                device = args[0] if args and number == 1 else self._device
                return move_data_to_device(batch, device) if number == 1 else batch
            with kept(mix(self._seed, *self.position(), number, part.first)):
                before = _states()
                result = hook(batch, *args, **kwargs)
                drew = _states() != before
            if drew and not self._aligned(part.rows):
                raise DataError(
                    f"{name} draws random numbers, and the stages of this plan divide the rows of a"
                    f" batch differently, so that inputs and labels would be changed in different"
                    f" ways. Give every stage the same shares, or draw in the DataLoader"
                    f" (transforms, collate_fn)"
                )
            return result

        return guarded

    def position(self) -> tuple[int | str, ...]:
        """Which batch of the run this is; equal on all devices, and again after resuming."""
        trainer = self._trainer
        stage = trainer.state.stage
        progress = getattr(trainer._active_loop, "batch_progress", None)
        return (
            stage.value if stage is not None else "",
            trainer.fit_loop.epoch_loop.total_batch_idx,
            progress.current.ready if progress is not None else 0,
        )

    def _next_rows(self) -> tuple[list[tuple[int, BatchRows]], RowsTree]:
        """What was handed out for the batch that the active loop takes next, and its rows.

        Loops may run a batch ahead of the step, and another loop may run in between:

            handed    train 0, train 1, train 0, train 1, val 2         two train loaders
            fit       [train 0, train 1]                                 one from each, in order
            validate  [val 2]
        """
        loop = self._trainer._active_loop
        combined = getattr(loop, "_combined_loader", None)
        if combined is None:
            return [], None
        flat: list[Any] = combined.flattened
        order = {
            loader.number: place
            for place, loader in enumerate(flat)
            if isinstance(loader, EdgeLoader)
        }
        waiting = [entry for entry in self._feed.handed if entry[0] in order]
        if combined._mode == "sequential" or len(flat) == 1:
            taken = waiting[:1]
        else:
            taken = []
            for entry in waiting:
                if taken and order[entry[0]] <= order[taken[-1][0]]:
                    break
                taken.append(entry)
        if combined._mode == "sequential":
            return taken, taken[0][1] if taken else None
        values: list[Any] = [None] * len(flat)
        for number, rows in taken:
            values[order[number]] = rows
        return taken, as_tree(tree_unflatten(values, combined._spec))

    def _drop(self, taken: list[tuple[int, BatchRows]]) -> None:
        for entry in taken:
            self._feed.handed.remove(entry)


def _put_back(target: Any, name: str, earlier: Any) -> None:
    if earlier is None:
        vars(target).pop(name, None)
    else:
        vars(target)[name] = earlier


def _first_part(tree: RowsTree) -> BatchRows | None:
    if isinstance(tree, dict):
        return next((part for below in tree.values() if (part := _first_part(below))), None)
    return tree


def _states() -> tuple[Any, ...]:
    cpu, cuda = torch_states()
    return host_states(), cpu.numpy().tobytes(), [state.numpy().tobytes() for state in cuda]

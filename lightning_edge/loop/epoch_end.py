"""Epoch-end hooks of the user's module, which use what only the last stage has.

``on_validation_epoch_end`` and its like gather what the steps left behind (lists of outputs,
metrics), and steps end on the last stage only. If the user's module has such a hook, it is replaced
on the instance::

    every device              last stage's devices              every device
    metrics get values  ->    the user's hook, log recorded ->  same logs, same changes

With several devices on the last stage each runs the hook on what it has; values logged there are
averaged over these devices (``reduce_fx`` may say otherwise), which is the same as with one device
for metrics and sums, and close to it for hand-made means, as in plain data parallelism. In the hook
``self.all_gather`` works among these devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop.changes import Changes
from lightning_edge.loop.records import Recorder
from lightning_edge.loop.refusals import names_in
from lightning_edge.loop.standin import StandIn

__all__: list[str] = []

# hook: the step whose outputs it uses
_HOOKS = {
    "on_train_epoch_end": "training_step",
    "on_validation_epoch_end": "validation_step",
    "on_test_epoch_end": "test_step",
    "on_predict_epoch_end": "predict_step",
}


class EpochEndHooks:
    """Runs the user's epoch-end hooks on the last stage and their consequences everywhere.

    Args:
        module: The user's module.
        recorder: Records its logs.
    """

    def __init__(self, module: LightningModule, recorder: Recorder) -> None:
        self._module, self._recorder = module, recorder
        self._peers: tuple[int, ...] = ()
        self._gathers = 0
        self._hidden: dict[str, Any] = {}
        self.running = False

    def install(self) -> None:
        """Replace the hooks that the user's module has; every device does."""
        for hook, step in _HOOKS.items():
            if is_overridden(hook, self._module):
                body = getattr(self._module, hook)
                self._hidden[hook] = self._module.__dict__.get(hook)
                self._module.__dict__[hook] = StandIn(
                    self._module, hook, partial(self._run, hook, step, body)
                )
        self._warn_of_lost_pictures()

    def remove(self) -> None:
        """Give the module its own hooks back."""
        for hook, before in self._hidden.items():
            del self._module.__dict__[hook]
            if before is not None:
                self._module.__dict__[hook] = before
        self._hidden.clear()

    def _run(self, hook: str, step: str, body: Callable[[], Any]) -> None:
        """Run `body` on the last stage's devices that had rows, and its consequences everywhere."""
        recorder = self._recorder
        recorder.metrics.settle(step)
        self._peers = recorder.active(step)
        changes = Changes(self._module)
        with recorder.section(hook):
            recorder.metrics.begin_section()
            if recorder.rank in self._peers:
                self.running = True
                try:
                    with recorder.body(self._peers):
                        body()
                finally:
                    self.running = False
            recorder.send({"changes": changes.found()})
            records = recorder.collect()
        recorder.forget(step)
        for peer in reversed(self._peers):  # where two disagree, the first has the last word
            changes.make(records[peer]["changes"])

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack the tensors of the devices that run the hook; with one device, the tensor as it is.

        Args:
            tensor: Of the same shape on each device.

        Returns:
            Shape (devices, ...).
        """
        if len(self._peers) == 1:
            return tensor
        return torch.stack(self._gather(tensor))

    def reduce(self, tensor: Any, op: Any = "mean") -> Any:
        """Reduce over the devices that run the hook.

        Args:
            tensor: What to reduce; anything but a tensor is returned as it is.
            op: "mean", "avg", "sum", "max", "min", or the torch.distributed ReduceOp of that name.

        Raises:
            UnsupportedError: Another operation.
        """
        if len(self._peers) == 1 or not isinstance(tensor, Tensor):
            return tensor
        name = str(op).rpartition(".")[2].lower()
        operations: Mapping[str, Callable[[Tensor], Tensor]] = {
            "mean": lambda stacked: stacked.mean(0),
            "avg": lambda stacked: stacked.mean(0),
            "sum": lambda stacked: stacked.sum(0),
            "max": lambda stacked: stacked.amax(0),
            "min": lambda stacked: stacked.amin(0),
        }
        if name not in operations:
            raise UnsupportedError(
                f"reduce(..., {op!r}) is not known: use one of {', '.join(operations)}."
            )
        return operations[name](torch.stack(self._gather(tensor)))

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        self._gathers += 1
        recorder, key, what = self._recorder, self._gathers, "a tensor of all_gather"
        recorder.mailbox.post(self._peers, "gather", key, tensor, what)
        return [
            tensor
            if peer == recorder.rank
            else recorder.mailbox.take(peer, "gather", key, what).to(tensor.device)
            for peer in self._peers
        ]

    def _warn_of_lost_pictures(self) -> None:
        last = self._recorder.last_ranks
        if 0 in last:
            return
        users = [
            hook
            for hook in (*_HOOKS, *_HOOKS.values())
            if is_overridden(hook, self._module)
            and "experiment" in names_in(self._hidden.get(hook) or _method(self._module, hook))
        ]
        if users:
            rank_zero_warn(
                f"{', '.join(users)} of {type(self._module).__name__} use logger.experiment. They"
                f" run to the end on rank {last[0]} only, and loggers write on rank 0 only: nothing"
                " will be seen of it. Put rank 0 on the last stage, or use self.log, or a"
                " Callback's hook, which every device runs."
            )


def _method(module: LightningModule, name: str) -> Any:
    return getattr(type(module), name)

"""The strategy's hooks that make, save and load a model's state.

Trainer                        this file                          what does it
_call_configure_model          tensor_init_, model_sharded_       loop/building.py
resume_start, restore_model    load_checkpoint, load_model_       loop/checkpoint.py, building.py
save_checkpoint                optimizer_state, save_             loop/checkpoint.py
restore_optimizers             load_optimizer_                    loop/checkpoint.py
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch.optim import Optimizer
from typing_extensions import override

from lightning_edge.loop import checkpoint as checkpoints
from lightning_edge.loop.building import Building
from lightning_edge.loop.connection import Connection
from lightning_edge.loop.files import WholeFileIO
from lightning_edge.loop.rescue import Rescue
from lightning_edge.loop.verdict import LastCheckpoint

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_edge.loop.setup import RunParts
    from lightning_edge.train.transport import Transport

__all__: list[str] = []

log = logging.getLogger(__name__)


class StateHooks(ParallelStrategy):
    """A strategy whose model may be on no device as a whole."""

    _connection: Connection | None
    _parts: RunParts | None
    building: Building
    rescue: Rescue | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the run is ending with an error: nothing can be done together any more."""
        module = self.lightning_module
        trainer = None if module is None else module._trainer
        return trainer is not None and trainer.state.status == TrainerStatus.INTERRUPTED

    @property
    def last_saved(self) -> LastCheckpoint | None:
        """The last whole checkpoint of this run from which one can go on."""
        saved = self.__dict__.get("_saved", {})
        return max(saved.values(), key=lambda one: one.step, default=None)

    def prepare_rescue(self, trainer: pl.Trainer, where: bool | str) -> None:
        """Get ready to keep what can be kept when a device fails; collective."""
        self.rescue, self._saved = None, dict[str, LastCheckpoint]()
        if where is not False and trainer.state.fn == TrainerFn.FITTING:
            assert self._parts is not None
            names = self.device_names
            self.rescue = Rescue(trainer, self._parts.stage, self.transport, names, where)

    @property
    @abstractmethod
    def device_names(self) -> tuple[str, ...]:
        """The devices' names, by rank."""

    @property
    def transport(self) -> Transport:
        """The connection between the devices."""
        assert self._connection is not None, "devices are connected in Trainer.fit and the like"
        return self._connection.transport

    @property
    @override
    def checkpoint_io(self) -> CheckpointIO:
        found = self._checkpoint_io
        if isinstance(found, _WrappingCheckpointIO) and found.checkpoint_io is None:
            found.checkpoint_io = WholeFileIO()
        return found if found is not None else super().checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    @contextmanager
    @override
    def tensor_init_context(self, empty_init: bool | None = None) -> Generator[None, None, None]:
        # on the CPU, where all devices draw the same numbers
        with self.precision_plugin.tensor_init_context():
            yield

    @contextmanager
    @override
    def model_sharded_context(self) -> Generator[None, None, None]:
        assert self.lightning_module is not None
        transport = None if self._connection is None else self.transport
        with self.building.described(self.lightning_module, transport):
            yield

    @override
    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        assert self.lightning_module is not None
        if self.building.in_parts(self.lightning_module) and self._ordinary(checkpoint_path):
            return checkpoints.load_in_parts(checkpoint_path, self.transport, weights_only)
        return checkpoints.load(
            checkpoint_path,
            self.transport,
            lambda: self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only),
        )

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        if self.building.in_parts(module):
            self.building.load(module, checkpoint["state_dict"], strict, self.transport)
        else:
            module.load_state_dict(checkpoint["state_dict"], strict=strict)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = super().optimizer_state(optimizer)
        if self._connection is None:
            return state
        if self.interrupted:
            return checkpoints.held_state(optimizer, state)
        mode = self._parts.stage.mode if self._parts is not None else None
        return checkpoints.optimizer_state(state, self.transport, mode)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        if self.interrupted:
            log.warning(
                "%s is not written: a device has failed, and no device has all of the state."
                " save_on_failure=True lets each keep its part.",
                filepath,
            )
            return
        streamed = storage_options is None and self._ordinary(filepath)

        def write(whole: dict[str, Any]) -> None:
            self.checkpoint_io.save_checkpoint(whole, filepath, storage_options=storage_options)

        if self._connection is None:  # the devices have parted after the run
            if self.is_global_zero:
                write(checkpoint)
            return
        stage = self._parts.stage if self._parts is not None else None
        how = None if streamed else write
        checkpoints.save(checkpoint, self.transport, stage, how, str(filepath))
        if "optimizer_states" in checkpoint and stage is not None:
            where = str(filepath)
            self._saved[where] = LastCheckpoint(where, int(checkpoint["global_step"]))

    @override
    def remove_checkpoint(self, filepath: Any) -> None:
        super().remove_checkpoint(filepath)
        self.__dict__.get("_saved", {}).pop(str(filepath), None)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        saved = checkpoint["optimizer_states"]
        states = [
            checkpoints.held_state(optimizer, state)
            for optimizer, state in zip(self.optimizers, saved, strict=True)
        ]
        if self._parts is not None and self._parts.stage.in_parts:
            states = checkpoints.fetch(states, saved, self.transport)
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def _ordinary(self, path: Any) -> bool:
        """Whether Lightning itself would read and write this as a plain local file."""
        return type(self.checkpoint_io) is TorchCheckpointIO and "://" not in str(path)

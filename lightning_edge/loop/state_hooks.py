"""The strategy's hooks that make, save and load a model's state.

Trainer                        this file                          what does it
_call_configure_model          tensor_init_, model_sharded_       loop/building.py
resume_start, restore_model    load_checkpoint, load_model_       loop/checkpoint.py, building.py
save_checkpoint                optimizer_state, save_             loop/checkpoint.py
restore_optimizers             load_optimizer_                    loop/checkpoint.py
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import ParallelStrategy
from torch.optim import Optimizer
from typing_extensions import override

from lightning_edge.loop import checkpoint as checkpoints
from lightning_edge.loop.building import Building
from lightning_edge.loop.connection import Connection
from lightning_edge.loop.files import WholeFileIO

if TYPE_CHECKING:
    from lightning_edge.loop.setup import RunParts
    from lightning_edge.train.transport import Transport

__all__: list[str] = []


class StateHooks(ParallelStrategy):
    """A strategy whose model may be on no device as a whole."""

    _connection: Connection | None
    _parts: RunParts | None
    building: Building

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
        mode = self._parts.stage.mode if self._parts is not None else None
        return checkpoints.optimizer_state(state, self.transport, mode)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
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

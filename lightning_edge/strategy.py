"""`Trainer(strategy="edge_collab")`: the thin adapter between Lightning and the four phases.

Trainer                     this file                     what does it
_configure_launcher         start local processes         loop/launcher.py
setup_environment           connect                       train/rendezvous.py, transport.py
setup                       probe, plan, place            loop/setup.py, train/stage.py
training_step               a whole step, both ways       loop/run.py
backward                    hand out the gradients        train/gradients.py
validation_step ...         forward, logs to all ranks    loop/run.py, loop/records.py
configure_model             described, built in parts     loop/state_hooks.py, building.py
save_checkpoint             one device's checkpoint       loop/state_hooks.py, checkpoint.py
teardown                    the whole module back         train/stage.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies.strategy import TBroadcast
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_edge.loop import parts, refusals
from lightning_edge.loop.building import Building
from lightning_edge.loop.checkpoint import share_path
from lightning_edge.loop.collectives import reduce_tensors
from lightning_edge.loop.connection import Connection
from lightning_edge.loop.environment import EdgeEnvironment, root_device, set_rank_zero
from lightning_edge.loop.inside import InsideStep
from lightning_edge.loop.launcher import make_launcher
from lightning_edge.loop.optimizers import optimizers_to_come
from lightning_edge.loop.options import Options
from lightning_edge.loop.planning import Decision
from lightning_edge.loop.setup import RunParts, set_up
from lightning_edge.loop.state_hooks import StateHooks
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.profile import Profile
from lightning_edge.report import Report

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["EdgeCollabStrategy"]


class EdgeCollabStrategy(StateHooks):
    """Train one model on a handful of unequal, trusted devices.

    Args:
        plan: "auto", a `Plan`, a mapping in a plan's form, or a path to a YAML or JSON plan.
        groups: Device groups in order, name to `{"devices": [ranks or names], "parallelism": ...}`;
            only with `plan="auto"`.
        across: How groups combine: "pipeline", "data" or "auto".
        objective: "time", "energy", "edp", or a mapping (see `plan.objective`).
        micro_batches: Pieces a batch is cut into, or "auto"; only with `plan="auto"`.
        split_points: Modules at which stages begin, or "auto"; only with `plan="auto"`.
        profile: "auto" (stored, else measured), "measure", a `Profile`, a mapping, or a path.
        data: Who loads: "owner" (rank 0), `{"owner": rank}`, or "every" device its own copy.
        eval_micro_batches: Pieces of a batch in validation, test and prediction.
        replan: At an epoch's end tell of a plan better by this margin: 0.1, or False for never.
        wire_dtype: Floating tensors are cast to it between stages, for instance `torch.bfloat16`.
        power_modes: "keep" the devices' power modes as they are.
        timeout: Longest wait for another device.
        save_on_failure: When a device fails, every other one keeps its part of the state: in this
            folder, or with True in `on_failure` beside the checkpoints.

    Raises:
        PlanError: When what is given contradicts itself.
    """

    strategy_name = "edge_collab"

    def __init__(
        self,
        # mappings come first: what reads types (LightningCLI) takes the first that fits
        plan: Mapping[str, Any] | Plan | os.PathLike[str] | str = "auto",
        *,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        across: Literal["auto", "pipeline", "data"] = "auto",
        objective: Mapping[str, Any] | str = "time",
        micro_batches: int | Literal["auto"] = "auto",
        split_points: Sequence[str] | Literal["auto"] = "auto",
        profile: Any = "auto",
        data: Mapping[str, int] | str = "owner",
        eval_micro_batches: int = 1,
        replan: float | None = None,
        wire_dtype: torch.dtype | str | None = None,
        power_modes: Literal["keep"] = "keep",
        timeout: timedelta = timedelta(seconds=60),
        save_on_failure: bool | str | os.PathLike[str] = False,
        accelerator: pl.accelerators.Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=EdgeEnvironment(),
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        self._options = Options.checked(
            plan=plan,
            groups=groups,
            across=across,
            objective=objective,
            micro_batches=micro_batches,
            split_points=split_points,
            profile=profile,
            data=data,
            eval_micro_batches=eval_micro_batches,
            replan=replan,
            wire_dtype=wire_dtype,
            power_modes=power_modes,
            timeout=timeout,
            save_on_failure=save_on_failure,
        )
        self.num_nodes = 1
        self.inside = InsideStep()
        self.building = Building()
        self._connection: Connection | None = None
        self._parts: RunParts | None = None
        self._failed = False
        self._blocked = False
        self._report: Report | None = None
        self.decision: Decision | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan in use, or of the last run, with ranks and numbers; None before the first."""
        if self._parts is not None:
            return self._parts.stage.plan
        return self.decision.plan if self.decision is not None else None

    @property
    def profile(self) -> Profile | None:
        """What the plan was made from; None if nothing was measured or given."""
        return self.decision.profile if self.decision is not None else None

    def refined_profile(self) -> Profile | None:
        """The profile with what training has measured so far; called by all ranks."""
        return self._parts.refined_profile() if self._parts is not None else None

    @property
    def device_names(self) -> tuple[str, ...]:
        """The devices' names, by rank."""
        return self._connection.names if self._connection is not None else ()

    def report(self) -> Report:
        """What each device did in the last fit; printing it gives a table.

        Raises:
            RuntimeError: Before the end of the first fit.
        """
        if self._report is None:
            raise RuntimeError("strategy.report() is there once trainer.fit() has ended")
        return self._report

    @property
    def batch_rows(self) -> int:
        """Rows of the whole batch that was last in a step."""
        return self._parts.batch_rows if self._parts is not None else 0

    @property
    def step_phases(self) -> list[tuple[float, float, dict[str, float]]]:
        """How this device spent its last training batch: start, end and seconds per phase."""
        return self._parts.step_phases if self._parts is not None else []

    @property
    @override
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        return root_device(self.parallel_devices, self.local_rank)

    @property
    def num_processes(self) -> int:
        """Local processes that are started when nobody started any."""
        return len(self.parallel_devices) if self.parallel_devices else 1

    @property
    def _environment(self) -> EdgeEnvironment:
        assert isinstance(self.cluster_environment, EdgeEnvironment)
        return self.cluster_environment

    def set_world_ranks(self) -> None:
        """Tell Lightning which rank this is."""
        self._environment.set_world_size(self.num_processes)
        set_rank_zero(self.global_rank)

    @override
    def _configure_launcher(self) -> None:
        self._launcher = make_launcher(self, self._environment, self.num_processes)

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        set_rank_zero(self.global_rank)
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        refusals.refuse_before_data(trainer, self.world_size)
        if self._connection is None:
            self._connection = Connection(
                self._environment, self._options.timeout, self.root_device
            )
        share_path(trainer, self.transport, parts.whole)

    @override
    def model_to_device(self) -> None:
        assert self.model is not None
        self.model.to(self.root_device)

    @override
    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None
        assert self.lightning_module is not None
        self.accelerator.setup(trainer)
        with self.building.converting():
            self.model = self.precision_plugin.convert_module(self.lightning_module)
            self.model_to_device()
        with optimizers_to_come(self):
            self._parts = set_up(self, trainer, self._options)
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
            refusals.refuse_optimizers(self.optimizers, self.world_size)
            self._parts.stage.prepare_training()
        self.setup_precision_plugin()
        self._parts.install()
        self.prepare_rescue(trainer, self._options.save_on_failure)

    @override
    def process_dataloader(self, dataloader: object) -> object:
        assert self._parts is not None
        return self._parts.wrap(dataloader)

    @override
    def batch_to_device(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        assert self._parts is not None
        return self._parts.transfer(batch, device or self.root_device, dataloader_idx)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self._parts is not None
        if self.rescue is not None:
            self.rescue.begin()
        return self._parts.train(args, synchronise=not self._blocked)

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        assert self._parts is not None
        assert self._parts.stage.gradients is not None
        assert self.lightning_module is not None
        self.pre_backward(closure_loss)
        closure_loss = self.precision_plugin.pre_backward(closure_loss, self.lightning_module)
        self._parts.stage.gradients.publish()
        closure_loss = self.precision_plugin.post_backward(closure_loss, self.lightning_module)
        self.post_backward(closure_loss)
        return closure_loss

    @contextmanager
    @override
    def block_backward_sync(self) -> Generator[None, None, None]:
        self._blocked = True
        try:
            yield
        finally:
            self._blocked = False

    @override
    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: pl.LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.rescue is not None:
            closure = self.rescue.around(closure)
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self.rescue is not None:
            self.rescue.stepped()
        if self._parts is not None:
            self._parts.announce_step()
        return result

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self._parts is not None
        return self._parts.evaluate("validation_step", args)

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self._parts is not None
        return self._parts.evaluate("test_step", args)

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self._parts is not None
        return self._parts.predict(args)

    @override
    def on_validation_start(self) -> None:
        assert self._parts is not None
        self._parts.stage.synchronise()

    @override
    def on_train_end(self) -> None:
        assert self._parts is not None
        self._parts.stage.synchronise()
        self._report = self._parts.report()

    @override
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if self._parts is not None and self._parts.epoch_end.running:
            return self._parts.epoch_end.reduce(tensor, str(reduce_op or "mean"))
        self.inside.refuse("reduce")
        if not isinstance(tensor, Tensor) or self.world_size == 1 or self.interrupted:
            return tensor
        return reduce_tensors(self.transport.all_gather(tensor.cpu()), reduce_op).to(tensor.device)

    @override
    def barrier(self, name: str | None = None) -> None:
        self.inside.refuse("barrier")
        if self.world_size > 1 and self._connection is not None and not self.interrupted:
            self.transport.barrier(name or "a barrier")

    @override
    def broadcast(self, obj: TBroadcast, src: int = 0) -> TBroadcast:
        if self.world_size == 1 or self._connection is None or self.interrupted:
            return obj
        transport = self.transport
        result: TBroadcast = self.inside.broadcast(obj, lambda: transport.broadcast(obj, src))
        return result

    @override
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        if self._parts is not None and self._parts.epoch_end.running:
            return self._parts.epoch_end.all_gather(tensor)
        self.inside.refuse("all_gather")
        if self.world_size == 1:
            return tensor
        parts = self.transport.all_gather(tensor.detach().cpu())
        return torch.stack(parts).to(tensor.device)

    def all_gather_object(self, obj: Any) -> list[Any]:
        """Every rank's `obj` (plain types and tensors), in the order of ranks."""
        self.inside.refuse("all_gather")
        return self.transport.all_gather(obj) if self.world_size > 1 else [obj]

    def disconnect(self) -> None:
        """Leave the other devices in order; the end of the process does it by itself."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()

    @override
    def on_exception(self, exception: BaseException) -> None:
        self._failed = True
        if self._connection is not None:
            self._connection.abort(exception)
            if self.rescue is not None:
                self.rescue.save(exception, self.last_saved)

    @override
    def teardown(self) -> None:
        run, self._parts, self.rescue = self._parts, None, None
        if run is not None:
            run.close(hand_back=not self._failed)
        if self._failed:
            self._connection = None
        if self.lightning_module is not None and self.root_device.type != "cpu":
            self.lightning_module.cpu()
        self._environment.teardown()
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

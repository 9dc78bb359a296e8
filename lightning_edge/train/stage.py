"""This device's stage of a run: the module with placeholders, and batches through it.

set-up   probe -> who holds what -> rank 0's values to the holders -> placeholders -> hooks
a batch  rows -> micro-batches -> executor(instruction list, replay) -> gradients summed
the end  hooks off, the whole module back
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_edge.errors import UnsupportedError
from lightning_edge.plan.layout import Layout
from lightning_edge.plan.plan import Pipeline, Plan
from lightning_edge.plan.plan import Stage as PlannedStage
from lightning_edge.plan.schedule import Instruction, forward_schedule, schedule
from lightning_edge.replicate.placeholder import (
    fake_mode,
    is_fake,
)
from lightning_edge.replicate.placing import Origin, hand_back, place
from lightning_edge.replicate.probe import Probe
from lightning_edge.replicate.randomness import kept
from lightning_edge.replicate.snapshot import checksum
from lightning_edge.replicate.split import check_replicas, check_starts, first_names, owners
from lightning_edge.replicate.state import hold_together
from lightning_edge.train.edges import Edges
from lightning_edge.train.exchange import TensorExchange
from lightning_edge.train.executor import Executor, StepTimes
from lightning_edge.train.gradients import Gradients
from lightning_edge.train.job import Batch, Job
from lightning_edge.train.masks import Masks
from lightning_edge.train.phases import Phases
from lightning_edge.train.recompute import Recompute
from lightning_edge.train.replay import MicroBatch, Replay
from lightning_edge.train.skip import Prefix
from lightning_edge.train.transport import Channel, Transport
from lightning_edge.train.values import Value

__all__: list[str] = []

_log = logging.getLogger(__name__)
_KEPT = 256  # row layouts kept: one per batch size


def holders_of(
    plan: Plan, probe: Probe, module: nn.Module, starts: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """By name of a parameter or buffer the ranks whose stages touch it, ascending."""
    return {
        name: tuple(sorted(rank for stage in stages for rank in plan.ranks(stage)))
        for name, stages in owners(probe, module, starts).items()
    }


def _with_micro_batches(plan: Plan, micro_batches: int, world_size: int) -> Plan:
    stages = [
        PlannedStage(s.devices, s.start, s.parallelism, checkpoint=s.checkpoint)
        for s in plan.stages
    ]
    ranks = [str(rank) for rank in range(world_size)]
    return Plan([Pipeline(stages)], micro_batches).resolve(ranks)


class Stage:
    """One device's part of a plan at work.

    Args:
        module: Whole and real on every rank, or in parts; from here on it has placeholders.
        plan: Resolved: ranks and numbers only.
        probe: Of the step this run is for.
        transport: Connects the ranks.
        device: Where this rank computes.
        seed: Of the run, equal on all ranks.
        wire_dtype: Floating tensors are cast to it between stages.
        eval_micro_batches: Micro-batches of a batch in validation, test and prediction.
        origin: Where the values come from if the module is not whole.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: Plan,
        probe: Probe,
        transport: Transport,
        device: torch.device,
        seed: int,
        wire_dtype: torch.dtype | None = None,
        eval_micro_batches: int = 1,
        origin: Origin | None = None,
    ) -> None:
        self.module, self.plan, self.transport, self.device = module, plan, transport, device
        self.starts = first_names(module, [s.start for s in plan.stages if s.start is not None])
        check_starts(probe, module, self.starts)
        devices = [len(plan.ranks(stage)) for stage in range(len(plan.stages))]
        check_replicas(probe, self.starts, devices)
        self.index = plan.stage_of(transport.rank)
        self.last = len(plan.stages) - 1
        self.holders = holders_of(plan, probe, module, self.starts)
        self._seed, self._probe, self.probe = seed, probe, probe
        self._place(origin or Origin())
        self._eval_plan = _with_micro_batches(plan, eval_micro_batches, transport.world_size)
        self._layouts: dict[tuple[int, bool], Layout] = {}
        self._lists: dict[tuple[int, bool], tuple[Instruction, ...]] = {}
        self._open_channels()
        entry = self.starts[self.index - 1] if self.index else None
        leave = self.starts[self.index] if self.index is not None and not self.is_last else None
        self.replay = Replay(module, self._mode, entry, leave)
        self._prefix = Prefix(module, entry, self._in_prefix)
        self._prefix.know(probe)
        self._recompute: Recompute | None = None
        if self.index is not None and plan.stages[self.index].checkpoint:
            self._recompute = Recompute(module, probe, entry, leave, lambda: self.replay.active)
        self.phases = Phases(module, self.starts, self.index or 0, devices)
        self._drawing: frozenset[str] = frozenset()
        self._masks: Masks | None = None
        self._batch: tuple[int, int] = (0, 0)
        self.gradients: Gradients | None = None
        self._edges = Edges(transport, self.index or 0, wire_dtype)

    @property
    def is_last(self) -> bool:
        """Whether this device reaches the loss."""
        return self.index == self.last

    def _place(self, origin: Origin) -> None:
        self._mode = fake_mode()
        exchange = TensorExchange(self.transport)
        self.in_parts = place(self.module, self.holders, exchange, self._mode, self.device, origin)
        self._placeholders = [p for p in self.module.parameters() if is_fake(p)]
        self._averaged = {n: checksum(b) for n, b in self._replicated_buffers().items()}

    def _open_channels(self) -> None:
        if self.index is None:
            return
        for stage, channel_stage in (
            (self.index - 1, self.index - 1),
            (self.index + 1, self.index),
        ):
            if not 0 <= stage <= self.last:
                continue
            # as many messages are under way as the stage in front keeps micro-batches in flight
            window = int(self.plan.stages[channel_stage].in_flight) + 1
            for peer in self.plan.ranks(stage):
                self.transport.open(peer, Channel.FORWARD, window)
                self.transport.open(peer, Channel.BACKWARD, window)

    def prepare_training(self) -> None:
        """Make the buckets that gradients are summed in; parameters do not move from here on."""
        order = {name: min(used) for name, used in self._probe.touches.items()}
        by_use = dict(sorted(self._held().items(), key=lambda item: order.get(item[0], len(order))))
        self.gradients = Gradients(by_use, self.holders, self.transport.all_reduce)

    def _follow_thaw(self) -> None:
        """Make the buckets anew when layers were frozen or thawed, which all devices do alike."""
        assert self.gradients is not None
        if not self.gradients.still_trains(self._held()):
            self.gradients.close()
            self.prepare_training()

    def _held(self) -> dict[str, nn.Parameter]:
        return {
            name: parameter
            for name, parameter in self.module.named_parameters()
            if self.transport.rank in self.holders[name]
        }

    def layout(self, rows: int, training: bool) -> Layout:
        """Which rows of a batch of `rows` are whose; evaluation has micro-batches of its own."""
        key = (rows, training)
        if key not in self._layouts:
            if len(self._layouts) >= _KEPT:
                self._layouts.clear()
            self._layouts[key] = Layout(self.plan if training else self._eval_plan, rows)
        return self._layouts[key]

    def intervals(self, rank: int, rows: int, training: bool) -> list[tuple[int, int]]:
        """The rows of a batch that a rank computes on, in the order it does."""
        return list(self.layout(rows, training).rows_of(rank))

    def run(self, batch: Batch, job: Job) -> StepTimes:
        """Take one batch through this device's stage, together with the other devices.

        Args:
            batch: This device's rows of it.
            job: What to do with it.

        Returns:
            Where the seconds went.
        """
        self._batch = (self._seed, batch.seed)
        layout = self.layout(batch.rows, job.training)
        mine = self._cut(batch, layout, job)
        if self.index is None:
            return StepTimes()
        if mine:
            phase, self.probe = self.phases.of(job.kind, job.step, batch, job.context)
            self._seed_draws(self.probe)
            self._prefix.know(self.probe)
            self.replay.start(phase, self._call(job), mine, *self._batch)
        if job.training:
            self._follow_thaw()
            assert self.gradients is not None
            self.gradients.start(job.fresh, job.keep_earlier, job.own_zero_grad)
        program = _Program(self, job, len(mine))
        executor = Executor(self.transport, self._edges, program, self.is_last, self.device)
        with kept():
            times = executor.run(self._list(layout, job.training), layout, batch.number)
        for placeholder in self._placeholders:
            placeholder.grad = None  # reentrant activation checkpointing runs the prefix backwards
        return times

    def _cut(self, batch: Batch, layout: Layout, job: Job) -> list[MicroBatch]:
        """This device's micro-batches; their rows follow one another in its part."""
        rank = self.transport.rank
        offset, cut = 0, []
        for m in range(len(layout.bounds)):
            first, stop = layout.mine(rank, m)
            rows = stop - first
            if rows:
                data = batch.cut([(offset, offset + rows)])
                scale = rows / batch.rows / job.accumulate
                cut.append(MicroBatch(m, data, rows, first, scale))
            offset += rows
        return cut

    def _list(self, layout: Layout, training: bool) -> tuple[Instruction, ...]:
        key = (len(layout.bounds), training)
        if key not in self._lists:
            make = schedule if training else forward_schedule
            plan = self.plan if training else self._eval_plan
            self._lists[key] = make(plan, len(layout.bounds))[self.transport.rank]
        return self._lists[key]

    def _call(self, job: Job) -> Callable[[Any, int], Any]:
        def call(data: Any, m: int) -> Any:
            micro_batch = self.replay.active
            assert micro_batch is not None
            with job.around(micro_batch.rows), job.context():
                output = self.replay.received(job.step(data))
            job.on_output(micro_batch, output)
            return output

        return call

    def _in_prefix(self) -> bool:
        active = self.replay.active
        # in backward only activation checkpointing calls a module that is in front of the stage
        return active is not None and (active.backward or not active.entered)

    def _seed_draws(self, probe: Probe) -> None:
        if probe.draws <= self._drawing:
            return
        self._drawing |= probe.draws
        between = {
            name
            for name in self._drawing
            if not name or any(start.startswith(f"{name}.") for start in self.starts)
        }
        if between:
            self._refuse_unequal_rows(between)
        if self._masks is not None:
            self._masks.close()
        self._masks = Masks(
            self.module,
            self._drawing - between,
            lambda: self.replay.active,
            lambda: self._batch,
            restore=bool(between),
        )

    def _refuse_unequal_rows(self, between: set[str]) -> None:
        shares = [list(stage.devices.values()) for stage in self.plan.stages]
        if any(other != shares[0] for other in shares):
            names = ", ".join(repr(name) if name else "the step itself" for name in sorted(between))
            raise UnsupportedError(
                f"random numbers are drawn in {names}, outside the blocks (mixup, masking), and "
                f"the "
                f"stages of the plan divide the rows differently: their draws would not agree. "
                f"Give "
                f"every stage the same devices' shares, draw in the DataLoader, or inside a module."
            )

    def synchronise(self) -> None:
        """Make replicas equal again before they are evaluated or saved; collective."""
        self._average_buffers()
        if any(len(ranks) > 1 for ranks in self.holders.values()):
            drifted = hold_together(self.module, self.holders, TensorExchange(self.transport))
            if drifted:
                _log.info("%d parameters had drifted apart, %s first", len(drifted), drifted[0])

    def _average_buffers(self) -> None:
        """Make running statistics equal on the replicas of a stage: their mean, weighted by rows.

        Every replica of a stage updates its buffers with its own rows (BatchNorm).
        """
        buffers = self._replicated_buffers()
        if self.index is None or not buffers:
            return
        rank, ranks = self.transport.rank, tuple(sorted(self.plan.ranks(self.index)))
        share = float(self.plan.stages[self.index].devices[rank])
        flags = torch.tensor([float(checksum(buffers[n]) != self._averaged[n]) for n in buffers])
        self.transport.all_reduce(ranks, flags).wait()
        moved = {name: b for (name, b), flag in zip(buffers.items(), flags, strict=True) if flag}
        if not moved:
            return
        flat = torch.cat([buffer.detach().float().reshape(-1) * share for buffer in moved.values()])
        self.transport.all_reduce(ranks, flat).wait()
        with torch.no_grad():
            sizes = [buffer.numel() for buffer in moved.values()]
            for (name, buffer), mean in zip(moved.items(), torch.split(flat, sizes), strict=True):
                buffer.copy_(mean.view_as(buffer))
                self._averaged[name] = checksum(buffer)

    def _replicated_buffers(self) -> dict[str, Tensor]:
        """Floating buffers that all devices of this stage hold, and nobody else."""
        if self.index is None or len(self.plan.ranks(self.index)) < 2:
            return {}
        ranks = tuple(sorted(self.plan.ranks(self.index)))
        return {
            name: buffer
            for name, buffer in self.module.named_buffers()
            if self.holders[name] == ranks and buffer.is_floating_point()
        }

    def buffers_elsewhere(self) -> frozenset[str]:
        """Buffers that other ranks hold and this one does not."""
        rank = self.transport.rank
        return frozenset(
            name for name, _ in self.module.named_buffers() if rank not in self.holders[name]
        )

    def close(self) -> None:
        """Take everything off the module but the placeholders."""
        self.replay.close()
        for part in (self._recompute, self._prefix, self._masks, self.gradients):
            if part is not None:
                part.close()

    def place_copy(self, module: nn.Module) -> None:
        """Leave in a copy of the module what this rank holds; collective."""
        exchange = TensorExchange(self.transport)
        place(module, self.holders, exchange, self._mode, self.device, Origin())

    def make_whole(self, module: nn.Module | None = None) -> None:
        """Give every rank the whole module back, or a copy of it, if it ever had it."""
        exchange = TensorExchange(self.transport)
        hand_back(module or self.module, self.holders, exchange, self.device, self.in_parts)

    @property
    def mode(self) -> FakeTensorMode:
        """The mode of this run's placeholders."""
        return self._mode


class _Program:
    """The replayed stage with what has to happen around its instructions."""

    def __init__(self, stage: Stage, job: Job, forwards: int) -> None:
        self._stage, self._job, self._left = stage, job, forwards

    def forward(self, m: int, receive: Callable[[], list[Value]]) -> list[Value] | None:
        outputs = self._stage.replay.forward(m, receive)
        self._left -= 1
        if self._left == 0 and self._stage.is_last:
            self._job.on_forwards_done()
        return outputs

    def backward(
        self, m: int, gradients: Mapping[str, Tensor] | None
    ) -> tuple[Sequence[Value], Mapping[str, Tensor | None]]:
        return self._stage.replay.backward(m, gradients)

    def reduce(self) -> None:
        assert self._stage.gradients is not None
        if self._job.synchronise and not self._job.weighted and not self._job.keep_earlier:
            self._stage.gradients.arm()

    def step(self) -> None:
        assert self._stage.gradients is not None
        self._stage.gradients.finish(self._job.synchronise, self._job.factor())

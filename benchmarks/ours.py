"""Our side of each comparison: a real Trainer with ``edge_collab``, and the executor alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import lightning_edge
from benchmarks import models
from benchmarks.gate import Gate
from benchmarks.peers import quiet_trainer
from lightning_edge.plan.layout import Layout
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.schedule import schedule
from lightning_edge.train.edges import Edges
from lightning_edge.train.executor import Executor
from lightning_edge.train.rendezvous import connect
from lightning_edge.train.transport import Channel, Transport
from lightning_edge.train.values import Arrival, Value

LIMIT = datetime.timedelta(seconds=60)


def edge(
    gate: Gate,
    plan: dict[str, Any],
    micro_batches: int,
    model: str = "gpt",
    size: int = 12,
    rows: int | None = None,
    latency_s: float = 0.0,
) -> None:
    """Train as a user does: the whole model, an unchanged LightningModule, and a plan."""
    from lightning_edge.loop import setup

    if latency_s:
        setup.Transport = partial(Transport, latency_s=latency_s)  # type: ignore[misc]
    strategy = lightning_edge.EdgeCollabStrategy(plan={**plan, "micro_batches": micro_batches})
    batch = models.batch_of(model, rows or models.ROWS * micro_batches)
    trainer = quiet_trainer(gate, strategy=strategy)
    trainer.fit(models.Task(models.build(model, size)), models.loader(batch))


def executor(gate: Gate, plan: dict[str, Any], micro_batches: int) -> None:
    """Run the instruction lists over the transport with sleeping blocks, and nothing else."""
    store, rank, world = connect(LIMIT)
    resolved = Plan.from_mapping({**plan, "micro_batches": micro_batches})
    resolved = resolved.resolve([str(rank) for rank in range(world)])
    layout = Layout(resolved, models.ROWS * micro_batches)
    instructions = schedule(resolved, micro_batches)[rank]
    with Transport(store, rank, world, timeout=LIMIT) as transport:
        for peer in (rank - 1, rank + 1):
            if 0 <= peer < world:
                window = int(resolved.stages[min(rank, peer)].in_flight) + 1
                transport.open(peer, Channel.FORWARD, window)
                transport.open(peer, Channel.BACKWARD, window)
        last = rank == world - 1
        program = SleepingProgram(first=rank == 0, last=last)
        run = Executor(transport, Edges(transport, rank), program, last, torch.device("cpu"))
        step = 0
        while gate.open():
            run.run(instructions, layout, step)
            step += 1


class SleepingProgram:
    """A stage whose computing is a sleep."""

    def __init__(self, first: bool, last: bool) -> None:
        self._first, self._last = first, last
        self._block = models.SleepingBlock()
        self._kept: dict[int, tuple[Arrival, Tensor]] = {}

    def forward(self, m: int, receive: Callable[[], list[Value]]) -> list[Value] | None:
        arrival = Arrival([] if self._first else receive())
        if self._first:
            x = torch.ones(models.ROWS, models.LENGTH, models.WIDTH)
        else:
            x = arrival.tensors()["x"]
        y = self._block(x)
        self._kept[m] = arrival, y.mean() if self._last else y
        return None if self._last else [Value("x", y, 0, 1, True)]

    def backward(
        self, m: int, gradients: Mapping[str, Tensor] | None
    ) -> tuple[Sequence[Value], Mapping[str, Tensor | None]]:
        arrival, y = self._kept.pop(m)
        y.backward(gradients["x"] if gradients else None)
        return arrival.values, arrival.gradients

    def reduce(self) -> None:
        """Nothing is shared with another device."""

    def step(self) -> None:
        """Nothing to wait for."""


def pipeline(starts: list[int], in_flight: list[int] | None = None) -> dict[str, Any]:
    """Return the plan of one device per stage; stage ``i + 1`` begins at module ``starts[i]``."""
    stages: list[dict[str, Any]] = [{"devices": [0]}]
    stages += [
        {"start": f"model.{start}", "devices": [rank]} for rank, start in enumerate(starts, 1)
    ]
    for stage, depth in zip(stages, in_flight or [], strict=False):
        stage["in_flight"] = depth
    return {"pipelines": [{"stages": stages}]}


def replicas(shares: list[float]) -> dict[str, Any]:
    """Return the plan of one stage that all devices share."""
    devices = {str(rank): share for rank, share in enumerate(shares)}
    return {"pipelines": [{"stages": [{"devices": devices}]}]}

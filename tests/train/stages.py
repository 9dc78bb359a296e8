"""Training without Lightning: a stage per rank, and one process that does the same batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edge.plan.layout import Layout
from lightning_edge.plan.plan import Plan
from lightning_edge.train.job import Batch, Job
from lightning_edge.train.microbatch import take_rows
from lightning_edge.train.phases import probe_batch
from lightning_edge.train.rendezvous import connect
from lightning_edge.train.replay import MicroBatch
from lightning_edge.train.stage import Stage
from lightning_edge.train.transport import Transport
from tests.models import MODELS, make

SEED = 7
Result = dict[str, Any]


def optimizer_of(model: str, module: nn.Module) -> torch.optim.Optimizer:
    if model.startswith("tiny"):
        return torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)
    # Adam makes full steps of gradients that are rounding errors (the bias of attention's keys)
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def train_stage(
    rank: int, world_size: int, plan: Mapping[str, Any], model: str, rows: Sequence[int]
) -> Result:
    """Train one stage on batches of the given numbers of rows; runs on a rank of the pool."""
    torch.set_num_threads(1)
    store, rank, world_size = connect(timedelta(seconds=30))
    # every rank starts from other weights: rank 0's count
    module = make(model, seed=rank)
    draw = MODELS[model][1]
    with Transport(store, rank, world_size, timeout=timedelta(seconds=30)) as transport:
        sample = draw(4, 0)
        probe = probe_batch(
            module, module.training_step, lambda parts: take_rows(sample, 4, parts), 4, nullcontext
        )
        resolved = Plan.from_mapping(plan).resolve([str(r) for r in range(world_size)])
        stage = Stage(module, resolved, probe, transport, torch.device("cpu"), SEED)
        optimizer = optimizer_of(model, module)
        stage.prepare_training()
        assert stage.gradients is not None
        transport.reset_counters()
        losses: list[float] = []
        gradients: list[dict[str, Tensor]] = []
        for number, size in enumerate(rows):
            full = draw(size, number)
            mine = [i for i in stage.intervals(rank, size, training=True) if i[0] < i[1]]
            own = sum(stop - start for start, stop in mine)
            data = take_rows(full, size, mine) if mine else None
            batch = Batch(data, _cutter(data, own), own, size, number, number)
            loss = _Losses()
            job = Job(
                "training_step",
                module.training_step,
                nullcontext,
                lambda _: nullcontext(),
                loss.add,
                lambda: None,
                training=True,
            )
            stage.run(batch, job)
            stage.gradients.publish()
            losses.append(loss.total)
            gradients.append(_gradients(module))
            optimizer.step()
            optimizer.zero_grad()
        counters = transport.reset_counters()
        counted = dict(counters.peers)
        total = [sum(parts) for parts in zip(*transport.all_gather(losses), strict=True)]
        stage.synchronise()
        stage.close()
        stage.make_whole()
        open_micro_batches = len(stage.replay._open)
    return {
        "losses": total,
        "gradients": gradients,
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "stage": stage.index,
        "holders": stage.holders,
        "open": open_micro_batches,
        "reduced_bytes": counters.reduced_bytes,
        "sent": {peer: c.messages_sent for peer, c in counted.items()},
    }


def train_alone(plan: Mapping[str, Any], model: str, rows: Sequence[int]) -> Result:
    """The same batches and micro-batches in this process, without any of our machinery."""
    module = make(model, seed=0)
    optimizer = optimizer_of(model, module)
    resolved = Plan.from_mapping(plan).resolve([str(rank) for rank in range(8)])
    losses, gradients = [], []
    for number, size in enumerate(rows):
        total = 0.0
        full = MODELS[model][1](size, number)
        for start, stop in Layout(resolved, size).bounds:
            part = take_rows(full, size, [(start, stop)])
            loss = module.training_step(part) * ((stop - start) / size)
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        gradients.append(_gradients(module))
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "gradients": gradients, "state": module.state_dict()}


class _Losses:
    def __init__(self) -> None:
        self.total = 0.0

    def add(self, micro_batch: MicroBatch, output: Any) -> None:
        micro_batch.loss = output * micro_batch.scale
        self.total += float(micro_batch.loss.detach())


def _cutter(data: Any, own: int) -> Any:
    return lambda parts: take_rows(data, own, parts)


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.detach().clone()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest relative difference of two sets of tensors, by norm; names must agree."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, value in expected.items():
        distance = (found[name].double() - value.double()).norm()
        worst = max(worst, float(distance / value.double().norm().clamp_min(1e-3)))
    return worst

"""The contestants of the end-to-end benchmarks: what a user could pick, and what we offer.

Every function runs on each rank of its contestant, steps at the gate's command, and returns the
losses it saw, so that equal training can be shown to be equal.
"""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import lightning_edge
from benchmarks import tasks
from benchmarks.gate import Gate
from benchmarks.peers import LIMIT, quiet_trainer
from lightning_edge.zoo.byte_gpt import GPT


class Losses(L.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.seen.append(float(outputs["loss"]))


def plain(gate: Gate, task: str, rows: int) -> dict[str, Any]:
    """Lightning on one device."""
    return _fit(gate, task, rows)


def alone(gate: Gate, task: str, rows: int) -> dict[str, Any]:
    """Every device the whole model for itself, all at once: what they could compute at most."""
    for name in ("RANK", "WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        os.environ.pop(name, None)  # nobody here has to meet anybody
    return _fit(gate, task, rows)


def ddp(gate: Gate, task: str, rows: int, accumulate: int = 1) -> dict[str, Any]:
    """Lightning's DDP; ``rows`` are those of all devices together, equal parts on each."""
    world = int(os.environ["WORLD_SIZE"])
    strategy = DDPStrategy(process_group_backend="gloo", timeout=LIMIT)
    return _fit(
        gate,
        task,
        rows // world,
        strategy=strategy,
        num_nodes=world,
        accumulate_grad_batches=accumulate,
    )


def edge(gate: Gate, task: str, rows: int, cache: str, **options: Any) -> dict[str, Any]:
    """Ours, by default with the plan it makes itself; ``cache`` is where profiles are kept."""
    os.environ["LIGHTNING_EDGE_CACHE"] = cache
    strategy = lightning_edge.EdgeCollabStrategy(**options)
    result = _fit(gate, task, rows, strategy=strategy)
    predicted = strategy.report().predicted or {}
    plan = None if strategy.plan is None else strategy.plan.to_mapping()
    return {**result, "plan": plan, "predicted_s": predicted.get("step_s")}


def pipeline(gate: Gate, task: str, rows: int, blocks: list[int], micro_batches: int) -> None:
    """torch.distributed.pipelining with 1F1B; ``blocks[i]`` of the GPT's blocks on device ``i``.

    It cannot tie weights over stages, so the head has a matrix of its own.
    """
    dist.init_process_group("gloo", timeout=LIMIT)
    rank, world = dist.get_rank(), dist.get_world_size()
    stage = _gpt_stage(task, rank, blocks)
    text = tasks.rows(task, rows)[0].long()
    micro = rows // micro_batches
    width = tasks.GPTS[task][0]
    crossing = torch.zeros(micro, tasks.CONTEXT, width, requires_grad=True)
    scores = torch.zeros(micro, tasks.CONTEXT, 256)
    run = Schedule1F1B(
        PipelineStage(
            stage,
            rank,
            world,
            torch.device("cpu"),
            input_args=(text[:micro, :-1] if rank == 0 else crossing,),
            output_args=(scores if rank == world - 1 else crossing,),
        ),
        micro_batches,
        loss_fn=_loss,
        scale_grads=True,
    )
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3)
    while gate.open():
        if rank == 0:
            run.step(text[:, :-1])
        elif rank == world - 1:
            run.step(target=text[:, 1:])
        else:
            run.step()
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()


def _fit(gate: Gate, task: str, rows: int, **options: Any) -> dict[str, Any]:
    losses = Losses()
    trainer = quiet_trainer(gate, **options)
    trainer.callbacks.append(losses)  # type: ignore[attr-defined]
    trainer.fit(tasks.build(task), tasks.loader(task, rows))
    return {"losses": losses.seen}


def _gpt_stage(task: str, rank: int, blocks: list[int]) -> nn.Module:
    module = tasks.build(task)
    whole = module.model
    assert isinstance(whole, GPT)
    first = sum(blocks[:rank])
    parts: list[nn.Module] = list(whole.blocks)[first : first + blocks[rank]]
    if rank == 0:
        parts.insert(0, whole.embed)
    if rank == len(blocks) - 1:
        width = tasks.GPTS[task][0]
        parts += [whole.norm, nn.Linear(width, 256, bias=False)]
    return nn.Sequential(*parts)


def _loss(scores: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())

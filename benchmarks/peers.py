"""The contestants that are not ours: torch's schedules, Lightning's DDP, one process, the ideal.

Every function runs on each rank of its contestant and steps at the gate's command.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from benchmarks import models
from benchmarks.gate import Gate, GateCallback

LIMIT = datetime.timedelta(seconds=60)
SCHEDULES = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}


def torch_pipeline(gate: Gate, schedule: str, micro_batches: int, model: str, size: int) -> None:
    """Run `torch.distributed.pipelining` as documented: static shapes, scaled gradients."""
    dist.init_process_group("gloo", timeout=LIMIT)
    rank, world = dist.get_rank(), dist.get_world_size()
    module, inputs, output = stage_of(model, size, rank, world)
    stage = PipelineStage(
        module, rank, world, torch.device("cpu"), input_args=(inputs,), output_args=(output,)
    )
    run = SCHEDULES[schedule](stage, micro_batches, loss_fn=models.loss_of, scale_grads=True)
    optimizer = models.adamw(module)
    x, target = models.batch_of(model, models.ROWS * micro_batches)
    while gate.open():
        if rank == 0:
            run.step(x)
        elif rank == world - 1:
            run.step(target=target)
        else:
            run.step()
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()


def alone(gate: Gate, micro_batches: int, blocks: int) -> None:
    """Compute one stage's share of every micro-batch, with nobody to wait for."""
    rank = int(os.environ["RANK"])
    module, inputs, _ = stage_of("gpt", blocks, rank, 2)
    _, target = models.text(models.ROWS)
    optimizer = models.adamw(module)
    while gate.open():
        for _ in range(micro_batches):
            output = module(inputs)
            if rank == 0:
                output.backward(torch.ones_like(output))
            else:
                inputs.grad = None
                (models.loss_of(output, target) / micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()


def one_process(gate: Gate, micro_batches: int, blocks: int) -> None:
    """Compute the whole model, micro-batch by micro-batch, in a plain loop."""
    model = models.gpt(blocks)
    inputs, target = models.text(models.ROWS)
    optimizer = models.adamw(model)
    while gate.open():
        for _ in range(micro_batches):
            (models.loss_of(model(inputs), target) / micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()


def lightning_ddp(gate: Gate, rows: int, blocks: int) -> None:
    """Train as Lightning does on two nodes; ``rows`` are those of both together."""
    world = int(os.environ["WORLD_SIZE"])
    strategy = DDPStrategy(process_group_backend="gloo", timeout=LIMIT)
    trainer = quiet_trainer(gate, strategy=strategy, num_nodes=world)
    trainer.fit(models.Task(models.gpt(blocks)), models.loader(models.text(rows // world)))


def lightning_plain(gate: Gate, rows: int, blocks: int) -> None:
    """Train as Lightning does on one device."""
    trainer = quiet_trainer(gate)
    trainer.fit(models.Task(models.gpt(blocks)), models.loader(models.text(rows)))


def link(gate: Gate, size: int) -> None:
    """Send ``size`` bytes from rank 0 to rank 1 and wait for one byte of thanks: a plain socket."""
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if os.environ["RANK"] == "0":
        with socket.create_server(place) as server:
            peer, _ = server.accept()
    else:
        peer = _connect(place)
    with peer:
        while gate.open():
            if os.environ["RANK"] == "0":
                peer.sendall(bytes(size))
                peer.recv(1)
            else:
                left = size
                while left:
                    left -= len(peer.recv(min(left, 1 << 20)))
                peer.sendall(b"!")


def quiet_trainer(gate: Gate, **options: Any) -> L.Trainer:
    """Build a Trainer that does nothing but train, one process per node."""
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GateCallback(gate, options.get("accumulate_grad_batches", 1))],
        **options,
    )


def stage_of(model: str, size: int, rank: int, world: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a stage with an example of its input and output for one micro-batch."""
    crossing = torch.zeros(models.ROWS, models.LENGTH, models.WIDTH, requires_grad=True)
    if model == "gpt":
        module = models.gpt_stage(size, rank)
        inputs = models.text(models.ROWS)[0] if rank == 0 else crossing
        scores = torch.zeros(models.ROWS, models.LENGTH, models.VOCABULARY)
        return module, inputs, crossing if rank == 0 else scores
    whole = models.sleepers(size)
    module = whole[:2] if rank == 0 else whole[rank + 1 : rank + 2]
    return module, models.numbers(models.ROWS)[0] if rank == 0 else crossing, crossing


def _connect(place: tuple[str, int], patience_s: float = 30.0) -> socket.socket:
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return socket.create_connection(place, timeout=patience_s)
        except ConnectionRefusedError:  # rank 0 is still importing
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)

"""One device of the capacity benchmark: three steps of a GPT that is built in `configure_model`.

python -m benchmarks.capacity_run plain|ddp|edge BLOCKS
"""

from __future__ import annotations

import os
import sys
from typing import Any

WIDTH, HEADS, CONTEXT, ROWS = 384, 6, 64, 8


def parameters(blocks: int) -> int:
    """Return the number of parameters of that many blocks and the bytes' matrix."""
    block = 12 * WIDTH * WIDTH + 13 * WIDTH
    return blocks * block + 256 * WIDTH + 2 * WIDTH


def plan(blocks: int, devices: int) -> dict[str, Any]:
    """Return equal parts of the blocks, one device per stage."""
    starts = [round(stage * blocks / devices) for stage in range(1, devices)]
    stages: list[dict[str, Any]] = [{"devices": [0]}]
    stages += [
        {"start": f"model.blocks.{start}", "devices": [stage]}
        for stage, start in enumerate(starts, 1)
    ]
    for depth, stage in enumerate(reversed(stages), 1):
        stage["in_flight"] = min(depth, ROWS)
    return {"pipelines": [{"stages": stages}], "micro_batches": ROWS}


def main(kind: str, blocks: int) -> None:
    """Train."""
    import lightning as L
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    import lightning_edge
    from lightning_edge.zoo.byte_gpt import GPT

    torch.set_num_threads(1)

    class Large(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model: GPT | None = None

        def configure_model(self) -> None:
            if self.model is None:
                self.model = GPT(WIDTH, HEADS, blocks, CONTEXT)

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            assert self.model is not None
            text = batch[0]
            scores = self.model(text[:, :-1])
            return torch.nn.functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-4)

    world = int(os.environ["WORLD_SIZE"])
    options: dict[str, Any] = {}
    if kind == "edge":
        options["strategy"] = lightning_edge.EdgeCollabStrategy(plan(blocks, world))
    elif kind == "ddp":
        options.update(strategy="ddp", num_nodes=world)
    if kind == "edge":  # micro-batches of one row; the others get them as batches
        rows, accumulate = ROWS, 1
    else:
        rows, accumulate = 1, ROWS
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=3,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    text = torch.randint(256, (ROWS * 3 * world, CONTEXT + 1))
    trainer.fit(Large(), DataLoader(TensorDataset(text), batch_size=rows))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

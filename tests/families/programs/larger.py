"""Train a model whose weights, gradients and optimizer state no device has memory for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_edge

WIDTH = 1536


class Larger(L.LightningModule):
    """48 blocks of 2.4 million parameters: 1.8 GB with gradients and Adam's two moments."""

    def __init__(self, blocks: int, weights: str | None) -> None:
        super().__init__()
        self.count, self.weights = blocks, weights
        self.blocks: Any = None

    def configure_model(self) -> None:
        if self.blocks is not None:
            return
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(self.count)])
        if self.weights:
            from safetensors.torch import load_file

            self.load_state_dict(load_file(self.weights))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        for block in self.blocks:
            x = x + torch.tanh(block(x)) / 8
        return (x - batch[1]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        # eps is large beside these gradients: Adam makes full steps of rounding errors otherwise
        return torch.optim.Adam(self.parameters(), lr=1e-3, eps=1e-4)


def main(settings: dict[str, Any]) -> None:
    L.seed_everything(1, verbose=False)
    blocks, folder = settings["blocks"], Path(settings["folder"])
    generator = torch.Generator().manual_seed(2)
    rows = TensorDataset(
        torch.randn(16, WIDTH, generator=generator), torch.randn(16, WIDTH, generator=generator)
    )
    plan = None
    if not settings.get("alone"):
        third = blocks // 3
        plan = {
            "pipelines": [
                {
                    "stages": [
                        {"devices": [0]},
                        {"devices": [1], "start": f"blocks.{third}"},
                        {"devices": [2], "start": f"blocks.{2 * third}"},
                    ]
                }
            ],
            "micro_batches": 2,
        }
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy="auto" if plan is None else lightning_edge.EdgeCollabStrategy(plan),
        max_epochs=settings["epochs"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Save(folder)],
    )
    model = Larger(blocks, settings.get("weights"))
    loader = DataLoader(rows, 8)
    trainer.fit(model, loader, loader, ckpt_path=settings.get("resume"))
    if trainer.global_rank == 0:
        print(json.dumps({"val_loss": float(trainer.callback_metrics["val_loss"])}))


class Save(L.Callback):
    """Saves at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch-{trainer.current_epoch}.ckpt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

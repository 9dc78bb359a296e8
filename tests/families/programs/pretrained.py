"""Fine-tune a Llama from a directory of safetensors that no device has memory for."""

from __future__ import annotations

import json
import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import lightning_edge

LAYERS, VOCAB = 15, 8192
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


class FineTune(L.LightningModule):
    def __init__(self, weights: str) -> None:
        super().__init__()
        self.weights = weights
        self.model: Any = None

    def configure_model(self) -> None:
        if self.model is None:
            from transformers import LlamaForCausalLM

            self.model = LlamaForCausalLM.from_pretrained(self.weights, use_cache=False).train()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        # eps is large beside these gradients: Adam makes full steps of rounding errors otherwise
        return torch.optim.Adam(self.parameters(), lr=1e-4, eps=1e-3)


def main(settings: dict[str, Any]) -> None:
    if settings.get("write"):
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(3)
        model = LlamaForCausalLM(LlamaConfig(**CONFIG))
        model.save_pretrained(settings["weights"], max_shard_size="60MB")
        print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}))
        return
    strategy: Any = "auto"
    if not settings.get("alone"):
        stages: list[dict[str, Any]] = [{"devices": [0]}]
        stages += [
            {"devices": [stage], "start": f"model.model.layers.{stage * LAYERS // 3}"}
            for stage in (1, 2)
        ]
        strategy = lightning_edge.EdgeCollabStrategy(
            {"pipelines": [{"stages": stages}], "micro_batches": 2}
        )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    rows = torch.randint(VOCAB, (6, 32), generator=torch.Generator().manual_seed(2))
    loader: Any = DataLoader(list(rows), 2)
    trainer.fit(FineTune(settings["weights"]), loader, loader)
    if trainer.global_rank == 0:
        print(json.dumps({"val_loss": float(trainer.callback_metrics["val_loss"])}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

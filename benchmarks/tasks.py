"""What the end-to-end benchmarks train: ordinary modules of zoo and transformers, on real bytes.

| task     | model                                            | parameters | a row          |
| -------- | ------------------------------------------------ | ---------- | -------------- |
| gpt-10m  | byte-level GPT, 320 wide, 8 blocks               | 9.9 M      | 128 bytes      |
| gpt-40m  | the same, 576 wide, 10 blocks                    | 40 M       | 128 bytes      |
| bert     | transformers' BERT, 256 wide, 6 layers, 2 labels | 5.1 M      | 128 bytes      |
| vit      | transformers' ViT, 192 wide, 9 layers            | 4.1 M      | 32 x 32 pixels |

The text is the source of Python's standard library; BERT's labels say whether a row's first byte
is a letter, ViT's images are rows of text drawn as pixels: cheap to make, and there is something to
learn. All start from the same weights and see the same rows in the same order.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_edge.zoo.byte_gpt import ByteGPT
from lightning_edge.zoo.text import StandardLibrary

CONTEXT = 128
GPTS = {"gpt-10m": (320, 10, 8), "gpt-40m": (576, 9, 10)}
NAMES = (*GPTS, "bert", "vit")


def build(name: str) -> L.LightningModule:
    """Return a task's module, with the same weights each time."""
    torch.manual_seed(0)
    if name in GPTS:
        width, heads, blocks = GPTS[name]
        return ByteGPT(width, heads, blocks, CONTEXT, lr=1e-3, warmup_steps=5)
    return Classifier(name)


def rows(name: str, count: int) -> tuple[Tensor, ...]:
    """Return the first ``count`` rows of a task's data."""
    text = StandardLibrary(CONTEXT, 1, train_bytes=count * CONTEXT + 1, val_bytes=CONTEXT + 1)
    text.setup("fit")
    data = torch.stack([text.train_rows[i][0] for i in range(count)])
    if name in GPTS:
        return (data,)
    letters = ((data[:, 0] | 32) >= ord("a")) & ((data[:, 0] | 32) <= ord("z"))
    return data[:, :CONTEXT].long(), letters.long()


def loader(name: str, batch_rows: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return a task's batches in order, as many as any contest takes."""
    known = rows(name, 64 * batch_rows)
    return DataLoader(
        TensorDataset(*(x.repeat(16, 1) if x.dim() > 1 else x.repeat(16) for x in known)),
        batch_size=batch_rows,
    )


class Classifier(L.LightningModule):
    """BERT or ViT with two labels, from transformers' own classes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import transformers

        self.images = name == "vit"
        common: dict[str, Any] = {"num_labels": 2, "attn_implementation": "sdpa"}
        if self.images:
            config = transformers.ViTConfig(
                hidden_size=192,
                num_hidden_layers=9,
                num_attention_heads=6,
                intermediate_size=768,
                image_size=32,
                patch_size=4,
                num_channels=1,
                **common,
            )
            self.model: nn.Module = transformers.ViTForImageClassification(config)
        else:
            config = transformers.BertConfig(
                vocab_size=256,
                hidden_size=256,
                num_hidden_layers=6,
                num_attention_heads=8,
                intermediate_size=1024,
                max_position_embeddings=CONTEXT,
                **common,
            )
            self.model = transformers.BertForSequenceClassification(config)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        text, label = batch
        if self.images:
            pixels = (text.repeat(1, 8).view(-1, 1, 32, 32) - 64) / 64.0
            loss: Tensor = self.model(pixel_values=pixels, labels=label).loss
            return loss
        scored: Tensor = self.model(input_ids=text, labels=label).loss
        return scored

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)

"""Small models of each family, with a way to make batches: on the CPU, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

VOCAB, LENGTH = 61, 7
Batch = Any


class Step(nn.Module):
    """A model as a step sees it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Batch) -> Tensor:
        return self.model(**batch).loss


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Tiny(nn.Module):
    """Embedding, residual blocks, tied head; a raw scale in front of and behind the blocks."""

    def __init__(self, blocks: int = 6, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.scale = nn.Parameter(torch.ones(1))
        self.blocks = nn.ModuleList([Block(width, dropout) for _ in range(blocks)])
        self.head = nn.Linear(width, VOCAB, bias=False)
        self.head.weight = self.embedding.weight

    def training_step(self, batch: Batch) -> Tensor:
        x = self.embedding(batch["ids"]) * self.scale
        for block in self.blocks:
            x = block(x)
        logits = self.head(x) * self.scale
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


class Checkpointed(Tiny):
    """Activations of every block are recomputed in backward; dropout has to repeat its masks."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(dropout=0.2)
        self.reentrant = reentrant

    def training_step(self, batch: Batch) -> Tensor:
        x = self.embedding(batch["ids"]) * self.scale
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        logits = self.head(x) * self.scale
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


class Frozen(Tiny):
    """What lies in front of block 3 is not trained: no gradient goes back to it."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.head.weight.detach().clone())
        for part in (self.embedding, *self.blocks[:3]):
            part.requires_grad_(False)
        self.scale.requires_grad_(False)


class Mixed(Tiny):
    """Mixes rows before the model, as mixup does: every stage has to draw the same order."""

    def training_step(self, batch: Batch) -> Tensor:
        order = torch.randperm(len(batch["ids"]))
        return super().training_step({"ids": batch["ids"][order], "labels": batch["labels"][order]})


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 4)
        )

    def training_step(self, batch: Batch) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)


class ConvNet(nn.Module):
    """A small residual network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.layers = nn.ModuleList([_Residual(8) for _ in range(3)])
        self.head = nn.Linear(8, 4)

    def training_step(self, batch: Batch) -> Tensor:
        x = self.stem(batch["image"])
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x.mean((2, 3))), batch["label"])


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


def _tokens(rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (rows, LENGTH), generator=generator)
    return {"ids": ids, "labels": ids.roll(-1, 1)}


def _text(rows: int, seed: int) -> Batch:
    """Token ids with padding; labels of padding count, so that rows weigh equally."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (rows, LENGTH), generator=generator)
    mask = torch.ones(rows, LENGTH, dtype=torch.long)
    for row in range(1, rows, 2):
        mask[row, LENGTH - 1 - row % 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


def _classes(rows: int, seed: int) -> Batch:
    batch = _text(rows, seed)
    batch["labels"] = batch["input_ids"].sum(1) % 3
    return batch


def _pixels(rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, 16, 16, generator=generator)
    return {"pixel_values": images, "labels": torch.arange(rows) % 3}


def _images(rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(rows, 3, 8, 8, generator=generator),
        "label": torch.arange(rows) % 4,
    }


def _points(rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 8, generator=generator), torch.arange(rows) % 4]


def _gpt2(dropout: float) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=16,
        n_embd=16,
        n_layer=4,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLMLoss",
    )
    return Step(GPT2LMHeadModel(config))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return Step(LlamaForCausalLM(config))


def _bert(dropout: float) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=3,
    )
    return Step(BertForSequenceClassification(config))


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    return Step(ViTForImageClassification(config))


def _padded(rows: int, seed: int) -> Batch:
    """Labels of padding do not count, so that rows have unlike numbers of tokens."""
    batch = _tokens(rows, seed)
    for row in range(rows):
        batch["labels"][row, 2 + row % (LENGTH - 2) :] = -100
    return batch


# name -> (makes the model, makes a batch of some rows from a seed, two legal cuts in order)
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Batch], tuple[str, str]]] = {
    "tiny": (Tiny, _tokens, ("blocks.2", "blocks.4")),
    "padded": (Tiny, _padded, ("blocks.2", "blocks.4")),
    "tiny-dropout": (lambda: Tiny(dropout=0.2), _tokens, ("blocks.2", "blocks.4")),
    "checkpointed": (lambda: Checkpointed(False), _tokens, ("blocks.2", "blocks.4")),
    "checkpointed-reentrant": (lambda: Checkpointed(True), _tokens, ("blocks.2", "blocks.4")),
    "frozen": (Frozen, _tokens, ("blocks.2", "blocks.4")),
    "mixed": (Mixed, _tokens, ("blocks.2", "blocks.4")),
    "mlp": (Mlp, _points, ("net.2", "net.3")),
    "batchnorm": (ConvNet, _images, ("layers.1", "layers.2")),
    "gpt2": (lambda: _gpt2(0.0), _text, ("model.transformer.h.1", "model.transformer.h.3")),
    "gpt2-dropout": (lambda: _gpt2(0.1), _text, ("model.transformer.h.1", "model.transformer.h.3")),
    "llama": (_llama, _text, ("model.model.layers.1", "model.model.layers.3")),
    "bert": (
        lambda: _bert(0.0),
        _classes,
        ("model.bert.encoder.layer.1", "model.bert.encoder.layer.3"),
    ),
    "bert-dropout": (
        lambda: _bert(0.1),
        _classes,
        ("model.bert.encoder.layer.1", "model.bert.encoder.layer.3"),
    ),
    "vit": (_vit, _pixels, ("model.vit.layers.1", "model.vit.layers.3")),
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A model of the zoo with seeded weights, in training mode."""
    torch.manual_seed(seed)
    return MODELS[name][0]().train()

"""The modules of Lightning's own tests and demos, and what users do in steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.demos import LightningTransformer, Transformer
from lightning.pytorch.demos.boring_classes import (
    BoringDataModule,
    BoringModel,
)
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.lightning.both import PLANS, REPLICAS, TWO, Run, both
from tests.lightning.nets import Losses, Net, loaders, metrics, train_loader, val_loader, weights

pytestmark = pytest.mark.multiproc


def boring(run: Run) -> Any:
    """BoringModel with its data module; its steps return dictionaries, its batches have one row."""
    seen = Losses()
    torch.manual_seed(1)
    module, data = BoringModel(), BoringDataModule()
    limits = {"limit_train_batches": 8, "limit_val_batches": 3}
    trainer = run.trainer(callbacks=[seen], max_epochs=1, **limits)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    predicted = trainer.predict(module, datamodule=data)
    assert predicted is not None
    return seen.train, weights(module), predicted[:4]


def test_boring_model_and_data_module(pool, tmp_path):
    both(pool, tmp_path, boring, plan=REPLICAS)


class Deep(BoringModel):
    """BoringModel has one layer; this one can be cut."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(2))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.layer(x)

    def train_dataloader(self) -> Any:
        return DataLoader(rows(22), batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(rows(9), batch_size=4)


def rows(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return list(torch.randn(number, 32, generator=generator))


def deep(run: Run) -> Any:
    seen = Losses()
    module = Deep()
    trainer = run.trainer(callbacks=[seen])
    trainer.fit(module)
    return seen.train, weights(module), [float(r) for r in _rates(trainer)]


def _rates(trainer: Any) -> list[float]:
    return [group["lr"] for group in trainer.optimizers[0].param_groups]


def test_boring_model_as_a_pipeline(pool, tmp_path):
    both(pool, tmp_path, deep)


VOCABULARY, LENGTH = 32, 12


class Text(LightningTransformer):
    """Lightning's demo Transformer on made-up text instead of a download."""

    def __init__(self) -> None:
        super().__init__(vocab_size=VOCABULARY)
        torch.manual_seed(1)
        self.model = Transformer(
            vocab_size=VOCABULARY, ninp=16, nhead=2, nhid=16, nlayers=2, dropout=0.0
        )

    def prepare_data(self) -> None:
        """Nothing to download."""

    def train_dataloader(self) -> Any:
        return DataLoader(text(), batch_size=6)


def text() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCABULARY, (20, LENGTH + 1), generator=generator)
    return TensorDataset(tokens[:, :-1], tokens[:, 1:])


def transformer(run: Run) -> Any:
    seen = Losses()
    module = Text()
    trainer = run.trainer(callbacks=[seen], gradient_clip_val=0.25)
    trainer.fit(module)
    return seen.train, weights(module)


@pytest.mark.parametrize("pipeline", [pytest.param(False, marks=pytest.mark.slow), True])
def test_demo_transformer(pool, tmp_path, pipeline):
    cut = {"start": "model.transformer.decoder.layers.0", "devices": [1]}
    plan = {"pipelines": [{"stages": [{"devices": [0]}, cut]}], "micro_batches": 2}
    one, _ = both(pool, tmp_path, transformer, plan=plan if pipeline else REPLICAS, tolerance=1e-5)
    assert len(one[0]) == 8


class TwoPasses(Net):
    """A penalty over all parameters, and a value that goes by every block."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss + 1e-2 * sum(p.square().sum() for p in self.parameters())


def penalty(run: Run) -> Any:
    seen = Losses()
    module = TwoPasses()
    trainer = run.trainer(callbacks=[seen])
    trainer.fit(module, *loaders())
    return seen.train, weights(module), metrics(trainer)


def test_a_penalty_over_all_parameters(pool, tmp_path):
    both(pool, tmp_path, penalty)


class Summed(Net):
    """Losses and logs that add up over rows, beside means."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        loss = 0.2 * F.cross_entropy(logits, y, reduction="sum")
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("hits", (logits.argmax(1) == y).sum().float(), on_step=True)
        self.log_dict({"mean": F.cross_entropy(logits, y), "rows": float(len(y))}, on_epoch=True)
        return {"loss": loss, "logits": logits, "hits": (logits.argmax(1) == y).sum(), "n": len(y)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_hits", (logits.argmax(1) == batch[1]).sum().float())
        self.log("val_all_hits", (logits.argmax(1) == batch[1]).sum().float(), reduce_fx="sum")
        self.log("val_loss", F.cross_entropy(logits, batch[1]))


class Weighed(Net):
    """Rare classes count more: a mean by the weights of the labels that are in a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        weight = torch.tensor([1.0, 2.0, 5.0])
        loss = F.cross_entropy(self(x), y, weight=weight)
        total = weight[y].sum()
        self.log("train_loss", loss, batch_size=int(total))
        return {"loss": loss, "loss_weight": total}


def weighed(run: Run) -> Any:
    seen, module = Losses(), Weighed()
    trainer = run.trainer(callbacks=[seen])
    trainer.fit(module, *loaders())
    return seen.train, weights(module), metrics(trainer)["train_loss"]


def test_class_weights(pool, tmp_path):
    both(pool, tmp_path, weighed)


class Counts(Losses):
    """Also the numbers that a step returns."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *more: Any) -> None:
        super().on_train_batch_end(trainer, module, outputs, *more)
        self.counts.append([int(outputs["hits"]), outputs["n"], len(outputs["logits"])])


def summed(run: Run) -> Any:
    seen = Counts()
    edge = {"eval_micro_batches": 2}
    trainer = run.trainer(callbacks=[seen], accumulate_grad_batches=2, edge=edge)
    module = Summed(lr=0.02)
    trainer.fit(module, *loaders())
    return seen.train, seen.counts, weights(module), metrics(trainer)


@pytest.mark.parametrize("plan", PLANS)
def test_losses_and_logs_that_add_up_over_rows(pool, tmp_path, plan):
    one, _ = both(pool, tmp_path, summed, plan=plan)
    assert one[3]["val_hits"] > 1


class Hungry(Net):
    """Configures its layers late, keeps outputs, and logs at the end of epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []
        self.extra: Any = None

    def configure_model(self) -> None:
        if self.extra is None:
            self.extra = torch.nn.Linear(3, 3)
            torch.nn.init.eye_(self.extra.weight)
            torch.nn.init.zeros_(self.extra.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.extra(super().forward(x))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.kept.append(F.softmax(logits, 1))
        return logits.mean()

    def on_validation_epoch_end(self) -> None:
        self.log("kept", torch.cat(self.kept).amax(0).sum())
        self.kept.clear()


def hungry(run: Run) -> Any:
    seen = Losses()
    module = Hungry()
    trainer = run.trainer(callbacks=[seen])
    trainer.fit(module, train_loader(), val_loader())
    return seen.train, weights(module), metrics(trainer)


def test_configure_model_and_kept_outputs(pool, tmp_path):
    both(pool, tmp_path, hungry, plan=TWO)

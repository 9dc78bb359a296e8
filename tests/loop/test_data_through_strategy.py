"""Unusual data through the whole strategy, held against a plain Trainer in one process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lightning_edge
from tests.models import VOCAB, Tiny

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]

TIME, CLASSES = 5, 6


HYBRID = [{"devices": {0: 0.6, 1: 0.4}}, {"start": "net.blocks.2", "devices": [2]}]
PIPELINE = [
    {"devices": [0]},
    {"start": "net.blocks.2", "devices": [1]},
    {"start": "net.blocks.3", "devices": [2]},
]


class Samples(Dataset):
    def __init__(self, number: int) -> None:
        draw = torch.Generator().manual_seed(number)
        self.ids = torch.randint(VOCAB, (number, TIME), generator=draw)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Any:
        return {"ids": self.ids[i], "labels": self.ids[i].roll(1), "name": f"sample {i}"}


class Stream(IterableDataset):
    def __init__(self, number: int) -> None:
        self.samples = Samples(number)

    def __iter__(self) -> Iterator[Any]:
        return (self.samples[i] for i in range(len(self.samples)))


def time_first(samples: list[Any]) -> Any:
    batch = torch.utils.data.default_collate(samples)
    return {"ids": batch["ids"].T, "labels": batch["labels"].T, "weights": torch.ones(CLASSES)}


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Tiny(blocks=4)
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net.training_step(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val", self.net.training_step(batch), add_dataloader_idx=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Names(Module):
    """Uses what is no tensor: the names and the rows have to belong together."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        numbers = torch.tensor([int(name.split()[1]) for name in batch["name"]])
        loss = super().training_step(batch, batch_idx)
        return loss + (numbers * batch["ids"][:, 0]).float().mean() * self.net.scale.sum() * 1e-6


class TimeFirst(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert len(batch["weights"]) == CLASSES
        return self.net.training_step({k: batch[k].T for k in ("ids", "labels")})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.training_step(batch, batch_idx), batch_size=batch["ids"].shape[1])


class SaysTimeFirst(TimeFirst):
    def edge_row_dims(self, batch: Any) -> Any:
        return {"ids": 1, "labels": 1, "weights": None}


class TwoLoaders(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = batch["a"], batch["b"]
        together = {key: torch.cat([first[key], second[key]]) for key in ("ids", "labels")}
        return self.net.training_step(together)


class Noisy(Module):
    """Draws behind the loader, which must agree between inputs and labels."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        order = torch.randperm(TIME)
        return {"ids": batch["ids"][:, order], "labels": batch["ids"][:, order]}


class Losses(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        module.losses.append(float(outputs["loss"]))


def loaders(kind: str, here: bool) -> Any:
    if not here:
        return ({"a": [], "b": []} if kind == "two" else []), [[]] * (2 if kind == "stream" else 1)
    collate = time_first if "time first" in kind else None
    val = DataLoader(Samples(7), 4, collate_fn=collate)
    if kind == "stream":
        return DataLoader(Stream(20), 6), [DataLoader(Stream(5), 4), val]
    if kind == "stream, time first":
        return DataLoader(Stream(20), 6, collate_fn=time_first), val
    if kind == "time first":
        return DataLoader(Samples(20), 6, shuffle=True, collate_fn=time_first), val
    train = DataLoader(Samples(20), 6, shuffle=True, drop_last=kind == "two")
    if kind == "two":
        return {"a": train, "b": DataLoader(Samples(14), 6, shuffle=True, drop_last=True)}, val
    return train, val


def fit(rank: int, world_size: int, make: Callable[[], Any], kind: str, data: Any) -> Any:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    strategy: Any = "auto"
    if data is not None:
        # Two batches in one are not row after row, so that devices of a stage could not share them.
        stages = PIPELINE if kind == "two" else HYBRID
        plan = {"pipelines": [{"stages": stages}], "micro_batches": 3}
        strategy = lightning_edge.EdgeCollabStrategy(plan, data=data)
    owner = data["owner"] if isinstance(data, dict) else 0
    module = make()
    trainer = L.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Losses()],
    )
    train, val = loaders(kind, rank == owner or data == "every")
    L.seed_everything(5, verbose=False)
    trainer.fit(module, train, val)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if data is not None:
        trainer.strategy.disconnect()
    return module.losses, metrics


CASES = {
    "names": (Names, "plain", {"owner": 1}),
    "stream": (Module, "stream", {"owner": 2}),
    "time first": (TimeFirst, "time first", "owner"),
    "time first, in a stream": (SaysTimeFirst, "stream, time first", "every"),
    "two loaders": (TwoLoaders, "two", "owner"),
}


@pytest.mark.parametrize(("make", "kind", "data"), CASES.values(), ids=CASES)
def test_training_equals_one_process(pool, make, kind, data):
    losses, metrics = fit(0, 1, make, kind, None)
    assert len(losses) == (6 if kind == "two" else 8)
    for mine, own in pool.run(fit, 3, make, kind, data):
        assert mine == pytest.approx(losses, rel=2e-6)
        assert own == pytest.approx(metrics, rel=2e-6)


def noisy_rank(rank: int, world_size: int) -> str:
    try:
        fit(rank, world_size, Noisy, "plain", "owner")
    except Exception as error:
        return str(error)
    return ""


def test_draws_behind_the_loader_are_refused_where_stages_divide_rows_differently(pool):
    for text in pool.run(noisy_rank, 3):
        assert "on_after_batch_transfer draws random numbers" in text

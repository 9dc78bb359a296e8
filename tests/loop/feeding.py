"""What runs in the ranks of the loader tests: a run of rounds, or a Trainer that only cuts rows."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_edge.errors import DataError
from lightning_edge.loop.loader import Feed
from lightning_edge.loop.transfer import BatchTransfer
from lightning_edge.replicate.randomness import kept
from lightning_edge.train.rendezvous import connect
from lightning_edge.train.transport import Transport

TIMEOUT = timedelta(seconds=20)


def connected() -> Transport:
    store, rank, world_size = connect(TIMEOUT)
    return Transport(store, rank, world_size, timeout=TIMEOUT)


class Ids(Dataset):
    """Samples that say who they are; a rank without the data must not even ask for one."""

    def __init__(self, number: int, noise: str = "", breaks_at: int | None = None) -> None:
        self.number, self.noise, self.breaks_at = number, noise, breaks_at
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, i: int) -> Any:
        self.asked.append(i)
        if i == self.breaks_at:
            raise ValueError(f"sample {i} is corrupt")
        value = 0.0
        if "torch" in self.noise:
            value += torch.rand(()).item()
        if "numpy" in self.noise:
            value += np.random.rand()
        if "python" in self.noise:
            value += random.random()
        return {"id": torch.tensor(i), "noise": torch.tensor(value, dtype=torch.float64)}


class Elsewhere(Dataset):
    """The data of a rank that has none."""

    def __len__(self) -> int:
        return 1  # a RandomSampler asks for it as soon as it is made

    def __getitem__(self, i: int) -> Any:
        raise AssertionError("a rank without data was asked for a sample")


class Stream(IterableDataset):
    def __init__(self, number: int, noise: bool = False) -> None:
        self.number, self.noise = number, noise

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.number):
            value = torch.rand(()).item() if self.noise else 0.0
            yield {"id": torch.tensor(i), "noise": torch.tensor(value, dtype=torch.float64)}


def rows_by_shares(shares: Sequence[float], micro_batches: int = 1) -> Any:
    """Rows as a plan of one stage has them: each rank's share of each micro-batch."""

    def rows_for(rank: int, rows: int) -> list[tuple[int, int]]:
        number = min(micro_batches, rows)
        edges = [rows * m // number for m in range(number + 1)] if number else []
        parts = []
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            low, high = (round(sum(shares[:r]) * (stop - start)) for r in (rank, rank + 1))
            parts.append((start + low, start + high))
        return parts

    return rows_for


def everything(rank: int, rows: int) -> list[tuple[int, int]]:
    """Rows as a pipeline of single devices has them: all, on each."""
    return [(0, rows)]


def record(batch: Any) -> list[Any]:
    return [batch["id"].tolist(), batch["noise"].tolist()]


def expected(batches: Sequence[Any], rank: int, rows_for: Any) -> list[Any]:
    """What a rank has to get of the batches that one device got."""
    cut = []
    for ids, noise in batches:
        rows = [i for a, b in rows_for(rank, len(ids)) for i in range(a, b)]
        cut.append([[ids[i] for i in rows], [noise[i] for i in rows]])
    return cut


# a Trainer that only cuts rows


class FeedStrategy(SingleDeviceStrategy):
    """Every rank runs the user's steps on its rows; nothing is computed together."""

    def __init__(self, transport: Transport | None, data: Any, rows_for: Any, aligned: bool = True):
        super().__init__("cpu")
        self.transport, self.rows_for, self.is_aligned = transport, rows_for, aligned
        self.feed = Feed(transport, data)
        self.trees: list[Any] = []
        if transport is not None:
            self.global_rank, self.world_size = transport.rank, transport.world_size

    @property
    def is_global_zero(self) -> bool:
        return self.global_rank == 0

    def setup(self, trainer: L.Trainer) -> None:
        super().setup(trainer)
        self.transfer = BatchTransfer(
            self.feed, trainer, self.root_device, seed=7, aligned=lambda rows: self.is_aligned
        )
        self.transfer.install()

    def process_dataloader(self, dataloader: Any) -> Any:
        return self.feed.wrap(dataloader, self.rows_for)

    def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        moved = self.transfer(batch, device, dataloader_idx)
        self.trees.append(self.transfer.rows)
        return moved

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with kept():
            return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with kept():
            return super().validation_step(*args, **kwargs)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if self.transport is None:
            return tensor
        return torch.stack(self.transport.all_gather(tensor)).sum(0)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        if self.transport is not None:
            self.transport.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj if self.transport is None else self.transport.broadcast(obj, src)

    def teardown(self) -> None:
        self.transfer.remove()
        self.feed.close(orderly=True)
        super().teardown()


class Seen(L.LightningModule):
    """Writes down what each step got; its training step draws, as dropout does."""

    def __init__(self, draws: bool = True) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.draws = draws
        self.seen: list[Any] = []

    def note(self, where: str, batch: Any, *rest: Any) -> None:
        flat = batch if isinstance(batch, dict) and "id" in batch else None
        if flat is not None:
            self.seen.append([where, *rest, *record(batch)])
            return
        parts = batch.items() if isinstance(batch, dict) else enumerate(batch)
        for key, part in parts:
            self.seen.append([f"{where}/{key}", *rest, *(record(part) if part else [None, None])])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("train", batch, batch_idx)
        if self.draws:
            torch.rand(3), np.random.rand(), random.random()
        # keeps the batch for backward, which tensors made in inference mode refuse
        kept_for_backward = batch["noise"] if "noise" in batch else torch.ones(1)
        return (self.layer.weight * kept_for_backward).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.note("val", batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.note("predict", batch, batch_idx, dataloader_idx)
        return batch["id"]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Writer(BasePredictionWriter):
    """Writes down the samples that Lightning says were in each batch."""

    def __init__(self) -> None:
        super().__init__("batch")
        self.indices: list[Any] = []

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, *args: Any) -> None:
        self.indices.append(batch_indices)


def trainer(strategy: Any = "auto", **options: Any) -> L.Trainer:
    warnings.simplefilter("ignore")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"max_epochs": 2, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(strategy=strategy, **{**quiet, **settings, **options})


def loader(data: Any, **options: Any) -> DataLoader:
    return DataLoader(data, **{"batch_size": 4, **options})


# rounds over a loader

UNEVEN = (0.7, 0.0, 0.3)  # rank 1 has no rows


def seed() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


def between() -> None:
    """What other code draws between two batches: on the owner this must come at the same place."""
    torch.rand(2)
    np.random.rand()
    random.random()


def step() -> None:
    with kept(5):
        torch.rand(100)


def rounds(loader_: Any, epochs: int, draw_between: bool = False) -> list[Any]:
    seen = []
    for _ in range(epochs):
        iterator = loader_.begin_round() if hasattr(loader_, "begin_round") else iter(loader_)
        for batch in iterator:
            step()
            if draw_between:
                between()
            seen.append(record(batch))
    return seen


def ids() -> Ids:
    return Ids(11)


def noisy() -> Ids:
    return Ids(11, noise="torch numpy python")


def until_error(batches: Any) -> tuple[int, DataError]:
    got = 0
    try:
        for _ in batches:
            got += 1
    except DataError as error:
        return got, error
    raise AssertionError("there was no error")

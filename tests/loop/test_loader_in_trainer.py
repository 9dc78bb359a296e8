"""Loops of a real Trainer over shared loaders, held against a plain Trainer in one process."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from tests.loop.feeding import (
    Elsewhere,
    FeedStrategy,
    Ids,
    Seen,
    Stream,
    Writer,
    connected,
    loader,
    rows_by_shares,
    trainer,
)

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]

SHARES = (0.6, 0.0, 0.4)


class Data(L.LightningDataModule):
    """Loaders made anew at each request; a rank without data makes them of nothing."""

    def __init__(self, kind: str, here: bool) -> None:
        super().__init__()
        self.kind, self.here = kind, here

    def data(self, number: int, noise: str = "") -> Any:
        return Ids(number, noise) if self.here else Elsewhere()

    def stream(self, number: int) -> Any:
        return loader(Stream(number, noise=True)) if self.here else []

    def train_dataloader(self) -> Any:
        if self.kind == "stream":
            return self.stream(10)
        first = loader(self.data(13, "torch numpy"), shuffle=True)
        if self.kind == "one":
            return first
        loaders = {"a": first, "b": loader(self.data(9), shuffle=True)}
        if self.kind == "streams":
            loaders["c"] = self.stream(6)
        return loaders if self.kind == "dict" else CombinedLoader(loaders, self.mode)

    @property
    def mode(self) -> Any:
        return "max_size" if self.kind == "streams" else self.kind

    def val_dataloader(self) -> Any:
        if self.kind == "stream":
            return [self.stream(6), self.stream(5)]
        return [loader(self.data(5)), loader(self.data(6, "python"), shuffle=True)]

    def predict_dataloader(self) -> Any:
        return [loader(self.data(6)), loader(self.data(5))]


def fit(rank: int, data: Any, kind: str, options: dict, transport: Any) -> list[Any]:
    L.seed_everything(11 if rank == 0 else 99, verbose=False)
    owner = data["owner"] if isinstance(data, dict) else 0
    L.seed_everything(11, verbose=False) if rank == owner else None
    module = Seen()
    here = transport is None or rank == owner or data == "every"
    strategy = FeedStrategy(transport, data, rows_by_shares(SHARES if transport else (1.0,), 2))
    trainer(strategy, **options).fit(module, datamodule=Data(kind, here))
    assert not strategy.feed.handed or kind in ("stream", "streams", "min_size")
    return module.seen


def fit_rank(rank: int, world_size: int, data: Any, kind: str, options: dict) -> Any:
    with connected() as transport:
        return fit(rank, data, kind, options, transport)


class Plain(Seen):
    """The same draws as under a strategy that keeps a step's draws to itself."""

    def __init__(self) -> None:
        super().__init__(draws=False)


def plain(kind: str, options: dict) -> list[Any]:
    L.seed_everything(11, verbose=False)
    module = Plain()
    trainer(**options).fit(module, datamodule=Data(kind, True))
    return module.seen


def cut(seen: list[Any], rank: int, micro_batches: int = 2) -> list[Any]:
    rows_for = rows_by_shares(SHARES, micro_batches)
    parts = []
    for *where, ids, noise in seen:
        rows = [i for a, b in rows_for(rank, len(ids)) for i in range(a, b)] if ids else None
        mine = [[v[i] for i in rows] for v in (ids, noise)] if rows is not None else [ids, noise]
        parts.append([*where, *mine])
    return parts


CASES = {
    "one": ("one", {}),
    "limits": ("one", {"limit_train_batches": 2, "limit_val_batches": 1, "max_epochs": 3}),
    "validation within the epoch": ("one", {"val_check_interval": 0.5}),
    "loaders reloaded": ("one", {"reload_dataloaders_every_n_epochs": 1}),
    "steps, not epochs": ("one", {"max_steps": 6, "max_epochs": -1}),
    "overfit": ("one", {"overfit_batches": 2}),
    "several loaders, cycling": ("dict", {}),
    "several loaders, until the first ends": ("min_size", {"val_check_interval": 2}),
    "several loaders, until the last ends": ("max_size", {"accumulate_grad_batches": 2}),
    "no length": ("stream", {"val_check_interval": 2}),
    "some without length": ("streams", {}),
}


BY_DEFAULT = [
    "one-owner",
    "one-every",
    "limits-owner",
    "validation within the epoch-owner",
    "several loaders, cycling-owner",
    "several loaders, until the last ends-owner",
    "no length-owner",
]


def cases() -> list[Any]:
    found = []
    for name, (kind, options) in CASES.items():
        for data in ("owner", {"owner": 2}, "every"):
            if data == "owner" or kind == "one" or (kind, data) == ("dict", "every"):
                case = f"{name}-{data}"
                marks = [] if case in BY_DEFAULT else [pytest.mark.slow]
                found.append(pytest.param(kind, options, data, id=case, marks=marks))
    return found


@pytest.mark.parametrize(("kind", "options", "data"), cases())
def test_fit_sees_what_one_device_sees(pool, kind, options, data):
    alone = plain(kind, options)
    assert alone
    for rank, seen in enumerate(pool.run(fit_rank, 3, data, kind, options)):
        assert seen == cut(alone, rank)


def test_one_process_sees_what_a_plain_trainer_sees():
    for kind, options in CASES.values():
        assert fit(0, "owner", kind, options, None) == plain(kind, options)


def predict_rank(rank: int, world_size: int, owner: int) -> Any:
    with connected() as transport:
        module, writer = Seen(), Writer()
        strategy = FeedStrategy(transport, {"owner": owner}, rows_by_shares(SHARES))
        data = Data("one", rank == owner)
        outputs = trainer(strategy, callbacks=[writer]).predict(module, datamodule=data)
        return module.seen, writer.indices, [[o.tolist() for o in part] for part in outputs]


@pytest.mark.parametrize("owner", [0, 1])
def test_predict_writers_are_told_the_samples_on_all_ranks(pool, owner):
    module, writer = Plain(), Writer()
    trainer(callbacks=[writer]).predict(module, datamodule=Data("one", True))
    assert writer.indices == [[0, 1, 2, 3], [4, 5], [0, 1, 2, 3], [4]]
    for rank, (seen, indices, outputs) in enumerate(pool.run(predict_rank, 3, owner)):
        assert seen == cut(module.seen, rank, micro_batches=1)
        assert indices == writer.indices
        assert [len(part) for part in outputs] == [2, 2]


class Look(Callback):
    """Looks at an example on rank 0, as callbacks that log images do."""

    def __init__(self) -> None:
        self.looked: list[Any] = []

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            for shown in (trainer.train_dataloader, *trainer.val_dataloaders):
                with torch.random.fork_rng(devices=[]):
                    self.looked.append(next(iter(shown))["id"].tolist())


def look_rank(rank: int, world_size: int) -> Any:
    with connected() as transport:
        L.seed_everything(11, verbose=False)
        module, look = Seen(), Look()
        strategy = FeedStrategy(transport, "owner", rows_by_shares((0.5, 0.5)))
        options = {"callbacks": [look], "num_sanity_val_steps": 0}
        trainer(strategy, **options).fit(module, datamodule=Data("one", rank == 0))
        return module.seen, look.looked


def test_a_callback_may_look_at_the_data_on_the_owner_alone(pool):
    (first, looked), (second, nothing) = pool.run(look_rank, 2)
    assert [len(ids) for ids in looked] == [4, 4, 4] * 2
    assert nothing == []
    assert [seen[:2] for seen in first] == [seen[:2] for seen in second]
    whole = [sorted(a[2] + b[2]) for a, b in zip(first, second, strict=True) if a[0] == "train"]
    assert sorted(sum(whole[:4], [])) == list(range(13))
    assert sorted(sum(whole[4:], [])) == list(range(13))


def test_a_batch_from_elsewhere_is_refused():
    class Bypassing(FeedStrategy):
        def process_dataloader(self, dataloader: Any) -> Any:
            return dataloader

    strategy = Bypassing(None, "owner", rows_by_shares((1.0,)))
    with pytest.raises(Exception, match="did not come through the strategy's loaders"):
        trainer(strategy).fit(Seen(), loader(Ids(8)))

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from lightning_edge.errors import DataError
from lightning_edge.loop.streams import Streams
from lightning_edge.train.microbatch import BatchRows, cut, whole_rows
from tests.loop.feeding import (
    FeedStrategy,
    Ids,
    Seen,
    Stream,
    connected,
    everything,
    loader,
    rows_by_shares,
    trainer,
)

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class Mixing(Seen):
    """Draws in one of the batch hooks and writes down what."""

    def __init__(self, hook: str = "on_after_batch_transfer", kind: str = "torch") -> None:
        super().__init__()
        self.hook, self.kind = hook, kind
        self.drawn: list[float] = []
        self.calls: list[str] = []

    def draw(self, hook: str, batch: Any) -> Any:
        self.calls.append(hook)
        if hook == self.hook:
            draws = {"torch": lambda: torch.rand(()).item(), "numpy": np.random.rand}
            self.drawn.append(draws.get(self.kind, random.random)())
        return batch

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.draw("on_before_batch_transfer", batch)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self.draw("transfer_batch_to_device", batch)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.draw("on_after_batch_transfer", batch)


def alone(module: Any, data: Any, aligned: bool = True, **options: Any) -> FeedStrategy:
    strategy = FeedStrategy(None, "owner", everything, aligned)
    options = {"num_sanity_val_steps": 0, "max_epochs": 1, **options}
    L.seed_everything(5, verbose=False)
    trainer(strategy, **options).fit(module, *data)
    return strategy


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", ["torch", "numpy", "python"])
def test_draws_in_hooks_do_not_move_the_shuffling(hook, kind):
    quiet, mixing = Seen(), Mixing(hook, kind)
    data = [loader(Ids(12, "torch numpy python"), shuffle=True), loader(Ids(5))]
    alone(quiet, data, max_epochs=3)
    alone(mixing, data, max_epochs=3)
    assert mixing.seen == quiet.seen
    assert len(set(mixing.drawn)) == len(mixing.drawn) == 3 * (3 + 2)  # none is drawn twice
    assert mixing.calls[:3] == list(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_draws_are_refused_where_stages_divide_rows_differently(hook):
    with pytest.raises(DataError, match=f"{hook} draws random numbers.*the same shares"):
        alone(Mixing(hook), [loader(Ids(8))], aligned=False)
    alone(Mixing("none of them"), [loader(Ids(8))], aligned=False)


def test_a_data_modules_hook_counts_too_and_everything_is_put_back():
    class Data(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(Ids(8), shuffle=True)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            torch.rand(1)
            return batch

    module, data = Seen(), Data()
    strategy = FeedStrategy(None, "owner", everything, aligned=False)
    with pytest.raises(DataError, match="on_after_batch_transfer draws"):
        trainer(strategy).fit(module, datamodule=data)
    assert not set(HOOKS) & (set(vars(data)) | set(vars(module)))


def test_a_hook_set_on_the_instance_is_put_back():
    module = Seen()
    own = lambda batch, dataloader_idx: batch  # noqa: E731
    module.on_after_batch_transfer = own
    alone(module, [loader(Ids(8))])
    assert vars(module)["on_after_batch_transfer"] is own


class Pairs(Seen):
    """Takes apart what the loader gives, and looks at the rows of it."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"id": batch["id"], "noise": batch["noise"], "twice": batch["id"] * 2}


@pytest.mark.parametrize(
    "data", [lambda: loader(Ids(10)), lambda: loader(Stream(10))], ids=["length", "none"]
)
def test_the_rows_are_those_of_the_batch_in_the_step(data):
    """A loop over a loader without a length is one batch ahead of the step."""
    strategy = alone(Pairs(), [data(), data()], val_check_interval=1, max_epochs=2)
    rows = [whole_rows(tree) for tree in strategy.trees]
    val = [4, 4, 2]
    assert rows == [4, *val, 4, *val, 2, *val] * 2
    part = cut({"id": torch.arange(2), "noise": torch.zeros(2), "twice": torch.arange(2)}, *(
        strategy.trees[-1], [(1, 2)]
    ))  # fmt: skip
    assert part["twice"].tolist() == [1]


def test_parts_of_several_loaders_stand_where_their_batches_do():
    class Several(Seen):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(torch.ones(1)).sum()

    data = {"a": loader(Ids(8)), "b": [loader(Ids(6), batch_size=3)]}
    strategy = alone(Several(), [data])
    first = strategy.trees[0]
    assert (first["a"].rows, first["b"][0].rows) == (4, 3)
    with pytest.raises(DataError, match="3 and 4 rows into one step"):
        whole_rows(first)


@pytest.mark.multiproc
def test_devices_with_the_same_rows_draw_the_same(pool):
    """Ranks 0 and 1 are stages with all rows; rank 2 has none."""
    drawn, calls = zip(*pool.run(mixing_rank, 3), strict=True)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4
    assert (drawn[2], calls[2]) == ([], [])


def two_have_rows(rank: int, rows: int) -> list[tuple[int, int]]:
    return [(0, rows if rank != 2 else 0)]


def mixing_rank(rank: int, world_size: int) -> Any:
    with connected() as transport:
        torch.manual_seed(rank)
        module = Mixing()
        strategy = FeedStrategy(transport, "owner", two_have_rows)
        trainer(strategy, max_epochs=2).fit(module, loader(Ids(8)) if rank == 0 else [])
        return module.drawn, module.calls


@pytest.mark.multiproc
def test_devices_with_other_rows_draw_something_else(pool):
    first, second = pool.run(dividing_rank, 2)
    assert len(first) == len(second) == 4
    assert not set(first) & set(second)


def dividing_rank(rank: int, world_size: int) -> Any:
    with connected() as transport:
        module = Mixing()
        strategy = FeedStrategy(transport, "owner", rows_by_shares((0.5, 0.5)))
        trainer(strategy, max_epochs=2).fit(module, loader(Ids(8)) if rank == 0 else [])
        return module.drawn


def test_a_batch_moved_by_the_user_is_just_moved():
    class Moving(Seen):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            before = Streams.capture()
            moved = self.trainer.strategy.batch_to_device([torch.ones(3)])
            assert moved[0].tolist() == [1, 1, 1]
            assert Streams.capture() == before

    strategy = alone(Moving(), [loader(Ids(10))])
    assert [tree for tree in strategy.trees if isinstance(tree, BatchRows)]
    assert len(strategy.trees) == 2 * 3

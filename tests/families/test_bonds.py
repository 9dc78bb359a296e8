"""What a cut may not part is refused with a sentence, before the first step."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

import lightning_edge
from lightning_edge.errors import SplitError, UnsupportedError
from lightning_edge.replicate.probe import Probe, probe_step
from lightning_edge.replicate.split import check_replicas, check_starts, first_names
from tests.families.odd import Aliased, Auxiliary, Base, Transposed, W
from tests.models import VOCAB, Batch, _tokens


class SharedCounter(Base):
    """A buffer that all stages write: each would have its own part only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        for block in (self.a, self.b, self.c, self.d):
            x = torch.tanh(block(x))
            self.total += x.detach().mean()
        return self.loss(x, batch)


class EarlyBufferUsedLate(Base):
    """A running scale that the first stage updates and the last one uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        self.scale.mul_(0.5).add_(x.detach().abs().mean())
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        x = torch.tanh(self.d(torch.tanh(self.c(x))))
        return self.loss(x / self.scale, batch)


class LateBufferUsedEarly(Base):
    """A counter behind the loss, read in front of the model in the next step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"]) * (1 + self.seen)
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        x = torch.tanh(self.d(torch.tanh(self.c(x))))
        loss = self.loss(x, batch)
        self.seen += 1
        return loss


class TwoNorms(Base):
    """A BatchNorm that is shared by two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(W)

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        x = torch.tanh(self.b(self._norm(self.a(x))))
        x = torch.tanh(self.d(self._norm(self.c(x))))
        return self.loss(x, batch)

    def _norm(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view_as(x)


class Alias(Base):
    """A view and its base cross apart, and one is changed behind the cut."""

    def training_step(self, batch: Batch) -> Tensor:
        h = self.a(self.emb(batch["ids"]))
        first = h[:, 0]
        x = torch.tanh(self.b(h.clone()))
        h.mul_(2)
        x = torch.tanh(self.c(x))
        return self.loss(self.d(x) + h + first[:, None], batch)


class Scripted(Base):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.jit.script(nn.Linear(W, W)) for _ in range(3))


class Penalty(Base):
    """A gradient penalty on a value of the first stage."""

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        y = torch.tanh(self.b(torch.tanh(self.a(x))))
        y = torch.tanh(self.d(torch.tanh(self.c(y))))
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return self.loss(y, batch) + slope.square().mean()


class LatePenalty(Base):
    """The same on a value that is carried, in front of which the path divides."""

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        y = torch.tanh(self.a(x))
        y = torch.tanh(self.c(torch.tanh(self.b(y))) + x)
        y = torch.tanh(self.d(y))
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return self.loss(y, batch) + slope.square().mean()


class Item(Base):
    """A number is asked for in front of the cuts."""

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        if x.abs().max().item() > 100:
            x = x / 2
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.loss(torch.tanh(self.d(torch.tanh(self.c(x)))), batch)


class Direct(Base):
    """Blocks are run without being called."""

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        for block in (self.a, self.b, self.c, self.d):
            x = torch.tanh(block.forward(x))
        return self.loss(x, batch)


class Selected(Base):
    """As many values as the data say cross a cut."""

    def training_step(self, batch: Batch) -> Tensor:
        x = self.a(self.emb(batch["ids"]))
        few = x[batch["ids"] > VOCAB // 2]
        x = torch.tanh(self.c(torch.tanh(self.b(x))))
        y = torch.zeros_like(x)
        y[batch["ids"] > VOCAB // 2] = few
        return self.loss(self.d(x) + y, batch)


class Lazy(Base):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LazyLinear(W)


def probe(module: nn.Module) -> Probe:
    return probe_step(module, module.training_step, (_tokens(2, 0), _tokens(3, 0)), (2, 3))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (SharedCounter, "'total' is changed and used on both sides"),
        (EarlyBufferUsedLate, "'scale' is changed and used on both sides"),
        (LateBufferUsedEarly, "'seen' is changed and used on both sides"),
        (TwoNorms, "'norm.running_mean' is changed in 'norm' and used on both sides"),
        (Alias, "a view of it cross it one by one, and one of them is changed in place"),
        (Penalty, r"taken in 'the step' \(torch.autograd.grad\) goes through it"),
        (LatePenalty, r"taken in 'the step' \(torch.autograd.grad\) goes through it"),
        (Item, r"a number that depends on parameters is asked for .*\.abs\(\)\.max\(\)\.item\(\)"),
        (Selected, r"how many entries there are depends on data .*few = x\["),
        (Direct, r"'b' runs 0 times in a step; .*\(is it called, as `module\(x\)`\?\)"),
    ],
)
def test_what_cannot_be_parted_is_named(model: type[Base], text: str) -> None:
    module = model()
    with pytest.raises(SplitError, match=text):
        check_starts(probe(module), module, ["b", "c"])
    with suppress(SplitError):  # where the step cannot be tried without data
        legal = {cut.name for cut in lightning_edge.cuts(module, _tokens(4, 0))}
        assert "b" not in legal


def test_cuts_that_part_nothing_stay() -> None:
    legal = {cut.name for cut in lightning_edge.cuts(SharedCounter(), _tokens(4, 0))}
    assert legal == {"a", "head"}  # in front of all changes, and behind them


@pytest.mark.parametrize(
    ("model", "text"),
    [(Scripted, "'a' is compiled by torch.jit"), (Lazy, "'a.weight' is a lazy parameter")],
)
def test_modules_that_cannot_be_tried_are_named(model: type[Base], text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        probe(model())


def test_a_mean_over_rows_needs_one_device() -> None:
    found = probe(Auxiliary())
    check_replicas(found, ["b", "c"], [1, 1, 2])
    with pytest.raises(SplitError, match="over all rows of a batch .* in stage 0, whose 2"):
        check_replicas(found, ["b", "c"], [2, 1, 1])
    with pytest.raises(SplitError, match=r"crosses 'c', .* in stage 1, whose 3 devices"):
        check_replicas(found, ["b", "c"], [1, 3, 1])


def test_rows_that_lie_apart_need_one_device() -> None:
    found = probe(Transposed())
    check_replicas(found, ["b", "c"], [1, 1, 1])
    for devices in ([2, 1, 1], [1, 2, 1], [1, 1, 2]):
        with pytest.raises(SplitError, match="has 2 entries for each row .* that lie apart"):
            check_replicas(found, ["b", "c"], devices)


class Pairs(Base):
    """Two entries for each row, one behind the other."""

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        pairs = torch.stack([x, -x], 1).flatten(0, 1)
        y = torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(pairs))))))
        return self.loss(self.d(y).unflatten(0, (-1, 2)).sum(1), batch)


def test_rows_that_follow_one_another_may_be_divided() -> None:
    check_replicas(probe(Pairs()), ["b", "c"], [2, 1, 2])


def test_a_module_may_be_named_by_any_of_its_names() -> None:
    assert first_names(Aliased(), ["blocks.1", "c", "nowhere"]) == ["b", "c", "nowhere"]

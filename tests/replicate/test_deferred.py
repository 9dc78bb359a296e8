"""Weights computed later, each by itself, are bit for bit those of a model built at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_edge.errors import UnsupportedError
from lightning_edge.replicate import deferred as module_under_test
from lightning_edge.replicate import placeholder
from lightning_edge.replicate.deferred import Deferred
from lightning_edge.replicate.placeholder import is_fake


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placeholder, "SMALL_ENTRIES", 0)


class Many(nn.Module):
    """Every way to make weights that people use."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 4, 32)
        self.encoder = nn.TransformerEncoder(layer, 3)  # deep copies
        self.lstm = nn.LSTM(8, 8)
        self.scaled = nn.Parameter(torch.randn(40, 50) / 7)
        self.orthogonal = nn.Parameter(torch.zeros(33, 44))
        nn.init.orthogonal_(self.orthogonal)
        self.truncated = nn.Parameter(torch.empty(30, 30))
        nn.init.trunc_normal_(self.truncated, std=0.02)
        self.register_buffer("mask", torch.tril(torch.ones(20, 20)))
        self.places = [torch.arange(200.0).view(10, 20)]
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 5)]
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.embedding.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(20, 30))
        self.edited = nn.Linear(20, 20)
        nn.init.sparse_(self.edited.weight, 0.3)
        with torch.no_grad():
            self.edited.weight[3] = 1.0
            self.edited.weight[:, 2].copy_(torch.arange(20.0))
            self.edited.weight += self.mask * torch.rand(20, 1)


def same(build: Callable[[], nn.Module]) -> Deferred:
    torch.manual_seed(5)
    expected = build()
    stream = torch.get_rng_state()
    torch.manual_seed(5)
    deferred = Deferred()
    with deferred:
        found = build()
    assert torch.equal(torch.get_rng_state(), stream)
    deferred.settle_buffers(found)
    pairs = list(zip(found.named_parameters(), expected.named_parameters(), strict=True))
    for (name, parameter), (other, value) in reversed(pairs):  # in any order
        assert name == other
        assert is_fake(parameter)
        assert torch.equal(deferred.materialize(parameter), value), name
    for (name, buffer), (_, value) in zip(
        found.named_buffers(), expected.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, value), name
    assert torch.equal(torch.get_rng_state(), stream)
    return deferred


def test_every_way_to_make_weights() -> None:
    same(Many)


@pytest.mark.parametrize("entries", [5, 16, 63, 64, 65, 127, 128, 150, 1000])
def test_streams_go_on_whatever_the_size(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setattr(module_under_test, "_CHUNK_ENTRIES", 64)

    def build() -> nn.Module:
        tensors = [torch.empty(entries).normal_(0, 2), torch.empty(entries).uniform_(-1, 1)]
        tensors.append(torch.empty(entries, dtype=torch.bfloat16).normal_())
        return nn.ParameterList([*tensors, torch.rand(3), torch.randn(40)])

    same(build)


def test_only_what_a_weight_needs_is_computed() -> None:
    deferred = Deferred()
    with deferred:
        layers = [nn.Linear(8, 8) for _ in range(4)]
    steps, _ = deferred._steps_to(deferred._number(layers[3].weight))
    assert len(steps) == 2  # its memory, and its values


def test_a_source_that_was_changed_is_refused() -> None:
    table = torch.randn(30, 3)
    deferred = Deferred()
    with deferred:
        layer = nn.Linear(3, 30)
        with torch.no_grad():
            layer.weight.copy_(table)
    table.zero_()
    with pytest.raises(UnsupportedError, match=r"shape \[30, 3\] and changed that tensor"):
        deferred.materialize(layer.weight)

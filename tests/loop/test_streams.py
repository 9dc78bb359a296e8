from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_edge.loop.streams import Streams
from lightning_edge.train.codec import decode, encode

DRAWS = {
    "torch": lambda: torch.rand(2).tolist(),
    "numpy": lambda: np.random.rand(2).tolist(),
    "python": lambda: [random.random(), random.gauss(0, 1)],
}


class Owner:
    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(1)
        self.legacy = np.random.RandomState(1)
        self.python = random.Random(1)
        self.system = random.SystemRandom()

    def draw(self) -> list[float]:
        return [
            torch.rand(1, generator=self.torch).item(),
            self.numpy.random(),
            self.legacy.rand(),
            self.python.random(),
        ]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_any_draw_is_seen_and_undone(draw):
    before = Streams.capture()
    assert Streams.capture() == before
    first = draw()
    assert Streams.capture() != before
    before.restore()
    assert draw() == first


@pytest.mark.parametrize("kind", ["torch", "numpy", "legacy", "python"])
def test_generators_of_objects_are_seen_and_undone(kind):
    owner = Owner()
    before = Streams.capture(owner)
    everything = owner.draw()
    before.restore()
    assert Streams.capture(owner) == before
    {
        "torch": lambda: torch.rand(1, generator=owner.torch),
        "numpy": owner.numpy.random,
        "legacy": owner.legacy.rand,
        "python": owner.python.random,
    }[kind]()
    assert Streams.capture(owner) != before
    before.restore()
    assert owner.draw() == everything


def test_a_loaders_parts_are_looked_at():
    loader = DataLoader(list(range(8)), shuffle=True, generator=torch.Generator())
    loader.collate_fn = Owner()
    loader.batch_sampler.sampler.own = random.Random(2)
    assert len(Streams.capture(loader)._owned) == 1 + 4 + 1


def test_another_process_can_adopt_them():
    here, there = Owner(), Owner()
    here.draw()
    sent = encode(Streams.capture(here).to_plain())
    expected = [[draw() for draw in DRAWS.values()], here.draw()]
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    Streams.capture(there).adopt(decode(sent))
    assert [[draw() for draw in DRAWS.values()], there.draw()] == expected


def test_other_generators_cannot_be_adopted():
    plain = Streams.capture(Owner()).to_plain()
    with pytest.raises(ValueError, match="0 generators here, 4 there"):
        Streams.capture().adopt(plain)

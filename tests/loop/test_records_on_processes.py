"""Logs, metrics and epoch ends through the real strategy on real processes."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

import lightning_edge
from tests.loop.runs import BATCH, data, trainer
from tests.loop.test_epoch_end import Lists
from tests.loop.test_metrics import Measures
from tests.loop.test_records import assert_same, logged

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore"),
]  # Trainers have much to say

FIRST, LAST = {"devices": {0: 1.0}}, {"start": "net.2", "devices": {1: 1.0}}
LAYOUTS = {
    "1-1": (2, [FIRST, LAST]),
    "last stage on rank 0": (2, [{"devices": [1]}, {"start": "net.2", "devices": [0]}]),
    "1-2 uneven": (3, [FIRST, {"start": "net.2", "devices": {1: 0.75, 2: 0.25}}]),
    "2 data": (2, [{"devices": {0: 0.4, 1: 0.6}}]),
}


class Cut:
    """Gives a module a net that can be cut in two."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3), torch.nn.Tanh()
            )
        del self.weight

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class CutMeasures(Cut, Measures): ...


class CutLists(Cut, Lists): ...


KINDS = {"metrics": CutMeasures, "epoch ends": CutLists}


def run(rank: int, world_size: int, kind: str, stages: Any) -> dict[str, Any]:
    warnings.filterwarnings("ignore")
    L.seed_everything(2, verbose=False)
    strategy: Any = "auto"
    if stages is not None:
        plan = {"pipelines": [{"stages": stages}], "micro_batches": 3}
        strategy = lightning_edge.EdgeCollabStrategy(plan)
    made = trainer(strategy, devices=1)
    made.fit(KINDS[kind](), DataLoader(data(), BATCH), DataLoader(data(), BATCH))
    if stages is not None:
        strategy.disconnect()
    return logged(made)


@pytest.mark.multiproc
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_process_logs_what_one_would(pool: Any, layout: str, kind: str) -> None:
    world_size, stages = LAYOUTS[layout]
    one = run(0, 1, kind, None)
    found = pool.run(run, world_size, kind, stages)
    for result in found:
        assert_same(result, one)
        if result is not found[0]:
            assert result["callback"] == found[0]["callback"]
            assert result["logger"] == found[0]["logger"]

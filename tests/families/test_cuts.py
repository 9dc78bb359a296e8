"""`lightning_edge.cuts`: every family can be cut by itself, and what cannot be cut says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_edge
from lightning_edge.errors import SplitError
from lightning_edge.plan.groups import plan_from_groups
from lightning_edge.replicate.probe import probe_step
from lightning_edge.replicate.split import check_starts
from lightning_edge.train.microbatch import take_rows
from tests.families.zoo import FAMILIES
from tests.models import make

QUICK = {"gpt2", "t5", "unet", "clip"}
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.mark.parametrize(
    "family",
    [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_every_family_has_cuts_for_three_devices(family: str) -> None:
    module, batch = make(family), FAMILIES[family][1](4, 0)
    found = lightning_edge.cuts(module, batch)
    assert set(FAMILIES[family][2]) <= {cut.name for cut in found}
    points = found.blocks
    in_front = sum(p.numel() for p in module.parameters()) - sum(c.parameters for c in points)
    sizes = [in_front, *(cut.parameters for cut in points)]
    plan, _ = plan_from_groups(
        None, "pipeline", ["a", "b", "c"], [c.name for c in points], sizes, 2
    )
    starts = [stage.start for stage in plan.stages[1:]]
    assert len(starts) == 2
    assert all(start in {cut.name for cut in points} for start in starts)
    assert all(cut.crossing_bytes > 0 for cut in points)


def test_the_table_has_what_a_person_needs_to_choose() -> None:
    found = lightning_edge.cuts(make("gpt2"), FAMILIES["gpt2"][1](4, 0))
    second = found.blocks[1]
    assert second.name == "model.transformer.h.1"
    assert second.parameters == 3280  # of one block of width 16
    assert second.crossing_bytes == 7 * 16 * 4  # one activation
    # its four products of matrices, and attention's two
    products = 2 * 7 * 16 * (3 * 16 + 16 + 4 * 16 + 4 * 16) + 2 * 2 * 7 * 7 * 16
    assert second.flops == pytest.approx(products)
    lines = str(found).splitlines()
    assert lines[0].split() == ["cut", "parameters", "Mflop/row", "crosses/row", "what", "crosses"]
    assert lines[2].split() == ["model.transformer.h.1", "3,280", "0.0461", "448", "B", "7x16"]
    assert "more inside blocks" in lines[-1]


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return 2 * gradients[0]


class Hidden(nn.Module):
    """A value that only a custom autograd function has seen crosses the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def training_step(self, batch: Any) -> Tensor:
        x = self.layers[0](batch[0])
        doubled = _Double.apply(x)  # type: ignore[no-untyped-call]
        y = self.layers[1](x) + doubled
        doubled = _Double.apply(doubled)  # type: ignore[no-untyped-call]
        z = self.layers[2](y)
        z = z + doubled.sum() + doubled
        return (self.layers[3](z)).sum()


def test_a_value_that_cannot_be_found_again_is_named_with_the_cuts_around() -> None:
    module, batch = Hidden(), [torch.randn(4, 8)]
    probe = probe_step(
        module,
        module.training_step,
        (take_rows(batch, 4, [(0, 2)]), take_rows(batch, 4, [(0, 3)])),
        (2, 3),
    )
    legal = [cut.name for cut in lightning_edge.cuts(module, batch)]
    assert "layers.3" in legal
    starts = ["layers.9", "layers.1"]
    with pytest.raises(SplitError) as caught:
        check_starts(probe, module, starts)
    text = str(caught.value)
    assert "'layers.9' is not a module of Hidden" in text
    assert "cuts that work nearby: " in text

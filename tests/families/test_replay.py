"""Every family, cut into stages where its values cross, trains like one process.

The whole mechanism without Lightning: probe, placement, replay, messages, gradients, SGD steps.
"""

from __future__ import annotations

import pytest

from tests.families.run import train_family
from tests.families.zoo import FAMILIES
from tests.pool import Pool
from tests.train.stages import largest_difference, train_alone
from tests.train.test_transparency import LAYOUTS, plan_of

TOLERANCE = 2e-6
# statistics over the rows at hand: a device with half the rows has other ones
WHOLE_MICRO_BATCHES = {"resnet", "batchnorm"}
WHOLE_AT_THE_END = {"clip", "mixture-of-experts"}  # losses between rows
QUICK = {"t5", "unet", "residuals", "mixture-of-experts"}

slow = pytest.mark.slow
# said by transformers when peft asks
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def layouts_of(family: str) -> list[str]:
    if family in WHOLE_MICRO_BATCHES:
        return ["1-1", "1-1-1"]
    if family in WHOLE_AT_THE_END:
        return ["1-1", "1-1-1", "2-1"]
    return ["1-1", "1-1-1", "2-1", "1-2"]


CASES = [
    pytest.param(
        family,
        layout,
        id=f"{family}-{layout}",
        marks=() if family in QUICK and layout == "1-1-1" else slow,
    )
    for family in FAMILIES
    for layout in layouts_of(family)
]


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_a_family_trains_like_one_process(pool: Pool, family: str, layout: str) -> None:
    stages, rows = LAYOUTS[layout], (7, 4)
    plan = plan_of(*stages, cuts=FAMILIES[family][2], micro_batches=2)
    world_size = max(rank for devices in stages for rank in devices) + 1
    alone = train_alone(plan, family, rows)
    for rank, result in enumerate(pool.run(train_family, world_size, plan, family, rows)):
        assert result["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE)
        assert largest_difference(result["state"], alone["state"]) < TOLERANCE
        for found, expected in zip(result["gradients"], alone["gradients"], strict=True):
            held = {n: g for n, g in expected.items() if rank in result["holders"][n]}
            assert largest_difference(found, held) < 2e-5

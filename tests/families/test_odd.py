"""Little models that do what is easily forgotten train like one process."""

from __future__ import annotations

import pytest

from tests.families.odd import ODD
from tests.families.run import train_family
from tests.pool import Pool, WorkerError
from tests.train.stages import largest_difference, train_alone
from tests.train.test_transparency import LAYOUTS, plan_of

TOLERANCE = 2e-6
QUICK = {"in-place", "hooked", "objects", "old-spectral-norm"}
# a device with some of the rows counts its own calls, or has a mean of its own rows
ONE_DEVICE_EACH = {
    *("counters", "early-counter", "replaced-buffer", "auxiliary", "transposed"),
    *("spectral-norm", "old-spectral-norm"),
}
CASES = [
    pytest.param(
        name,
        layout,
        id=f"{name}-{layout}",
        marks=() if name in QUICK and layout == "1-1-1" else pytest.mark.slow,
    )
    for name in ODD
    for layout in (["1-1-1"] if name in ONE_DEVICE_EACH else ["1-1-1", "2-1", "1-2"])
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_it_trains_like_one_process(pool: Pool, name: str, layout: str) -> None:
    stages, rows = LAYOUTS[layout], (7, 4)
    plan = plan_of(*stages, cuts=("b", "c"), micro_batches=2)
    world_size = max(rank for devices in stages for rank in devices) + 1
    alone = train_alone(plan, f"odd-{name}", rows)
    for result in pool.run(train_family, world_size, plan, f"odd-{name}", rows):
        assert result["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE)
        assert largest_difference(result["state"], alone["state"]) < TOLERANCE


@pytest.mark.slow
def test_parts_that_take_turns_are_refused_where_they_do(pool: Pool) -> None:
    plan = plan_of(*LAYOUTS["1-1"], cuts=("b",), micro_batches=1)
    with pytest.raises(WorkerError, match="a parameter that another device holds is used here"):
        pool.run(train_family, 2, plan, "odd-alternating", (4, 4, 4))

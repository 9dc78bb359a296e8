"""`checkpoint: true` of a stage changes memory and time, and no number."""

from __future__ import annotations

from typing import Any

import pytest

from tests.families.run import train_compiled, train_counted
from tests.families.zoo import FAMILIES
from tests.models import MODELS
from tests.pool import Pool, WorkerError
from tests.train.stages import largest_difference
from tests.train.test_transparency import LAYOUTS, plan_of

pytestmark = pytest.mark.thorough

slow = pytest.mark.slow


def plan_for(model: str, layout: str, stages: tuple[int, ...]) -> dict[str, Any]:
    cuts = {**MODELS, **FAMILIES}[model][2]
    plan = plan_of(*LAYOUTS[layout], cuts=cuts, micro_batches=2)
    for stage in stages:
        plan["pipelines"][0]["stages"][stage]["checkpoint"] = True
    return plan


@pytest.mark.parametrize(
    "model", ["gpt2-dropout", *(pytest.param(m, marks=slow) for m in ("t5", "mixture-of-experts"))]
)
def test_blocks_are_computed_again_with_the_same_result(pool: Pool, model: str) -> None:
    kept = pool.run(train_counted, 3, plan_for(model, "1-1-1", ()), model, (6, 5))
    again = pool.run(train_counted, 3, plan_for(model, "1-1-1", (1,)), model, (6, 5))
    for before, after in zip(kept, again, strict=True):
        assert after["losses"] == pytest.approx(before["losses"], rel=1e-6)
        assert largest_difference(after["state"], before["state"]) < 1e-6
    assert again[2]["calls"] == kept[2]["calls"]
    assert sum(again[1]["calls"].values()) > sum(kept[1]["calls"].values())
    assert again[1]["saved"] < 0.5 * kept[1]["saved"]


def test_a_stage_without_blocks_says_so(pool: Pool) -> None:
    with pytest.raises(WorkerError, match="nothing can be computed again"):
        pool.run(train_counted, 2, plan_for("lstm", "1-1", (1,)), "lstm", (4,))


@pytest.mark.parametrize(
    "model", ["tiny-compiled", pytest.param("tiny-compiled-in-place", marks=slow)]
)
def test_compiled_blocks_train_like_others(pool: Pool, model: str) -> None:
    plan = plan_of(*LAYOUTS["1-1-1"], cuts=MODELS["tiny"][2], micro_batches=2)
    eager = pool.run(train_counted, 3, plan, "tiny", (6, 5))
    compiled = pool.run(train_compiled, 3, plan, model, (6, 5))
    for before, after in zip(eager, compiled, strict=True):
        assert after["losses"] == pytest.approx(before["losses"], rel=1e-6)
        assert after["compiled"] > 0

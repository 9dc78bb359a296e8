"""The one promise: losses, gradients and weights of every stage equal one process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models import MODELS
from tests.pool import Pool, WorkerError
from tests.train.stages import largest_difference, train_alone, train_stage

TOLERANCE = 2e-6


def plan_of(*stages: dict[int, float], cuts: tuple[str, ...], micro_batches: int) -> dict[str, Any]:
    """A plan in its mapping form."""
    written: list[dict[str, Any]] = [{"devices": stages[0]}]
    written += [
        {"devices": devices, "start": cut} for devices, cut in zip(stages[1:], cuts, strict=False)
    ]
    return {"pipelines": [{"stages": written}], "micro_batches": micro_batches}


LAYOUTS: dict[str, tuple[dict[int, float], ...]] = {
    "1": ({0: 1.0},),
    "2 data": ({0: 0.5, 1: 0.5},),
    "2 data uneven": ({0: 0.8, 1: 0.2},),
    "1-1": ({0: 1.0}, {1: 1.0}),
    "1-1-1": ({0: 1.0}, {1: 1.0}, {2: 1.0}),
    "2-1": ({0: 0.625, 1: 0.375}, {2: 1.0}),
    "1-2": ({0: 1.0}, {1: 0.3, 2: 0.7}),
    "2-2": ({0: 0.3, 2: 0.7}, {1: 0.5, 3: 0.5}),
    "idle": ({0: 1.0}, {2: 1.0}),
}


def compare(pool: Pool, model: str, layout: str, micro_batches: int, rows: tuple[int, ...]) -> None:
    stages = LAYOUTS[layout]
    plan = plan_of(*stages, cuts=MODELS[model][2], micro_batches=micro_batches)
    world_size = max(rank for devices in stages for rank in devices) + 1
    alone = train_alone(plan, model, rows)
    results = pool.run(train_stage, world_size, plan, model, rows)
    for rank, result in enumerate(results):
        assert result["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE)
        assert largest_difference(result["state"], alone["state"]) < TOLERANCE
        assert result["open"] == 0
        for found, expected in zip(result["gradients"], alone["gradients"], strict=True):
            held = {n: g for n, g in expected.items() if rank in result["holders"][n]}
            assert largest_difference(found, held) < 2e-5
            assert result["stage"] is None or held or model == "frozen"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_like_one_process(pool: Pool, layout: str) -> None:
    compare(pool, "tiny", layout, micro_batches=4, rows=(8, 8, 5, 1))


PIPELINED = ("tiny", "frozen", "mlp", "batchnorm", "gpt2", "llama", "bert", "vit")


@pytest.mark.parametrize("model", PIPELINED)
def test_every_family_trains_like_one_process_in_a_pipeline(pool: Pool, model: str) -> None:
    compare(pool, model, "1-1-1", micro_batches=3, rows=(9, 7))


@pytest.mark.parametrize("model", ["gpt2", "llama", "bert", "vit", "mlp"])
@pytest.mark.parametrize("layout", ["2-1", "1-2"])
def test_every_family_trains_like_one_process_in_a_hybrid(
    pool: Pool, model: str, layout: str
) -> None:
    compare(pool, model, layout, micro_batches=2, rows=(8, 5))


def test_running_statistics_of_replicas_are_those_of_all_rows(pool: Pool) -> None:
    plan = plan_of({0: 0.75, 1: 0.25}, cuts=(), micro_batches=1)
    alone = train_alone(plan, "batchnorm", (8,))
    # The stem sees the same numbers however rows are divided; what follows is normalised by part.
    expected = alone["state"]["stem.1.running_mean"]
    for result in pool.run(train_stage, 2, plan, "batchnorm", (8,)):
        found = result["state"]["stem.1.running_mean"]
        assert float((found - expected).abs().max()) < 1e-6
        assert float(expected.abs().max()) > 1e-3


def test_all_forwards_first_gives_the_same(pool: Pool) -> None:
    stages = LAYOUTS["1-1-1"]
    plan = plan_of(*stages, cuts=MODELS["tiny"][2], micro_batches=4)
    for stage in plan["pipelines"][0]["stages"]:
        stage["in_flight"] = 4
    alone = train_alone(plan, "tiny", (8, 8))
    for result in pool.run(train_stage, 3, plan, "tiny", (8, 8)):
        assert largest_difference(result["state"], alone["state"]) < TOLERANCE


def test_no_gradient_goes_to_a_stage_that_is_frozen(pool: Pool) -> None:
    plan = plan_of(*LAYOUTS["1-1"], cuts=MODELS["frozen"][2], micro_batches=2)
    first, second = pool.run(train_stage, 2, plan, "frozen", (4,))
    assert (first["sent"][1], second["sent"].get(0, 0)) == (2, 0)  # two activations, no gradient


@pytest.mark.parametrize("model", ["checkpointed", "checkpointed-reentrant", "mixed"])
def test_recomputed_activations_and_rows_mixed_before_the_model(pool: Pool, model: str) -> None:
    plans = [plan_of(*LAYOUTS[x], cuts=MODELS[model][2], micro_batches=3) for x in ("1", "1-1-1")]
    one = pool.run(train_stage, 1, plans[0], model, (6, 5))[0]
    for result in pool.run(train_stage, 3, plans[1], model, (6, 5)):
        assert result["losses"] == pytest.approx(one["losses"], rel=TOLERANCE)
        assert largest_difference(result["state"], one["state"]) < TOLERANCE
        for found, expected in zip(result["gradients"], one["gradients"], strict=True):
            held = {name: expected[name] for name in found}
            assert largest_difference(found, held) < 2e-5


def test_rows_mixed_before_the_model_need_equal_rows(pool: Pool) -> None:
    plan = plan_of(*LAYOUTS["2-1"], cuts=MODELS["mixed"][2], micro_batches=2)
    with pytest.raises(WorkerError, match="random numbers are drawn in the step itself"):
        pool.run(train_stage, 3, plan, "mixed", (4,))


@pytest.mark.parametrize(
    "model", ["tiny-dropout", "gpt2-dropout", pytest.param("bert-dropout", marks=pytest.mark.slow)]
)
def test_dropout_masks_do_not_depend_on_the_cut(pool: Pool, model: str) -> None:
    states, losses = [], []
    for layout in ("1", "1-1", "1-1-1"):
        stages = LAYOUTS[layout]
        plan = plan_of(*stages, cuts=MODELS[model][2], micro_batches=3)
        result = pool.run(train_stage, len(stages), plan, model, (6, 6))[0]
        states.append(result["state"])
        losses.append(result["losses"])
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE)
    assert losses[2] == pytest.approx(losses[0], rel=TOLERANCE)
    assert largest_difference(states[1], states[0]) < TOLERANCE
    assert largest_difference(states[2], states[0]) < TOLERANCE
    without = train_alone(
        plan_of({0: 1.0}, cuts=(), micro_batches=3), model.removesuffix("-dropout"), (6, 6)
    )
    assert losses[0][0] != pytest.approx(without["losses"][0], rel=1e-5)

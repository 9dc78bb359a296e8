"""Fits through the real Trainer on real processes, number by number against one process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import MODELS
from tests.pool import Pool, WorkerError
from tests.train.stages import largest_difference
from tests.train.test_transparency import LAYOUTS, plan_of
from tests.trainers import alone, fit

TOLERANCE = 3e-6


def plan_for(layout: str, model: str, micro_batches: int) -> dict[str, Any]:
    first, second = MODELS[model][2]
    cuts = (f"net.{first}", f"net.{second}")
    return plan_of(*LAYOUTS[layout], cuts=cuts, micro_batches=micro_batches)


def ranks_of(layout: str) -> int:
    return max(rank for stage in LAYOUTS[layout] for rank in stage) + 1


def compare(
    pool: Pool,
    folder: Path,
    layout: str,
    options: dict[str, Any],
    micro_batches: int = 4,
    tolerance: float = TOLERANCE,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fit on all ranks and alone; hold losses, metrics, rates, weights and checkpoints equal."""
    plan = plan_for(layout, options["model"], micro_batches)
    with ThreadPoolExecutor(1) as thread:  # the ranks wait for each other most of the time
        ranks = thread.submit(
            pool.run, fit, ranks_of(layout), plan, options, str(folder / "many"), timeout=120
        )
        one = alone(options, folder / "alone")
        many = ranks.result()
    for result in many:
        assert result["losses"] == pytest.approx(one["losses"], rel=tolerance)
        assert result["metrics"] == pytest.approx(one["metrics"], rel=tolerance)
        assert result["rates"] == one["rates"]
        assert result["global_step"] == one["global_step"]
        assert largest_difference(result["state"], one["state"]) < tolerance
    hold_checkpoint(many[0]["checkpoint"], one["checkpoint"], tolerance)
    return one, many


def hold_checkpoint(found: str, expected: str, tolerance: float) -> None:
    """An ordinary single-device file: same keys, same weights, same optimizer state."""
    mine, theirs = (torch.load(path, weights_only=True) for path in (found, expected))
    assert mine.keys() == theirs.keys()
    assert list(mine["state_dict"]) == list(theirs["state_dict"])
    assert largest_difference(mine["state_dict"], theirs["state_dict"]) < tolerance
    for own, other in zip(mine["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert list(own["state"]) == list(other["state"])
        assert own["param_groups"] == other["param_groups"]
        for index, entry in other["state"].items():
            assert own["state"][index].keys() == entry.keys()
            for key, value in entry.items():
                torch.testing.assert_close(own["state"][index][key], value, rtol=1e-4, atol=1e-7)
    assert mine["loops"] == theirs["loops"]


@pytest.mark.parametrize("layout", ["1", "2 data uneven", "1-1-1", "2-1", "1-2", "idle"])
def test_fit_equals_one_process(pool: Pool, tmp_path: Path, layout: str) -> None:
    compare(pool, tmp_path, layout, {"model": "tiny", "shuffle": True})


@pytest.mark.parametrize("layout", ["2 data uneven", "2-1"])
def test_accumulation_clipping_and_a_schedule_per_step(
    pool: Pool, tmp_path: Path, layout: str
) -> None:
    options = {"model": "tiny", "accumulate": 2, "clip": 0.05, "scheduler": "cosine"}
    one, many = compare(pool, tmp_path, layout, options)
    assert len(set(one["rates"])) > 1
    held = many[0]["gradients"][0]
    expected = {name: value for name, value in one["gradients"][0].items() if name in held}
    assert largest_difference(held, expected) < 2e-5


def test_a_metric_lowers_the_rate_on_every_rank(pool: Pool, tmp_path: Path) -> None:
    options = {"model": "tiny", "scheduler": "plateau", "epochs": 4, "sgd": True}
    compare(pool, tmp_path, "1-1", options)


def test_losses_weighted_by_tokens(pool: Pool, tmp_path: Path) -> None:
    """The whole batch's token mean, though micro-batches and devices have unlike token counts."""
    options = {"model": "padded", "weighted": True, "accumulate": 2, "epochs": 1}
    compare(pool, tmp_path, "2-1", options)


def test_without_weights_the_same_batches_differ(pool: Pool, tmp_path: Path) -> None:
    options = {"model": "padded", "epochs": 1}
    one = alone(options, tmp_path / "alone")
    plan = plan_for("1-1", "padded", 4)
    many = pool.run(fit, 2, plan, options, str(tmp_path / "many"))
    assert many[0]["losses"] != pytest.approx(one["losses"], rel=1e-4)


def test_test_and_predict_after_fit(pool: Pool, tmp_path: Path) -> None:
    one, many = compare(pool, tmp_path, "1-2", {"model": "tiny", "then": True})
    for result in many:
        assert result["tested"][0] == pytest.approx(one["tested"][0], rel=TOLERANCE)
        for found, expected in zip(result["predicted"], one["predicted"], strict=True):
            torch.testing.assert_close(found.mean(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["1-1", pytest.param("2-1", marks=pytest.mark.slow)])
def test_every_device_with_its_own_data(pool: Pool, tmp_path: Path, layout: str) -> None:
    options = {"model": "tiny-dropout", "shuffle": True, "strategy": {"data": "every"}}
    plan = plan_for(layout, "tiny-dropout", 4)
    every = pool.run(fit, ranks_of(layout), plan, options, str(tmp_path / "every"))
    owner = pool.run(
        fit, ranks_of(layout), plan, {**options, "strategy": {}}, str(tmp_path / "owner")
    )
    assert every[0]["losses"] == pytest.approx(owner[0]["losses"], rel=1e-6)
    assert largest_difference(every[0]["state"], owner[0]["state"]) < 1e-6


def test_bf16_mixed_trains_about_as_one_process(pool: Pool, tmp_path: Path) -> None:
    options = {"model": "tiny", "precision": "bf16-mixed", "sgd": True}
    one = alone(options, tmp_path / "alone")
    plan = plan_for("1-1", "tiny", 4)
    many = pool.run(fit, 2, plan, options, str(tmp_path / "many"))
    assert many[0]["losses"] == pytest.approx(one["losses"], rel=2e-3)
    assert many[0]["losses"] == many[1]["losses"]


def test_resume_goes_on_as_if_uninterrupted_in_any_layout(pool: Pool, tmp_path: Path) -> None:
    options = {"model": "tiny", "shuffle": False, "scheduler": "cosine"}
    whole = alone({**options, "epochs": 4}, tmp_path / "whole")
    half = pool.run(
        fit, 3, plan_for("1-1-1", "tiny", 4), options, str(tmp_path / "half"), timeout=120
    )
    kept = half[0]["checkpoint"]
    for layout in ("1-1", "2-1"):
        again = {**options, "epochs": 4, "resume": kept}
        plan = plan_for(layout, "tiny", 4)
        folder = str(tmp_path / layout)
        for result in pool.run(fit, ranks_of(layout), plan, again, folder, timeout=120):
            assert largest_difference(result["state"], whole["state"]) < 5e-6
            assert result["global_step"] == whole["global_step"]
    plain = alone({**options, "epochs": 4, "resume": kept}, tmp_path / "plain")
    assert largest_difference(plain["state"], whole["state"]) < 5e-6


def test_an_exception_on_one_rank_names_it_on_all(pool: Pool, tmp_path: Path) -> None:
    options = {"model": "tiny", "fail_at": (1, 1)}
    with pytest.raises(WorkerError) as caught:
        pool.run(fit, 3, plan_for("1-1-1", "tiny", 4), options, str(tmp_path))
    text = str(caught.value)
    assert text.count("the step fails on purpose") >= 3
    assert "rank 1" in text


def test_different_plans_are_refused_with_the_difference(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="micro_batches"):
        pool.run(_unlike_plans, 2, str(tmp_path))


def _unlike_plans(rank: int, world_size: int, folder: str) -> Any:
    return fit(rank, world_size, plan_for("1-1", "tiny", 4 + rank), {"model": "tiny"}, folder)

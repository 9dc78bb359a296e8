"""A model that no device has as a whole: built, trained, saved, resumed, validated, read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.large import run
from tests.families.test_replay import layouts_of
from tests.families.zoo import FAMILIES, llama
from tests.pool import Pool
from tests.train.stages import largest_difference
from tests.train.test_transparency import LAYOUTS, plan_of

TOLERANCE = 2e-6
slow = pytest.mark.slow
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]


def plan_for(model: str, layout: str) -> dict[str, Any]:
    cuts = tuple(f"net.{cut}" for cut in FAMILIES[model][2])
    return plan_of(*LAYOUTS[layout], cuts=cuts, micro_batches=1)


def compare(
    results: list[dict[str, Any]], alone: dict[str, Any], tolerance: float = TOLERANCE
) -> None:
    for result in results:
        assert result["losses"] == pytest.approx(alone["losses"], rel=tolerance)
        assert result["val_loss"] == pytest.approx(alone["val_loss"], rel=tolerance)
        assert result["again"] == pytest.approx(alone["val_loss"], rel=tolerance)
        assert result["held"] < result["all"]
        held = {name: alone["state"][name] for name in result["state"]}
        assert largest_difference(result["state"], held) < tolerance


CASES = [
    pytest.param(
        family,
        layout,
        id=f"{family}-{layout}",
        marks=() if (family, layout) == ("gpt2", "1-1-1") else slow,
    )
    for family in FAMILIES
    for layout in layouts_of(family)
]


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_a_model_nobody_has_whole_trains_like_one_process(
    pool: Pool, tmp_path: Path, model: str, layout: str
) -> None:
    options = {"model": model, "sgd": (model, layout) != ("gpt2", "1-1-1")}
    # CLIP multiplies rounding by its temperature of e^1.86
    tolerance = 4e-6 if model == "clip" else TOLERANCE
    alone = run(0, 1, "alone", options, str(tmp_path / "alone"))
    plan = plan_for(model, layout)
    results = pool.run(run, 3, plan, options, str(tmp_path / "parts"))
    compare(results, alone, tolerance)
    found = torch.load(results[0]["checkpoint"], weights_only=True)
    expected = torch.load(alone["checkpoint"], weights_only=True)
    assert list(found["state_dict"]) == list(expected["state_dict"])
    assert largest_difference(found["state_dict"], expected["state_dict"]) < tolerance
    for index, entry in expected["optimizer_states"][0]["state"].items():
        assert largest_difference(found["optimizer_states"][0]["state"][index], entry) < 2e-5


@pytest.mark.parametrize(
    ("only_rank_0_has_it", "small"),
    [
        (True, 100),  # vectors are real everywhere, matrices where they are held
        pytest.param(True, 0, marks=slow),
        pytest.param(False, 100, marks=slow),
        pytest.param(False, 0, marks=slow),
    ],
)
def test_it_resumes_from_a_file(
    pool: Pool, tmp_path: Path, only_rank_0_has_it: bool, small: int
) -> None:
    whole = run(0, 1, "alone", {"model": "gpt2", "epochs": 3}, str(tmp_path / "alone"))
    plan = plan_for("gpt2", "1-1-1")
    first = pool.run(run, 3, plan, {"model": "gpt2"}, str(tmp_path / "first"))
    options = {
        "model": "gpt2",
        "epochs": 3,
        "resume": first[0]["checkpoint"],
        "only_rank_0_has_it": only_rank_0_has_it,
        "small": small,
    }
    second = pool.run(run, 2, plan_for("gpt2", "1-1"), options, str(tmp_path / "second"))
    for result in second:
        assert result["losses"] == pytest.approx(whole["losses"][4:], rel=TOLERANCE)
        assert result["val_loss"] == pytest.approx(whole["val_loss"], rel=TOLERANCE)


def test_what_was_made_outside_configure_model_is_rank_0_s(pool: Pool, tmp_path: Path) -> None:
    options = {"model": "mlp", "own": True, "sgd": True}
    alone = run(0, 1, "alone", options, str(tmp_path / "alone"))
    compare(pool.run(run, 2, plan_for("mlp", "1-1"), options, str(tmp_path / "parts")), alone)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("auto", marks=pytest.mark.slow)])
def test_it_is_read_from_a_directory_of_safetensors(pool: Pool, tmp_path: Path, dtype: str) -> None:
    torch.manual_seed(11)
    saved = llama().to(torch.float32 if dtype == "auto" else torch.bfloat16)
    saved.save_pretrained(tmp_path / "weights", max_shard_size="20KB")
    assert len(list((tmp_path / "weights").glob("*.safetensors"))) > 1
    options = {"model": "llama", "pretrained": str(tmp_path / "weights"), "dtype": dtype}
    alone = run(0, 1, "alone", options, str(tmp_path / "alone"))
    plan = plan_for("llama", "1-1-1")
    compare(pool.run(run, 3, plan, options, str(tmp_path / "parts")), alone)


def test_a_checkpoint_of_another_model_is_named(pool: Pool, tmp_path: Path) -> None:
    run(0, 1, "alone", {"model": "mlp", "epochs": 1}, str(tmp_path))
    options = {"model": "gpt2", "resume": str(tmp_path / "kept.ckpt")}
    with pytest.raises(Exception, match="net.model.transformer.wte.weight is missing in it"):
        pool.run(run, 2, plan_for("gpt2", "1-1"), options, str(tmp_path / "parts"))


@pytest.mark.slow
def test_what_is_logged_in_front_of_a_cut_is_logged(pool: Pool, tmp_path: Path) -> None:
    options = {"model": "residuals", "sgd": True, "early": True}
    alone = run(0, 1, "alone", options, str(tmp_path / "alone"))
    assert alone["early"] > 0
    for result in pool.run(run, 3, plan_for("residuals", "1-1-1"), options, str(tmp_path / "cut")):
        assert result["early"] == pytest.approx(alone["early"], rel=1e-6)

"""`plan="auto"`: one plan on all ranks from a profile, and training as one process does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_edge.errors import PlanError, ProfileError
from lightning_edge.loop.options import Options
from lightning_edge.plan.profile import Profile
from tests.loop.test_trainer import hold_checkpoint
from tests.pool import Pool, WorkerError
from tests.train.stages import largest_difference
from tests.trainers import alone, fit

pytestmark = pytest.mark.thorough

TOLERANCE = 3e-6
TINY = {"model": "tiny", "shuffle": True}


def profile(speeds: list[float], starts: list[str], mbit: float = 1000.0) -> dict[str, Any]:
    """A profile by hand: equal blocks, devices d0, d1, ... of these speeds."""
    block = {
        "timings": {"any": {"rows": [1, 8], "forward_s": [0.01, 0.08], "backward_s": [0.02, 0.16]}},
        "parameter_bytes": 10_000,
        "activation_bytes": 1000,
    }
    return {
        "devices": [
            {"name": f"d{i}", "timing": "any", "modes": {"on": {"speed": speed}}}
            for i, speed in enumerate(speeds)
        ],
        "model": {
            "blocks": [
                {"name": "(start)", **block},
                *({"name": start, **block, "forward_bytes": 500} for start in starts),
            ]
        },
        "links": [{"between": "all", "mbit_per_s": mbit, "latency_s": 1e-4}],
    }


def fit_named(
    rank: int, world_size: int, plan: Any, options: dict[str, Any], folder: str
) -> dict[str, Any]:
    os.environ["LIGHTNING_EDGE_DEVICE"] = f"d{rank}"
    import lightning_edge

    strategies = []
    original = lightning_edge.EdgeCollabStrategy.on_train_end

    def watched(self: Any) -> None:
        original(self)
        strategies.append(
            (self.plan, self.profile, str(self.report()), self.report().to_dict(), self)
        )

    lightning_edge.EdgeCollabStrategy.on_train_end = watched  # type: ignore[method-assign]
    try:
        result = fit(rank, world_size, plan, options, folder)
    finally:
        lightning_edge.EdgeCollabStrategy.on_train_end = original  # type: ignore[method-assign]
    plan, found, text, report, strategy = strategies[0]
    assert strategy.plan == plan  # also when the run is over
    return {**result, "plan": plan.to_json(), "profile": found, "table": text, "report": report}


STARTS = [f"net.blocks.{i}" for i in range(6)]


def hold_equal(pool: Pool, folder: Path, settings: dict[str, Any], ranks: int) -> list[Any]:
    options = {**TINY, "strategy": settings}
    one = alone(TINY, folder / "alone")
    cache = {"LIGHTNING_EDGE_CACHE": str(folder / "cache")}
    many = pool.run(fit_named, ranks, "auto", options, str(folder / "many"), timeout=120, env=cache)
    for result in many:
        assert result["losses"] == pytest.approx(one["losses"], rel=TOLERANCE)
        assert result["metrics"] == pytest.approx(one["metrics"], rel=TOLERANCE)
        assert largest_difference(result["state"], one["state"]) < TOLERANCE
        assert result["plan"] == many[0]["plan"]
    hold_checkpoint(many[0]["checkpoint"], one["checkpoint"], TOLERANCE)
    return many


@pytest.mark.parametrize(
    ("speeds", "settings", "expected"),
    [
        # a pipeline whose first device is three times as fast
        ([3.0, 1.0], {"micro_batches": 4, "split_points": ["net.blocks.4"]}, "pipeline"),
        # shares of rows by speed
        ([3.0, 1.0], {"groups": {"all": {"devices": [0, 1], "parallelism": "data"}}}, "data"),
        # the slow third device is not worth its messages
        ([4.0, 3.0, 0.01], {}, "subset"),
    ],
)
def test_training_equals_one_process_on_the_plan_of_a_profile_by_hand(
    pool: Pool, tmp_path: Path, speeds: list[float], settings: dict[str, Any], expected: str
) -> None:
    given = {"profile": profile(speeds, STARTS), **settings}
    many = hold_equal(pool, tmp_path, given, len(speeds))
    plan = lightning_plan(many[0]["plan"])
    if expected == "pipeline":
        assert [stage.start for stage in plan.stages] == [None, "net.blocks.4"]
        assert list(plan.stages[0].devices) == [0]
    elif expected == "data":
        (stage,) = plan.stages
        assert stage.devices[0] > 2 * stage.devices[1] > 0
    else:
        assert plan.stage_of(2) is None
        assert {plan.stage_of(0), plan.stage_of(1)} == {0, 1} or len(plan.stages) == 1
    assert many[0]["profile"] == Profile.from_mapping(given["profile"])
    assert many[0]["report"]["predicted"]["step_s"] > 0


def lightning_plan(text: str) -> Any:
    from lightning_edge.plan.plan import Plan

    return Plan.from_json(text)


def test_what_is_measured_is_stored_and_used_again(pool: Pool, tmp_path: Path) -> None:
    first = hold_equal(pool, tmp_path, {}, 2)
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 1
    measured = Profile.from_json(files[0].read_text())
    assert measured == first[0]["profile"] == first[1]["profile"]
    assert measured.names == ("d0", "d1")
    assert not measured.missing()
    assert measured.model.cuts == tuple(STARTS[1:]) or measured.model.cuts == tuple(STARTS)
    assert len(measured.links) == 2
    # memory is what is free now, whatever was free when the profile was stored
    full = tuple(replace(device, memory_bytes=1000) for device in measured.devices)
    files[0].write_text(replace(measured, devices=full).to_json())
    written = files[0].stat().st_mtime_ns
    second = hold_equal(pool, tmp_path, {}, 2)
    assert files[0].stat().st_mtime_ns == written
    assert second[0]["plan"] == first[0]["plan"]


def test_a_foreign_profile_is_refused_on_all_ranks(pool: Pool, tmp_path: Path) -> None:
    given = profile([1.0, 1.0], ["net.blocks.2", "net.tail"])
    options = {**TINY, "strategy": {"profile": given}}
    with pytest.raises(WorkerError, match=r"net\.tail cannot begin a stage of this model"):
        pool.run(fit_named, 2, "auto", options, str(tmp_path))


def settings(**given: Any) -> Options:
    usual: dict[str, Any] = {
        "plan": "auto",
        "groups": None,
        "across": "auto",
        "objective": "time",
        "micro_batches": "auto",
        "split_points": "auto",
        "profile": "auto",
        "data": "owner",
        "eval_micro_batches": 1,
        "replan": None,
        "wire_dtype": None,
        "power_modes": "keep",
    }
    from datetime import timedelta

    return Options.checked(**{**usual, "timeout": timedelta(seconds=5), **given})


def test_settings_that_mean_nothing_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        settings(objective={"minimize": "tears"}, profile=3, replan=True)
    assert len(caught.value.problems) == 3
    with pytest.raises(ProfileError, match="cannot be read"):
        settings(profile=str(tmp_path / "none.yaml"))


def test_a_profile_is_read_from_a_file_or_a_mapping(tmp_path: Path) -> None:
    given = Profile.from_mapping(profile([1.0, 2.0], STARTS))
    given.to_yaml(tmp_path / "profile.yaml")
    for form in (given, given.to_mapping(), tmp_path / "profile.yaml"):
        assert settings(profile=form).profile == given
    assert settings().replan == 0.1
    assert settings(replan=False).replan == 0
    assert replace(settings(), profile="measure").profile == "measure"


def profiled(rank: int, world_size: int, folder: str) -> tuple[Any, ...]:
    """A plan of the user's, profiled by an EdgeProfiler, on devices as this machine has them."""
    import lightning as L

    import lightning_edge
    from tests.trainers import Module, loaders

    os.environ["LIGHTNING_EDGE_DEVICE"] = f"d{rank}"
    plan = {
        "pipelines": [{"stages": [{"devices": [0]}, {"start": "net.blocks.2", "devices": [1]}]}],
        "micro_batches": 2,
    }
    given = Profile.from_mapping(profile([1.0, 1.0], STARTS))
    strategy = lightning_edge.EdgeCollabStrategy(plan, profile=given)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=strategy,
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lightning_edge.EdgeProfiler(path=f"{folder}/profile.yaml", cache=folder)],
    )
    trainer.fit(Module({"model": "tiny"}), loaders({"model": "tiny"})[0])
    report = strategy.report()
    strategy.disconnect()
    return str(report), report.to_dict(), report.compared()


def test_an_edge_profiler_predicts_a_plan_of_ones_own_and_refines_the_profile(
    pool: Pool, tmp_path: Path
) -> None:
    (text, plain, lines), _ = pool.run(profiled, 2, str(tmp_path))
    assert "One step, predicted and measured" in text
    by_name = {(line.device, line.what): line for line in lines}
    sent = by_name["0 d0", "sent"]
    assert sent.predicted is not None
    assert sent.measured is not None
    assert sent.measured > 0
    step = by_name[None, "step"]
    assert step.predicted == plain["predicted"]["step_s"] > 0
    assert step.measured is not None
    assert step.measured > 0
    assert len(plain["compared"]) == len(lines) == 2 + 2 * 6
    better = Profile.from_yaml(tmp_path / "profile.yaml")
    # nothing on this machine takes the 30 ms a row that the profile says
    assert better.model.blocks[1].timings["any"].forward_s[1] < 0.08
    assert better.devices[0].provenance_of("step_s") == "measured"

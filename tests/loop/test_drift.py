"""What is said at an epoch's end when devices are not as fast as they were profiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from lightning_edge.loop import drift as drifting
from lightning_edge.loop.drift import Drift
from lightning_edge.loop.options import Options
from lightning_edge.loop.planning import Decision
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.search import search
from lightning_edge.plan.simulate import simulate
from lightning_edge.report import Measured
from lightning_edge.train.transport import Transport
from tests.plan.profiles import simple

ROWS = 8
NAMES = ("d0", "d1")


def options(**given: Any) -> Options:
    usual = {
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
        "timeout": timedelta(seconds=5),
    }
    return Options.checked(**{**usual, **given})


def profile() -> Profile:
    """Two equal devices, each with timings of its own; four blocks of 10 ms a row, Gigabit."""
    found = simple([1.0, 1.0], mbit=1000.0)
    devices = tuple(replace(device, timing=device.name) for device in found.devices)
    blocks = tuple(
        replace(block, timings=dict.fromkeys(NAMES, block.timings["any"]))
        for block in found.model.blocks
    )
    return replace(found, devices=devices, model=replace(found.model, blocks=blocks))


class Ranks:
    """Rank 0's transport in a run whose other ranks do as they are told."""

    rank, world_size = 0, 2

    def __init__(self, others: Mapping[int, float]) -> None:
        self.others = others

    def all_gather(self, own: list[Any]) -> list[list[Any]]:
        return [own, *([compute_s, 0.0, None] for compute_s in self.others.values())]


def run(
    monkeypatch: pytest.MonkeyPatch,
    slower: Mapping[int, list[float]],
    warm_up: float = 0.0,
    **given: Any,
) -> tuple[list[str], Decision]:
    """Train some epochs, in each of which devices are so many times slower than profiled."""
    said: list[str] = []
    monkeypatch.setattr(drifting, "rank_zero_info", said.append)
    known = profile()
    plan = given.get("plan") or search(known, rows=ROWS).plan
    prediction = simulate(plan, known, rows=ROWS)
    decision = Decision(plan, "", known, prediction)
    expected = [prediction.devices[rank].compute_s for rank in (0, 1)]
    ranks, measured = Ranks({}), Measured()
    watching = Drift(decision, cast(Transport, ranks), NAMES, options(**given), ROWS, 0)
    if warm_up:
        for _ in range(2):
            watching.begin(measured)
            measured.batches += 1
            measured.compute_s += warm_up * expected[0]
            measured.total_s += warm_up * expected[0]
        watching.begin(measured)
    for epoch in range(len(slower[0])):
        step_s = [expected[rank] * slower[rank][epoch] for rank in (0, 1)]
        ranks.others = {1: step_s[1]}
        measured.batches += 10
        measured.compute_s += 10 * step_s[0]
        measured.total_s += 10 * step_s[0]
        watching.look(measured, step_s[0])
    return said, decision


def test_a_better_plan_is_told_of_when_a_device_has_become_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, decision = run(monkeypatch, {0: [1.0], 1: [3.0]})
    known, plan = decision.profile, decision.plan
    assert known is not None
    assert plan.stage_of(0) is not None
    assert plan.stage_of(1) is not None
    slow, better = said
    assert slow.startswith("edge_collab: d1 is 200 % slower than profiled")
    # by how much, from a profile that says so from the start
    timings = [
        {
            "d0": block.timings["d0"],
            "d1": replace(
                block.timings["d1"],
                forward_s=tuple(3 * s for s in block.timings["d1"].forward_s),
                backward_s=tuple(3 * s for s in block.timings["d1"].backward_s),
            ),
        }
        for block in known.model.blocks
    ]
    blocks = tuple(replace(b, timings=t) for b, t in zip(known.model.blocks, timings, strict=True))
    now = replace(known, model=replace(known.model, blocks=blocks))
    choice = search(now, rows=ROWS)
    gain = 1 - choice.prediction.step_s / simulate(plan, now, rows=ROWS).step_s
    assert gain > 0.3
    assert better.startswith(
        f"edge_collab: another plan would now be {100 * gain:.0f} % better (time): "
    )
    assert f"{choice.plan.micro_batches} micro-batches" in better


def test_it_is_told_once_and_only_of_the_epoch_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = run(monkeypatch, {0: [1.0] * 5, 1: [1.0, 1.02, 3.0, 3.0, 3.0]})
    assert len(said) == 2  # from the third epoch on, not diluted by those before
    assert "200 % slower" in said[0]
    assert "another plan" in said[1]


def test_the_first_steps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = run(monkeypatch, {0: [1.0], 1: [1.0]}, warm_up=10.0)
    assert said == []


def test_nothing_is_told_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    both, _ = run(monkeypatch, {0: [1.1], 1: [1.1]})
    assert both == []  # all are as much slower: the plan is still the best one
    never, _ = run(monkeypatch, {0: [1.0], 1: [3.0]}, replan=False)
    assert [text for text in never if "another plan" in text] == []
    wide, _ = run(monkeypatch, {0: [1.0], 1: [3.0]}, replan=0.9)
    assert [text for text in wide if "another plan" in text] == []
    mine = Plan.from_mapping(
        {"pipelines": [{"stages": [{"devices": [0]}, {"start": "b2", "devices": [1]}]}],
         "micro_batches": 4}
    ).resolve(NAMES, ["b1", "b2", "b3"])  # fmt: skip
    own, _ = run(monkeypatch, {0: [1.0], 1: [3.0]}, plan=mine)
    assert [text for text in own if "another plan" in text] == []
    assert any("200 % slower" in text for text in own)

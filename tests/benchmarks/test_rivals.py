from __future__ import annotations

import pytest

from benchmarks.pools import convnet, gpt, pool, speeds
from benchmarks.rivals import RIVALS, asteroid, best_single, equal_data, pipedream
from lightning_edge.plan.profile import Model
from lightning_edge.plan.search import search
from lightning_edge.plan.simulate import simulate


@pytest.mark.parametrize("mbit", [10, 1000])
@pytest.mark.parametrize("model", [gpt(4), convnet(6)], ids=lambda model: model.name)
def test_rivals_make_plans_that_run_and_are_not_better(model: Model, mbit: float):
    profile = pool(model, speeds(3, 3), mbit, saving_mode=False)
    ours = search(profile, rows=12, budget=30_000).prediction
    for name, rival in RIVALS.items():
        plan = rival(profile, 12)
        assert plan is not None, name
        assert ours.step_s <= simulate(plan, profile, rows=12).step_s * 1.03, name


def test_rivals_do_what_their_names_say():
    profile = pool(gpt(4), [1, 3, 1], 1000)
    single = best_single(profile, 12)
    assert single is not None
    assert dict(single.stages[0].devices) == {1: 1.0}
    equal = equal_data(profile, 12)
    assert equal is not None
    assert len(set(equal.stages[0].devices.values())) == 1
    alike = pipedream(pool(gpt(4), [1, 1], 10), 16)
    assert alike is not None
    assert len(alike.stages) == 2
    everybody = asteroid(profile, 16)
    assert everybody is not None
    assert {rank for stage in everybody.stages for rank in stage.devices} == {0, 1, 2}


def test_too_little_memory_leaves_no_single_device():
    assert best_single(pool(gpt(4), [1, 1], 100, memory_bytes=20 << 20), 8) is None

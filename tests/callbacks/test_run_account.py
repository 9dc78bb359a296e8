"""The account of one rank, on a clock that the test turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_edge.callbacks.run_account import RunAccount
from lightning_edge.energy import EnergyMeter, HostEnv
from lightning_edge.energy.pool import alone
from tests.energy.fakes import FakeSource, domain
from tests.energy.trees import Clock

POWERS_W = {"compute": 30.0, "data": 4.0, "evaluation": 12.0}


def test_phases_add_up_to_the_account_of_training(tmp_path: Path) -> None:
    """Training, a validation run in between, and training again::

    train     compute data compute data ...   |            | compute data ...
    validate                                   | evaluation |
    """
    clock = Clock()
    host = HostEnv(sysroot=tmp_path, environ={}, clock=clock)
    spent = {"board": 0.0}
    source = FakeSource(clock, [domain("board")], lambda: spent)
    meter = EnergyMeter([source], host=host, background=False)

    def spend(phase: str, seconds: float) -> None:
        meter.phases.enter(phase)
        for _ in range(round(seconds / 0.01)):
            clock.pass_s(0.01)
            spent["board"] += 0.01 * POWERS_W[phase]
            meter.read()

    def train(steps: int) -> None:
        for step in range(steps):
            spend("compute", 0.2 + 0.05 * (step % 4))
            spend("data", 0.2 + 0.05 * (step % 3))

    with meter:
        run = RunAccount(meter, 0, {})
        run.open("train")
        train(20)
        run.close("train")
        run.open("validate")
        spend("evaluation", 5.0)
        run.close("validate")
        run.open("train")
        train(20)
        pool = run.collect("train", alone, final=True)
    (account,) = pool.accounts
    assert account.phase_j is not None
    assert set(account.phase_j) == {"compute", "data"}
    assert sum(account.phase_j.values()) == pytest.approx(account.report.energy_j)
    assert sum(account.phase_s.values()) == pytest.approx(account.report.duration_s)
    for phase, joules in account.phase_j.items():
        assert joules == pytest.approx(POWERS_W[phase] * account.phase_s[phase], rel=0.02)
    metrics = run.metrics("train", pool, None)
    told = {name: value for name, value in metrics.items() if "/phase/" in name}
    assert told == {f"train/phase/{name}_j": joules for name, joules in account.phase_j.items()}

"""What is made of accounts: budgets, forecast, files, table, picture."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest

from lightning_edge.energy import Provenance, Scope
from lightning_edge.energy.budget import EnergyBudget, carbon_g
from lightning_edge.energy.export import write_csv, write_json
from lightning_edge.energy.forecast import forecast
from lightning_edge.energy.picture import draw, save
from lightning_edge.energy.pool import PoolReport, RankAccount, combine
from lightning_edge.energy.report import EnergyReport
from lightning_edge.energy.table import joules, summary
from lightning_edge.errors import EnergyError
from tests.energy.fakes import domain
from tests.energy.test_pool import GPU_X, MODEL, PACKAGE, account


def _pool() -> PoolReport:
    phases = {"compute": 450.0, "communication": 100.0, "waiting": 50.0}
    measured = dataclasses.replace(
        account(0, "A", {PACKAGE: 100.0, GPU_X: 500.0}, phase_j=phases),
        battery_pct=41.0,
        temperature_c=66.0,
        power_series=[(float(t), 60.0 + t) for t in range(10)],
        phase_series=[(5.0, {"compute": 4.0, "waiting": 1.0}), (10.0, {"communication": 5.0})],
    )
    estimated = account(1, "B", {MODEL: 30.0}, phase_j={"compute": 30.0})
    return combine([measured, estimated])


class TestBudget:
    @pytest.mark.parametrize(
        ("budget", "reason"),
        [
            (EnergyBudget(energy_j=630.0), r"energy budget of 630 J is spent \(630 J\)"),
            (EnergyBudget(energy_j=631.0), None),
            (EnergyBudget(carbon_g=0.05), r"carbon budget of 0\.05 g is spent \(0\.0525 g\)"),
            (EnergyBudget(carbon_g=0.06), None),
            (EnergyBudget(battery_pct=41.0), r"dev-A's battery is down to 41 % \(limit 41 %\)"),
            (EnergyBudget(battery_pct=40.0), None),
            (EnergyBudget(temperature_c=65.0), r"dev-A is 66 C hot \(limit 65 C\)"),
            (EnergyBudget(temperature_c=80.0), None),
        ],
    )
    def test_limits(self, budget: EnergyBudget, reason: str | None) -> None:
        found = budget.exceeded(_pool(), 300.0)
        if reason is None:
            assert found is None
        else:
            assert found is not None
            assert re.search(reason, found)

    def test_unknown_energy_stops_nothing(self) -> None:
        pool = combine([RankAccount(0, "a", "A", EnergyReport("train", 5.0, {}))])
        budget = EnergyBudget(energy_j=1.0, carbon_g=1.0, battery_pct=50.0, temperature_c=50.0)
        assert budget.exceeded(pool, 300.0) is None

    def test_all_wrong_limits_at_once(self) -> None:
        with pytest.raises(EnergyError, match=r"energy_j=0 must be above 0; battery_pct=-5 must"):
            EnergyBudget(energy_j=0, battery_pct=-5)

    def test_grams(self) -> None:
        assert carbon_g(3.6e6, 300.0) == pytest.approx(300.0)


class TestForecast:
    def test_extends_what_was_seen(self) -> None:
        found = forecast(100.0, 5.0, 60.0, 50, 500, carbon_g_per_kwh=360.0, budget_j=400.0)
        assert found is not None
        assert found.energy_j == pytest.approx(1000.0)
        assert found.uncertainty_j == pytest.approx(50.0)
        assert found.duration_s == pytest.approx(600.0)
        assert found.carbon_g == pytest.approx(0.1)
        assert found.budget_step == 200
        assert str(found) == (
            "about 1000 J +- 50 J (0.000278 kWh) in 0 h 10 min, 0.1 g CO2e; "
            "the energy budget will be spent at step 200"
        )

    def test_budget_that_lasts(self) -> None:
        found = forecast(100.0, 5.0, 60.0, 50, 500, budget_j=1e6)
        assert found is not None
        assert found.budget_step is None

    @pytest.mark.parametrize(("steps", "total"), [(0, 10.0), (5, float("inf")), (5, -1.0)])
    def test_endless_runs_have_none(self, steps: int, total: float) -> None:
        assert forecast(100.0, 5.0, 60.0, steps, total) is None

    def test_nothing_spent(self) -> None:
        assert forecast(0.0, 0.0, 60.0, 5, 10) is None


class TestFiles:
    def test_json(self, tmp_path: Path) -> None:
        path = tmp_path / "made" / "energy.json"
        write_json(path, {"train": _pool()}, {"carbon_g_per_kwh": 300.0, "step": 7})
        content = json.loads(path.read_text())
        assert content["format"] == 1
        assert content["step"] == 7
        train = content["stages"]["train"]
        assert train["energy_j"] == pytest.approx(630.0)
        assert train["measured_j"] == pytest.approx(600.0)
        assert train["joules_per_sample"] == pytest.approx(31.5)
        assert train["joules_per_token"] is None
        assert train["carbon_g"] == pytest.approx(0.0525)
        assert (train["devices_measured"], train["devices"]) == (1, 2)
        assert [rank["name"] for rank in train["ranks"]] == ["dev-A", "dev-B"]
        assert train["ranks"][0]["owned_domains"] == ["rapl:package-0", "gpu:GPU-x"]

    def test_unknown_is_null(self, tmp_path: Path) -> None:
        pool = combine([RankAccount(0, "a", "A", EnergyReport("train", 5.0, {}))])
        write_json(tmp_path / "e.json", {"train": pool}, {})
        train = json.loads((tmp_path / "e.json").read_text())["stages"]["train"]
        for key in ("energy_j", "measured_j", "estimated_j", "measured_fraction", "carbon_g"):
            assert train[key] is None

    def test_csv(self, tmp_path: Path) -> None:
        write_csv(tmp_path / "e.csv", {"train": _pool()})
        rows = list(csv.DictReader((tmp_path / "e.csv").open()))
        assert [(r["device"], r["domain"], r["provenance"], r["energy_j"]) for r in rows] == [
            ("dev-A", "rapl:package-0", "counter", "100.0"),
            ("dev-A", "gpu:GPU-x", "counter", "500.0"),
            ("dev-B", "model:cpu", "model", "30.0"),
        ]
        assert {row["counted"] for row in rows} == {"1"}


class TestTable:
    def test_says_what_is_measured_and_what_is_not(self) -> None:
        text = summary({"train": _pool()}, carbon_g_per_kwh=300.0)
        assert "630 J" in text
        assert "= 600 J measured + 30 J estimated; 1 of 2 devices measured" in text
        assert "ESTIMATE" in text
        assert "31.5 J per sample" in text
        assert "compute 480 J (76%)" in text
        assert max(len(line) for line in text.splitlines()) <= 110

    def test_phases_of_those_that_can_be_divided(self) -> None:
        phases = {"compute": 60.0, "waiting": 40.0}
        sure = account(0, "A", {PACKAGE: 100.0}, phase_j=phases)
        unsure = account(1, "B", {MODEL: 30.0})
        pool = combine(
            [
                dataclasses.replace(sure, phase_note="R 0.90, condition 3"),
                dataclasses.replace(unsure, phase_note="power does not follow the phases"),
            ]
        )
        text = summary({"train": pool})
        assert "phases of dev-A: compute 60 J (60%), waiting 40 J (40%)" in text
        assert "phases of dev-B: not separable: power does not follow the phases" in text

    def test_nothing_measured(self) -> None:
        pool = combine([RankAccount(0, "a", "A", EnergyReport("train", 5.0, {}))])
        text = summary({"train": pool})
        assert "not measured" in text
        assert "nothing was measured on any of 1 devices" in text
        assert "0 J" not in text

    def test_lower_bound_shared_silent_and_notes(self) -> None:
        report = account(0, "A", {PACKAGE: 100.0}, covered_s=5.0).report
        noted = dataclasses.replace(report, notes=("rapl was lost: gone",))
        pool = combine(
            [
                RankAccount(0, "a", "A", noted),
                account(1, "A", {PACKAGE: 90.0}, covered_s=4.0),
                account(2, "C", {PACKAGE: 10.0}),
            ],
            silent=[2],
        )
        text = summary({"train": pool}, width=140)
        assert "total at least 110 J" in text
        assert "the same machine" in text
        assert "last heard before it left" in text
        assert "note: rapl was lost: gone" in text

    @pytest.mark.parametrize(
        ("value", "sure", "text"),
        [
            (None, None, "not measured"),
            (0.0, 0.0, "0 J"),
            (12.345, 0.6, "12.35 J +- 5 %"),
            (4321.0, None, "4.321 kJ"),
            (9.9e6, 9.9e5, "9.9 MJ +- 10 %"),
        ],
    )
    def test_joules(self, value: float | None, sure: float | None, text: str) -> None:
        assert joules(value, sure) == text


class TestPicture:
    def test_power_and_bars(self, tmp_path: Path) -> None:
        figure = draw(_pool())
        power, other, bars = figure.axes
        assert list(power.lines[0].get_ydata()) == [60.0 + t for t in range(10)]
        assert power.get_title(loc="left") == "dev-A: measured (counter)"
        assert other.get_title(loc="left") == "dev-B: ESTIMATE"
        widths = [patch.get_width() for patch in bars.patches]
        assert widths == pytest.approx([450.0, 100.0, 50.0, 30.0])
        assert [bool(patch.get_hatch()) for patch in bars.patches] == [False, False, False, True]
        save(tmp_path / "made" / "energy.png", _pool())
        assert (tmp_path / "made" / "energy.png").read_bytes()[:4] == b"\x89PNG"

    def test_validation_runs_are_drawn_behind_training(self) -> None:
        validation = combine([account(0, "A", {PACKAGE: 20.0}), account(1, "B", {MODEL: 5.0})])
        *_, bars = draw(_pool(), validation).axes
        widths = [patch.get_width() for patch in bars.patches]
        assert widths == pytest.approx([450.0, 100.0, 50.0, 20.0, 30.0, 5.0])

    def test_unknown_is_said_and_not_drawn_as_zero(self) -> None:
        pool = combine([RankAccount(0, "a", "A", EnergyReport("train", 5.0, {}))])
        figure = draw(pool)
        assert [text.get_text() for text in figure.axes[1].texts] == [" not measured"]
        assert len(figure.axes[1].patches) == 0

    def test_what_another_rank_counts_is_said_and_every_row_is_seen(self) -> None:
        pool = combine([account(rank, "A", {PACKAGE: 100.0}) for rank in range(3)])
        bars = draw(pool).axes[-1]
        words = [" counted with dev-A-0"] * 2
        assert [text.get_text() for text in bars.texts] == words
        low, high = sorted(bars.get_ylim())
        assert low < 0 - 0.3
        assert high > 2 + 0.3


def test_by_provenance_and_power() -> None:
    report = account(0, "A", {PACKAGE: 100.0, GPU_X: 500.0}).report
    assert report.by_provenance == {Provenance.COUNTER: pytest.approx(600.0)}
    assert report.power_w == pytest.approx(60.0)
    # Two counters of one source err together: 5 % of the sum, and one update at each end.
    assert report.uncertainty_j == pytest.approx(600.0 * 0.05, rel=1e-3)
    assert domain("x", scope=Scope.RAIL).rel_uncertainty == 0.05

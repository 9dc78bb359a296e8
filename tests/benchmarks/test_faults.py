"""A sample of the injected faults: all devices know, soon, and name the right one."""

from __future__ import annotations

import pytest

from benchmarks import faults


def test_there_are_enough_and_all_differ() -> None:
    chosen = faults.cases()
    assert len(chosen) >= 300
    assert len(set(chosen)) == len(chosen)


def test_the_short_list_has_twenty_of_every_kind() -> None:
    chosen = faults.short()
    assert len(set(chosen)) == 20
    assert set(chosen) <= set(faults.cases())
    assert {case.fault for case in chosen} == set(faults.KINDS)
    assert {case.phase for case in chosen} == set(faults.PHASES)


def test_the_table_tells_what_passed() -> None:
    def outcome(fault: str, seconds: float | None, problem: str) -> faults.Outcome:
        return faults.Outcome(faults.Case(fault, "forward", 1, "3 share"), seconds, (), problem)

    text = faults.table(
        [outcome("kill", 1.0, ""), outcome("kill", 7.0, "late"), outcome("freeze", None, "hung")]
    )
    assert "| phase | kill | freeze |" in text
    assert "| forward | 1 of 2: 4.00 s (at most 7.00) | 0 of 1 |" in text


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.multiproc
@pytest.mark.timeout(400)
def test_a_sample_of_twenty() -> None:
    failed = [one for one in faults.run(faults.short(), limit_s=faults.BUSY_LIMIT_S) if one.problem]
    assert not failed, failed

"""A sample of the injected faults: all devices know, soon, and name the right one."""

from __future__ import annotations

import pytest

from benchmarks import faults


def test_there_are_enough_and_all_differ() -> None:
    chosen = faults.cases()
    assert len(chosen) >= 300
    assert len(set(chosen)) == len(chosen)


def test_the_table_tells_what_passed() -> None:
    def outcome(fault: str, seconds: float | None, problem: str) -> faults.Outcome:
        return faults.Outcome(faults.Case(fault, "forward", 1, "3 share"), seconds, (), problem)

    text = faults.table(
        [outcome("kill", 1.0, ""), outcome("kill", 7.0, "late"), outcome("freeze", None, "hung")]
    )
    assert "| phase | kill | freeze |" in text
    assert "| forward | 1 of 2: 4.00 s (at most 7.00) | 0 of 1 |" in text


@pytest.mark.slow
@pytest.mark.multiproc
@pytest.mark.timeout(400)
def test_a_sample_of_twenty() -> None:
    chosen = faults.cases()
    sample = [chosen[i * len(chosen) // 20 + i % 7] for i in range(20)]
    failed = [one for one in faults.run(sample) if one.problem]
    assert not failed, failed

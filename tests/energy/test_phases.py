from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.energy import phases
from lightning_edge.energy.phases import PHASES, PhaseMarks
from lightning_edge.errors import EnergyError
from tests.energy.trees import Clock


def test_the_picture_in_the_module() -> None:
    clock = Clock()
    start_s = clock()
    marks = PhaseMarks(clock)
    marks.enter("compute")
    clock.pass_s(2)
    marks.enter("communication")
    clock.pass_s(1)
    marks.enter("compute")
    clock.pass_s(3)
    assert marks.seconds(start_s, start_s + 6) == {"compute": 5.0, "communication": 1.0}
    assert marks.seconds(start_s + 1, start_s + 3) == {"compute": 1.0, "communication": 1.0}
    assert marks.seconds(start_s + 5, start_s + 8) == {"compute": 3.0}  # it goes on
    assert marks.seconds(start_s - 2, start_s + 1) == {"compute": 1.0, "other": 2.0}


def test_blocks_nest_and_errors_leave_them() -> None:
    clock = Clock()
    start_s = clock()
    marks = PhaseMarks(clock)
    with marks.phase("evaluation"):
        clock.pass_s(1)
        with suppress(KeyError), marks.phase("checkpoint"):
            clock.pass_s(2)
            raise KeyError
        assert marks.current == "evaluation"
        clock.pass_s(4)
    assert marks.current == "other"
    assert marks.seconds(start_s, clock()) == {"evaluation": 5.0, "checkpoint": 2.0}


def test_stretches_told_afterwards() -> None:
    """A step entered as compute, told instruction by instruction once it is over::

    entered    compute . . . . . . . . . . . . . . .|
    told               |wait 2|comm 1|      |wait 1|
    found      compute 1               1+1           2
    """
    clock = Clock()
    start_s = clock()
    marks = PhaseMarks(clock)
    marks.enter("compute")
    clock.pass_s(9)
    marks.insert(start_s + 1, start_s + 5, {"waiting": 2.0, "communication": 1.0})
    marks.insert(start_s + 6, start_s + 7, {"waiting": 1.0})
    marks.insert(start_s + 2, start_s + 6.5, {"communication": 9.0})  # known already
    marks.enter("data")
    assert marks.seconds(start_s, start_s + 9) == {
        "compute": pytest.approx(5.0), "communication": pytest.approx(1.0),
        "waiting": pytest.approx(3.0),
    }  # fmt: skip
    assert marks.seconds(start_s + 1, start_s + 3) == {"waiting": pytest.approx(2.0)}
    assert marks.seconds(start_s + 3, start_s + 4) == {"communication": pytest.approx(1.0)}
    assert marks.seconds(start_s + 4, start_s + 6) == {"compute": pytest.approx(2.0)}


def test_more_than_the_stretch_has_is_cut() -> None:
    clock = Clock()
    start_s = clock()
    marks = PhaseMarks(clock)
    clock.pass_s(1.0)
    marks.insert(start_s, start_s + 1, {"compute": 1.5, "waiting": 0.5})
    assert marks.seconds(start_s, clock()) == {"compute": pytest.approx(1.0)}


def test_unknown_phase() -> None:
    with pytest.raises(EnergyError, match="no phase 'compte'; phases are compute,"):
        PhaseMarks().enter("compte")


@given(
    st.lists(
        st.tuples(st.sampled_from(PHASES), st.floats(0.0, 5.0), st.floats(0.0, 3.0)), max_size=30
    ),
    st.lists(st.floats(990.0, 1200.0), min_size=3, max_size=3).map(sorted),
)
def test_seconds_are_those_of_the_window(
    steps: list[tuple[str, float, float]], times: list[float]
) -> None:
    clock = Clock()
    marks = PhaseMarks(clock)
    for phase, wait_s, waiting_s in steps:
        marks.enter(phase)
        clock.pass_s(wait_s)
        marks.insert(clock() - 0.5 * wait_s, clock(), {"waiting": waiting_s})
    table = marks.table()
    spent = np.diff(table(np.array(times)), axis=0)
    assert (spent >= -1e-9).all()
    assert spent.sum(axis=1) == pytest.approx(np.diff(times))


def test_old_marks_are_forgotten_and_their_seconds_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "MAX_MARKS", 10)
    clock = Clock()
    start_s = clock()
    marks = PhaseMarks(clock)
    for _ in range(50):
        marks.enter("compute")
        clock.pass_s(1)
        marks.enter("data")
        clock.pass_s(1)
    table = marks.table()
    assert len(table.times_s) <= 11
    late = clock() - 4
    assert marks.seconds(late, clock()) == {"compute": 2.0, "data": 2.0}
    assert marks.seconds(start_s, clock()) == {"compute": 50.0, "data": 50.0}  # and of all


def test_series_for_the_picture() -> None:
    clock = Clock()
    start_s = clock()
    marks = PhaseMarks(clock)
    marks.enter("compute")
    clock.pass_s(3)
    marks.enter("data")
    clock.pass_s(1)
    series = marks.table().series(start_s, clock(), bins=2)
    assert series == [(2.0, {"compute": 2.0}), (4.0, {"compute": 1.0, "data": 1.0})]

from __future__ import annotations

import pickle

import pytest

from lightning_edge import errors

EVERY = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", EVERY)
def test_one_except_clause_catches_every_error(kind: type[Exception]) -> None:
    with pytest.raises(errors.EdgeError, match="why"):
        raise kind("why")


@pytest.mark.parametrize("kind", EVERY)
def test_errors_travel_between_processes(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind("why")))
    assert (type(error), str(error)) == (kind, str(kind("why")))


def test_wrong_values_are_value_errors_and_lost_devices_are_runtime_errors() -> None:
    for kind in (errors.PlanError, errors.SplitError, errors.DataError, errors.ProfileError):
        assert issubclass(kind, ValueError)
    for kind in (errors.TransportTimeout, errors.PeerError):
        assert issubclass(kind, errors.TransportError)
        assert issubclass(kind, RuntimeError)


def test_a_plan_error_lists_and_keeps_all_problems() -> None:
    error = errors.PlanError(["a is wrong", "b is worse"], "plan.yaml")
    assert str(error) == ("the plan in plan.yaml has 2 problems:\n  1. a is wrong\n  2. b is worse")
    back = pickle.loads(pickle.dumps(error))
    assert (back.problems, back.source) == (("a is wrong", "b is worse"), "plan.yaml")
    assert str(errors.PlanError("a is wrong")) == "the plan has a problem: a is wrong"

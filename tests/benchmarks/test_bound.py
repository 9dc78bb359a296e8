"""The bound and the simulation agree where they must, and with the formula worked out by hand."""

import pytest

from benchmarks.bound import fitting_depths, lower_bound_s, one_f_one_b, simulate_s

F, B = 0.03, 0.06


@pytest.mark.parametrize(
    ("c", "by_hand"),
    # tf + c + M (tf + tb) + c + tb; on the slowest link seven more messages replace the computing
    [(0.0, 0.81), (0.021, 0.852), (0.042, 0.894), (0.084, 0.978), (0.14, 1.44)],
)
def test_two_stages_are_those_of_the_formula(c, by_hand):
    assert lower_bound_s(2, 8, F, B, c) == pytest.approx(by_hand)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("c", [0.0, 0.021, 0.042])
def test_a_deep_enough_pipeline_reaches_the_bound_and_none_beats_it(stages, c):
    bound = lower_bound_s(stages, 8, F, B, c)
    deep = [8] * (stages - 1) + [1]
    assert simulate_s(one_f_one_b(8, deep), F, B, c) >= bound - 1e-12
    fitting = fitting_depths(stages, 8, F, B, c)
    assert simulate_s(one_f_one_b(8, fitting), F, B, c) == pytest.approx(bound, rel=1e-6)


def test_delays_call_for_more_depth():
    exact = fitting_depths(2, 8, F, B, 0.084)
    slack = fitting_depths(2, 8, F, B, 0.084, delay=0.01)
    assert (exact, slack) == ([4, 1], [5, 1])
    lists = one_f_one_b(8, exact), one_f_one_b(8, slack)
    late, in_time = (simulate_s(each, F, B, 0.084, delay=0.01) for each in lists)
    assert in_time < late


def test_too_shallow_a_pipeline_waits_for_the_link():
    shallow = simulate_s(one_f_one_b(8, [2, 1]), F, B, 0.084)
    deep = simulate_s(one_f_one_b(8, [5, 1]), F, B, 0.084)
    assert shallow > 1.2 * deep
    assert deep == pytest.approx(lower_bound_s(2, 8, F, B, 0.084))


def test_one_stage_only_computes():
    assert lower_bound_s(1, 8, F, B, 1.0) == pytest.approx(8 * (F + B))


def test_lists_that_wait_for_each_other_are_noticed():
    with pytest.raises(AssertionError, match="wait for each other"):
        simulate_s({0: ["B0", "F0"], 1: ["F0", "B0"]}, F, B, 0.0)

from __future__ import annotations

from lightning_edge.testbed.steps import Steps


def append(steps: Steps, text: str) -> None:
    with open(steps.path, "a") as file:
        file.write(text)
    steps.update()


def test_lines_are_followed_as_they_grow(tmp_path):
    steps = Steps(tmp_path / "steps")
    steps.update()
    assert (steps.last, steps.count, steps.median_s) == (-1, 0, None)
    append(steps, "1 10.0\n2 11")
    assert (steps.last, steps.count) == (1, 1)
    append(steps, ".5\n")
    append(steps, "3 12.0\n4 14.0\n")
    assert (steps.last, steps.count, steps.median_s) == (4, 4, 1.5)


def test_times_may_be_left_out_and_nonsense_is_not_counted(tmp_path):
    steps = Steps(tmp_path / "steps")
    append(steps, "5\n\nsix 3.0\n7\n")
    assert (steps.last, steps.count, steps.median_s) == (7, 2, None)


def test_any_line_says_that_a_device_is_ready(tmp_path):
    steps = Steps(tmp_path / "steps")
    append(steps, "rea")
    assert not steps.ready
    append(steps, "dy\n")
    assert steps.ready
    assert (steps.last, steps.count) == (-1, 0)


def test_an_old_file_is_emptied(tmp_path):
    (tmp_path / "steps").write_text("99 1.0\n")
    steps = Steps(tmp_path / "steps")
    steps.update()
    assert steps.last == -1

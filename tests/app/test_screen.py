"""What is seen of a run while it goes on, in a terminal and in a file."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.console import Console

from lightning_edge.app.screen import Deferred, DeviceLine, Moment, Screen, picture, plain

MOMENT = Moment(
    epoch=3,
    epochs=6,
    step=60,
    steps=138,
    step_s=0.0786,
    metrics={"train_loss": 0.37681, "val_accuracy": 0.875},
    devices=(
        DeviceLine("orin", 0, 431.2, 0.42, 0.49, 0.09, 7.849),
        DeviceLine("laptop", 1, 862.0, 0.71, 0.22, 0.07),
        DeviceLine("pi", None, None, None, None, None),
    ),
)
TABLE = """\
  device    stage       speed  computes  waits  sends   power
  orin          0  431 rows/s      42 %   49 %    9 %  7.85 W
  laptop        1  862 rows/s      71 %   22 %    7 %       -
  pi      no work           -         -      -      -       -"""


def shown(moment: Moment, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(picture(moment))
    return console.file.getvalue().splitlines()


def test_lines_of_a_file():
    head, *table = plain(MOMENT).splitlines()
    assert head == (
        "epoch 3/6  step 60/138  78.6 ms/step   6 s left  train_loss 0.3768  val_accuracy 0.875"
    )
    assert table == TABLE.splitlines()


@pytest.mark.parametrize("width", [80, 100])
def test_the_picture_fits_a_terminal(width):
    head, metrics, titles, *devices = shown(MOMENT, width)
    assert head.startswith("epoch 3/6  ━━━━")
    assert head.rstrip().endswith("60/138  78.6 ms/step   6 s left")
    assert metrics.rstrip() == "train_loss 0.3768   val_accuracy 0.875"
    assert titles.split() == ["device", "stage", "speed", "computes", "waits", "sends", "power"]
    assert [line.split()[0] for line in devices] == ["orin", "laptop", "pi"]
    assert all(len(line) <= width for line in (head, metrics, titles, *devices))


def test_many_metrics_take_one_line():
    many = Moment(metrics={f"metric_{i}": i for i in range(40)})
    assert len(shown(many, 60)) == 2


def test_an_end_that_is_not_known():
    endless = Moment(epoch=1, step=60, step_s=90.0)
    assert plain(endless) == "epoch 1  step 60  90 s/step"
    assert "60" in shown(endless, 80)[0]


@pytest.mark.parametrize(
    ("step_s", "left"), [(1.0, "78 s"), (10.0, "13 min"), (100.0, "2 h 10 min")]
)
def test_the_time_that_is_left(step_s, left):
    moment = Moment(step=60, steps=138, step_s=step_s)
    assert moment.counts[2].endswith(f"{left} left")
    assert moment.validating().counts[2].endswith("validating")


def test_what_is_printed_and_logged_meanwhile_stands_above(monkeypatch, capsys):
    terminal = io.StringIO()
    logger = logging.getLogger("tests.screen")
    handler = logging.StreamHandler()  # holds stderr as it is now, as Lightning's own does
    logger.addHandler(handler)
    screen = Screen(Console(file=terminal, width=80, force_terminal=True))
    screen.start()
    try:
        screen.show(MOMENT)
        print("printed")
        logger.warning("logged")
    finally:
        screen.stop()
        logger.removeHandler(handler)
    assert handler.stream is sys.stderr
    assert capsys.readouterr() == ("", "")  # nothing went past it
    said = terminal.getvalue()
    assert said.index("printed") < said.index("logged") < said.rindex("epoch 3/6")
    assert said.rstrip("\x1b[?25h").endswith("\n")  # what comes next begins a line


def test_another_process_of_the_terminal_says_it_afterwards(capsys):
    deferred = Deferred()
    deferred.start()
    try:
        print("printed")
    finally:
        held = capsys.readouterr()
        deferred.stop()
    assert held == ("", "")
    assert capsys.readouterr().err == "printed\n"

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import DeviceResult, RunResult
from lightning_edge.testbed.result import exit_text

GOOD = DeviceResult(
    rank=0,
    exit_code=0,
    outcome="ok",
    seconds=2.0,
    cpu_s=1.0,
    throttled_s=0.5,
    sent_bytes=10,
    received_bytes=20,
    memory_peak_bytes=30,
    anonymous_peak_bytes=25,
    energy_j=4.5,
    energy_source="emulated; a table",
    steps=3,
    step_s=0.5,
    lines=("hello",),
)
BAD = replace(GOOD, rank=1, exit_code=1, outcome="failed", lines=("Traceback", "ValueError: x"))
RUN = RunResult(("python", "x.py"), 2.0, False, {"a": GOOD, "b": GOOD}, (), None, ("note",))


def test_a_run_is_ok_if_all_ended_well_or_were_meant_to_die():
    killed = replace(BAD, outcome="killed", exit_code=-9)
    assert RUN.ok
    assert RUN.check() is RUN
    assert replace(RUN, devices={"a": GOOD, "b": killed}).ok
    assert not replace(RUN, devices={"a": GOOD, "b": BAD}).ok


def test_the_error_names_every_device_and_the_last_words_of_the_bad_ones():
    stopped = replace(GOOD, rank=2, exit_code=-15, outcome="stopped", lines=("waiting",))
    run = replace(RUN, devices={"a": GOOD, "b": BAD, "c": stopped}, timed_out=True)
    with pytest.raises(TestbedError) as raised:
        run.check()
    assert str(raised.value).splitlines() == [
        "time was up",
        "a (rank 0): ok, exit code 0 after 2.0 s",
        "b (rank 1): failed, exit code 1 after 2.0 s",
        "    Traceback",
        "    ValueError: x",
        "c (rank 2): stopped, SIGTERM after 2.0 s",
        "    waiting",
    ]


def test_json_says_that_joules_are_emulated():
    run = replace(RUN, faults=(("kill:a@1s", 1.02), ("cut:a@step9", None)))
    found = json.loads(run.to_json())
    assert found["energy_emulated"] is True
    assert found["devices"]["a"]["energy_j"] == 4.5
    assert found["devices"]["a"]["energy_source"] == "emulated; a table"
    assert "lines" not in found["devices"]["a"]
    assert found["faults"] == [
        {"fault": "kill:a@1s", "fired_s": 1.02},
        {"fault": "cut:a@step9", "fired_s": None},
    ]


def test_signals_have_names():
    assert exit_text(3) == "exit code 3"
    assert exit_text(-9) == "SIGKILL"
    assert exit_text(-99) == "signal 99"

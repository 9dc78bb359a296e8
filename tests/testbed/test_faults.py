from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.errors import TestbedError
from lightning_edge.testbed.faults import Action, Fault, Timeline, check_faults


def test_faults_are_read():
    assert Fault.parse("kill:pi@12s") == Fault(Action.KILL, "pi", at_s=12.0)
    assert Fault.parse("cut:pi-2@step30") == Fault(Action.CUT, "pi-2", at_step=30)
    assert Fault.parse("slow:pi=30%@500ms") == Fault(Action.SLOW, "pi", at_s=0.5, cpu_factor=0.3)
    assert Fault.parse("slow:pi=5mbit@step 3") == Fault(Action.SLOW, "pi", at_step=3, link_mbit=5.0)


@given(
    action=st.sampled_from(Action),
    device=st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True),
    at_step=st.none() | st.integers(0, 10**6),
    hundredths=st.integers(1, 10**6),
    rate=st.booleans(),
)
def test_a_fault_is_written_as_it_is_read(action, device, at_step, hundredths, rate):
    value = {"link_mbit" if rate else "cpu_factor": hundredths / 100}
    fault = Fault(
        action,
        device,
        at_s=hundredths / 100 if at_step is None else None,
        at_step=at_step,
        **(value if action is Action.SLOW else {}),
    )
    assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize(
    "text",
    [
        "explode:pi@1s",
        "kill:pi",
        "kill@1s",
        "kill:pi@soon",
        "kill:pi=3@1s",
        "slow:pi@1s",
        "slow:pi=0%@1s",
        "slow:pi=wide@1s",
    ],
)
def test_other_texts_are_refused_with_the_form(text):
    with pytest.raises(TestbedError, match="slow:pi=30%@5s"):
        Fault.parse(text)


def test_a_fault_has_one_time():
    with pytest.raises(TestbedError, match="one of the two"):
        Fault(Action.KILL, "pi")
    with pytest.raises(TestbedError, match="one of the two"):
        Fault(Action.KILL, "pi", at_s=1.0, at_step=1)


def test_devices_have_to_be_there():
    faults = [Fault.parse("kill:pi@1s"), Fault.parse("kill:orin@1s")]
    assert check_faults(faults, ["orin", "nano"]) == [
        "the fault kill:pi@1s names a device that is not there; there is orin, nano"
    ]


def test_faults_happen_once_in_order_when_they_are_due():
    done: list[str] = []
    texts = ["thaw:a@2s", "freeze:a@1s", "kill:b@step3", "cut:a@step3"]
    timeline = Timeline([Fault.parse(t) for t in texts], lambda fault: done.append(str(fault)))
    steps = {"a": -1, "b": -1}

    def advance(time_s: float) -> list[str]:
        done.clear()
        timeline.advance(time_s, steps.__getitem__)
        return list(done)

    assert advance(0.5) == []
    steps["b"] = 7  # a step between two looks is not missed
    assert advance(2.5) == ["freeze:a@1s", "thaw:a@2s", "kill:b@step3"]
    assert advance(3.0) == []
    assert [str(fault) for fault in timeline.waiting] == ["cut:a@step3"]
    steps["a"] = 3
    assert advance(3.5) == ["cut:a@step3"]
    assert [time_s for _, time_s in timeline.fired] == [2.5, 2.5, 2.5, 3.5]
    assert timeline.waiting == ()

from __future__ import annotations

import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import DeviceSpec, PoolSpec, PowerCurve
from lightning_edge.testbed.spec import check_specs


def test_a_device_is_read_from_one_argument():
    spec = DeviceSpec.parse("cpu=60%,memory=2G,link=100mbit,latency=5ms,loss=1%,power=2.5W-8W")
    assert spec == DeviceSpec(
        cpu=0.6,
        memory_bytes=2 * 2**30,
        link_mbit=100.0,
        latency_s=0.005,
        loss=0.01,
        power=PowerCurve(2.5, 8.0),
    )


def test_a_board_needs_no_key():
    assert DeviceSpec.parse("orin-nano:15W, name=left, link=50mbit") == DeviceSpec(
        name="left", board="orin-nano:15W", link_mbit=50.0
    )


def test_a_link_may_follow_a_trace(tmp_path):
    (tmp_path / "lab.csv").write_text("t_s,mbit\n0,10\n2,20\n")
    spec = DeviceSpec.parse(f"link={tmp_path / 'lab.csv'}")
    assert spec.link_mbit is None
    assert spec.trace is not None
    assert spec.trace.rates_mbit == (10.0, 20.0)


def test_every_problem_of_a_device_is_named_at_once():
    with pytest.raises(TestbedError) as raised:
        DeviceSpec.parse("cpu=much,colour=red,memory=2G,memory=3G,power=8W")
    text = str(raised.value)
    assert "4 problems" in text
    for part in ("'much'", "'colour'", "memory is given twice", "2.5W-8W"):
        assert part in text


def test_a_pool_is_read_from_yaml(tmp_path):
    path = tmp_path / "pool.yaml"
    path.write_text(
        "devices:\n  - {board: pi5, name: shed, link: 20mbit}\n  - cpu=20%,memory=1G\n"
        "medium: 80mbit\nscale_links: true\n"
    )
    pool = PoolSpec.from_yaml(path)
    assert pool.devices[0] == DeviceSpec(name="shed", board="pi5", link_mbit=20.0)
    assert pool.devices[1] == DeviceSpec(cpu=0.2, memory_bytes=2**30)
    assert (pool.medium_mbit, pool.medium_trace, pool.scale_links) == (80.0, None, True)


def test_every_problem_of_a_pool_is_named_at_once(tmp_path):
    path = tmp_path / "pool.yaml"
    path.write_text(
        "devices: [{cpu: x}, 3]\nmedium: wide\nscale_links: 2\nmeduim: 5mbit\n", encoding="utf-8"
    )
    with pytest.raises(TestbedError, match="pool.yaml has 5 problems") as raised:
        PoolSpec.from_yaml(path)
    for part in ("device 0", "device 1 is 3", "medium:", "scale_links: 2", "'meduim'"):
        assert part in str(raised.value)


@pytest.mark.parametrize("text", ["- cpu: 1\n", "devices: 3\n", "devices: [\n"])
def test_what_is_no_pool_is_refused(tmp_path, text):
    (tmp_path / "pool.yaml").write_text(text)
    with pytest.raises(TestbedError, match=r"pool\.yaml"):
        PoolSpec.from_yaml(tmp_path / "pool.yaml")
    with pytest.raises(TestbedError, match="No such file"):
        PoolSpec.from_yaml(tmp_path / "nowhere.yaml")


def test_values_out_of_range_are_named():
    specs = [
        DeviceSpec(cpu=0.0, memory_bytes=10, link_mbit=-1.0),
        DeviceSpec(loss=1.0, power=PowerCurve(8.0, 2.0)),
        DeviceSpec(),
    ]
    problems = check_specs(specs, ["a", "b", "under_score"])
    assert len(problems) == 6
    assert check_specs([], []) == ["there is no device; give at least one, --device cpu=60%"]
    many = [f"d{number}" for number in range(251)]
    assert check_specs([DeviceSpec()] * 251, many) == [
        "251 devices are more than the 250 of one testbed"
    ]
    assert check_specs([DeviceSpec(), DeviceSpec()], ["a", "a"]) == [
        "two devices are called 'a'; give them a name="
    ]

"""docs/testbed.md: its script trains, and its commands are commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lightning_edge.testbed import DeviceSpec, Testbed
from lightning_edge.testbed.cli import _parser, _pool_spec
from lightning_edge.testbed.faults import Fault, check_faults
from lightning_edge.testbed.machine import Machine
from lightning_edge.testbed.resolve import resolve

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "testbed.md").read_text()
SCRIPTS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
]
START = ["$(which python)", "-m", "lightning_edge.testbed"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_read_and_its_pool_be_built(command):
    words = shlex.split(command.removeprefix("sudo "))
    assert words[:3] == START
    parsed = _parser().parse_args(words[3:])
    if words[3] == "run":
        assert command.startswith("sudo ")
        pool = _pool_spec(parsed)
        found = resolve(pool, Machine(2, 2**34, 100.0))
        faults = [Fault.parse(text) for text in parsed.fault]
        assert check_faults(faults, [device.name for device in found.devices]) == []
        assert parsed.command == ["python", "train.py"]


def test_the_pool_shown_is_the_one_that_comes_along():
    (shown,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    shipped = (ROOT / "conf" / "testbed" / "home.yaml").read_text()
    assert yaml.safe_load(shown) == yaml.safe_load(shipped)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.multiproc
@pytest.mark.timeout(400)
def test_the_script_trains_on_unequal_devices_as_on_one(tmp_path):
    """The same last loss on a pool as in plain Lightning, and joules that say they are emulated."""
    (tmp_path / "train.py").write_text(SCRIPTS[0])
    plain = SCRIPTS[0].replace('strategy="edge_collab"', 'strategy="auto"')
    (tmp_path / "plain.py").write_text(plain)
    alone = subprocess.run(
        [sys.executable, "plain.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    loss = re.findall(r"^loss .*$", alone.stdout, flags=re.MULTILINE)
    assert len(loss) == 1, alone.stderr
    specs = [DeviceSpec.parse("pi5,link=200mbit"), DeviceSpec.parse("orin-nano:15W")]
    with Testbed(
        [replace(spec, cpu=cpu) for spec, cpu in zip(specs, (0.3, 0.6), strict=True)]
    ) as bed:
        command = [sys.executable, str(tmp_path / "train.py")]
        result = bed.run(command, timeout_s=300, free_start=True).check()
    for device in result.devices.values():
        assert loss[0] in device.lines
        assert device.steps == 20
        assert device.sent_bytes > 1e6
        assert device.energy_j > 0
        assert device.energy_source.startswith("emulated; ")


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.multiproc
@pytest.mark.timeout(400)
def test_a_training_notices_that_a_device_was_killed(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPTS[0].replace("max_steps=20", "max_steps=10000"))
    with Testbed([DeviceSpec("a"), DeviceSpec("b")]) as bed:
        command = [sys.executable, str(tmp_path / "train.py")]
        result = bed.run(command, timeout_s=300, faults=["kill:b@step3"], grace_s=100)
    a, b = result.devices.values()
    assert (b.outcome, a.outcome) == ("killed", "failed")
    assert any("(b) failed first" in line for line in a.lines)

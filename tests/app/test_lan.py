"""`cluster=lan` over network namespaces: devices find each other with nothing typed."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from lightning_edge.testbed import DeviceSpec, Testbed

SAY = """\
import json, os
names = ("RANK", "WORLD_SIZE", "LIGHTNING_EDGE_RUN", "GLOO_SOCKET_IFNAME", "MASTER_ADDR")
print(json.dumps({name: os.environ[name] for name in names}))
"""
LAN = ("cluster=lan", "cluster.wait_s=60")


@pytest.mark.root
@pytest.mark.multiproc
def test_devices_of_one_network_find_each_other(tmp_path):
    (tmp_path / "say.py").write_text(SAY)
    with Testbed([DeviceSpec("orin"), DeviceSpec("laptop")]) as bed:
        command = [sys.executable, "-m", "lightning_edge.app", "run", *LAN, "cluster.devices=2"]
        result = bed.run(
            [*command, "--", sys.executable, str(tmp_path / "say.py")],
            timeout_s=120,
            env={"LIGHTNING_EDGE_SECRET": "ours"},
        ).check()
    said = [
        json.loads(line)
        for device in result.devices.values()
        for line in device.lines
        if line.startswith("{")
    ]
    assert sorted(one["RANK"] for one in said) == ["0", "1"]
    for name in ("WORLD_SIZE", "LIGHTNING_EDGE_RUN", "MASTER_ADDR"):
        assert len({one[name] for one in said}) == 1
    assert {one["GLOO_SOCKET_IFNAME"] for one in said} == {"eth0"}
    assert not said[0]["MASTER_ADDR"].startswith("127.")


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.multiproc
@pytest.mark.timeout(400)
def test_devices_that_found_each_other_train_as_one(tmp_path):
    from tests.app.commands import command
    from tests.app.test_train import SMALL, TWO, weights

    alone = tmp_path / "alone"
    alone.mkdir()
    assert command("train", *SMALL, folder=alone).status == 0
    with Testbed([DeviceSpec("orin"), DeviceSpec("laptop")]) as bed:
        words = [sys.executable, "-m", "lightning_edge.app", "train", *SMALL, *LAN, TWO[1]]
        result = bed.run([*words, f"run.root={tmp_path / 'outputs'}"], timeout_s=300).check()
    assert all(device.steps == 3 for device in result.devices.values())
    expected, found = weights(alone), weights(tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.multiproc
@pytest.mark.timeout(400)
def test_devices_with_different_settings_are_refused_with_the_keys(tmp_path):
    from tests.app.test_train import SMALL

    words = [sys.executable, "-m", "lightning_edge.app", "train", *SMALL, *LAN]
    words += [f"run.root={tmp_path / 'outputs'}"]
    script = f"exec {' '.join(repr(word) for word in words)} model.lr=0.0$((RANK + 1))"
    with Testbed([DeviceSpec("orin"), DeviceSpec("laptop")]) as bed:
        result = bed.run(["sh", "-c", script], timeout_s=300)
    for device in result.devices.values():
        assert device.outcome == "failed"
        text = "\n".join(device.lines)
        assert "model.lr:  0.01 on " in text or "model.lr:  0.02 on " in text

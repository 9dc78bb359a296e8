"""`cluster=static`: devices that know the host's address and nothing else; here processes."""

from __future__ import annotations

import json
import socket
import sys

import pytest
import torch

from tests.app.commands import command, finish, start
from tests.app.test_lan import SAY
from tests.app.test_train import SMALL, TWO, weights


def static(devices: int) -> tuple[str, ...]:
    """Settings with a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return (
        "cluster=static",
        "cluster.host=127.0.0.1",
        f"cluster.port={port}",
        f"cluster.devices={devices}",
        "cluster.wait_s=60",
    )


@pytest.mark.multiproc
def test_devices_that_go_to_one_address_become_ranks_of_one_run(tmp_path):
    (tmp_path / "say.py").write_text(SAY)
    words = ("run", *static(2), "--", sys.executable, "say.py")
    started = [start(*words, folder=tmp_path, LIGHTNING_EDGE_DEVICE=name) for name in "ab"]
    ended = [finish(process) for process in started]
    assert [one.status for one in ended] == [0, 0], [one.err for one in ended]
    said = [json.loads(one.out) for one in ended]
    assert sorted(one["RANK"] for one in said) == ["0", "1"]
    for name in ("WORLD_SIZE", "LIGHTNING_EDGE_RUN", "MASTER_ADDR"):
        assert len({one[name] for one in said}) == 1
    assert said[0]["WORLD_SIZE"] == "2"
    assert any("all 2 are here: " in one.err for one in ended)


@pytest.mark.slow
@pytest.mark.multiproc
@pytest.mark.timeout(400)
def test_devices_that_met_at_one_address_train_as_one(tmp_path):
    """The last one to come has another folder of its own, as on another machine."""
    places = [tmp_path / name for name in ("alone", "a", "b")]
    for place in places:
        place.mkdir()
    alone, *both = places
    assert command("train", *SMALL, folder=alone).status == 0
    words = ("train", *SMALL, *static(2), TWO[1])
    started = [start(*words, folder=p, LIGHTNING_EDGE_DEVICE=p.name) for p in both]
    ended = [finish(process, 300) for process in started]
    assert [one.status for one in ended] == [0, 0], [one.err for one in ended]
    runs = [next((place / "outputs").iterdir()) for place in both]
    assert runs[0].name == runs[1].name  # one run id on all devices
    kept = [place for place, run in zip(both, runs, strict=True) if (run / "checkpoints").exists()]
    (host,) = kept  # the rank 0 alone has the checkpoint
    expected, found = weights(alone), weights(host)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.multiproc
def test_a_host_that_does_not_come_is_named_with_what_was_tried(tmp_path):
    (tmp_path / "say.py").write_text(SAY)
    words = [word for word in static(2) if not word.startswith(("cluster.host", "cluster.wait_s"))]
    # An address of documentation (RFC 5737), which nobody has.
    more = ("cluster.host=203.0.113.1", "cluster.wait_s=2")
    done = command("run", *words, *more, "--", sys.executable, "say.py", folder=tmp_path)
    assert done.status == 1
    assert done.last.startswith("lightning-edge run: waited 2 s (cluster.wait_s) for the host: ")
    assert "203.0.113.1" in done.last

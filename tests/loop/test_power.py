"""A device that is not in the power mode of the plan is told of, with what to do."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import pytest

from lightning_edge.energy import HostEnv
from lightning_edge.loop.power import Watts, check_mode, ranks_at
from lightning_edge.plan.participants import PowerMode
from lightning_edge.testbed.meter import Meter
from lightning_edge.testbed.power import PowerCurve
from tests.energy import trees
from tests.energy.trees import Clock, faked_host


def test_a_plan_for_another_power_mode(tmp_path: Path) -> None:
    trees.write(
        tmp_path,
        {
            "/etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >",
            "/var/lib/nvpmodel/status": "pmode:0001",
        },
    )
    jetson, laptop = faked_host(tmp_path, Clock()), faked_host(tmp_path / "laptop", Clock())
    with pytest.warns(UserWarning, match="orin is in power mode 25W, and the plan says 15W"):
        check_mode("15W", "orin", jetson)
    with pytest.warns(UserWarning, match="laptop is in power mode default"):
        check_mode("15W", "laptop", laptop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_mode("25W", "orin", jetson)
        check_mode(None, "orin", jetson)
        check_mode("default", "laptop", laptop)


def emulated(folder: Path, device: str, watts: float) -> tuple[Watts, Meter]:
    """What a device of a testbed reads, and the testbed's end of it."""
    curve = PowerCurve(idle_w=watts, busy_w=watts)
    meter = Meter(folder / device, device=device, board=None, curve=curve, update_period_s=0.01)
    environ = {"LIGHTNING_EDGE_METER_DIR": str(folder / device)}
    return Watts(HostEnv(sysroot=folder, environ=environ)), meter


def test_devices_of_a_testbed_do_not_share_their_watts(tmp_path: Path) -> None:
    """They run on one machine, and each has a meter of its own."""
    both = [emulated(tmp_path, name, watts) for name, watts in (("a", 4.0), ("b", 9.0))]
    for watts, meter in both:
        for name in ("idle_w", "compute_w"):
            with watts.during(name):
                time.sleep(0.02)
                meter.update(0.0, 0.02, 0.0, time.monotonic())
        watts.close()
        meter.close()
    of_all = [watts.meters for watts, _ in both]
    assert [ranks_at(mine, of_all) for mine in of_all] == [1, 1]
    mode = both[1][0].mode(PowerMode("default"), ranks_here=1, busy_links=1.0)
    assert mode.provenance["compute_w"] == "declared"


def test_ranks_of_one_board_share_its_watts() -> None:
    assert ranks_at(["h:cpu", "h:gpu-0"], [["h:cpu", "h:gpu-0"], ["h:cpu", "h:gpu-1"]]) == 2
    assert ranks_at(["h:cpu"], [["h:cpu"], ["other:cpu"]]) == 1

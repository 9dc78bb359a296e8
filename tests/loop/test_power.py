"""A device that is not in the power mode of the plan is told of, with what to do."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from lightning_edge.loop.power import check_mode
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

"""A power mode for the time of a run: set, put back, refused where it cannot be set."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from lightning_edge.app.failure import CommandError, Interrupted
from lightning_edge.app.power import in_power_mode, wanted_mode
from tests.energy import trees
from tests.energy.jtop_client import FakeJtop, host_with
from tests.energy.trees import Clock, faked_host

PLAN = {
    "pipelines": [{"stages": [{"devices": ["orin"]}, {"start": "b", "devices": ["nano"]}]}],
    "power_modes": {"orin": "15W"},
}


def config(
    mode: str | None, plan: Any = "auto", name: str = "orin", kind: str = "lan"
) -> DictConfig:
    return OmegaConf.create(
        {
            "device": {"power_mode": mode, "name": name},
            "strategy": {"plan": plan},
            "cluster": {"kind": kind},
        }
    )


@pytest.mark.parametrize("ending", [None, ValueError("no"), Interrupted(2)])
def test_the_mode_of_before_comes_back_however_the_run_ends(tmp_path, ending, capsys):
    fake = FakeJtop({"VDD_IN": 7000})
    host = host_with(tmp_path, Clock(), fake)
    expected = contextlib.nullcontext() if ending is None else pytest.raises(type(ending))
    with expected, in_power_mode(config("15W"), host):
        assert fake.client.model.name == "15W"
        assert fake.client.closed  # nobody polls the service while the run goes on
        if ending is not None:
            raise ending
    assert fake.client.model.name == "25W"
    assert capsys.readouterr().out == "power mode 15W; 25W comes back at the end\n"


def test_nothing_is_asked_of_jtop_where_the_mode_is_on_already(tmp_path):
    trees.write(
        tmp_path,
        {
            "/etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >",
            "/var/lib/nvpmodel/status": "pmode:0001",
        },
    )
    host = faked_host(tmp_path, Clock())  # without jtop
    for mode in (None, "25W"):
        with in_power_mode(config(mode), host):
            pass
    refused = pytest.raises(CommandError, match=r"15W: no way .* there are 15W, 25W. sudo pip3 in")
    with refused, in_power_mode(config("15W"), host):
        pytest.fail("it ran")


def test_a_mode_that_the_board_does_not_have_is_refused_with_those_it_has(tmp_path):
    fake = FakeJtop({"VDD_IN": 7000})
    with (
        pytest.raises(
            CommandError, match=r"^device.power_mode=15w: no power mode '15w'; there are 15W, 25W$"
        ),
        in_power_mode(config("15w"), host_with(tmp_path, Clock(), fake)),
    ):
        pytest.fail("it ran")
    assert fake.client.model.name == "25W"


def test_a_mode_that_does_not_come_back_is_told_and_does_not_hide_the_run(tmp_path, capsys):
    fake = FakeJtop({"VDD_IN": 7000})
    host = host_with(tmp_path, Clock(), fake)

    def run() -> None:
        with in_power_mode(config("15W"), host):
            fake.client.model.models = ["15W"]
            raise ValueError("the run's own")

    with pytest.raises(ValueError, match="the run's own"):
        run()
    assert "the power mode is still 15W: device.power_mode=25W: no" in capsys.readouterr().err


def test_the_plan_says_it_by_the_name_of_the_device(tmp_path: Path):
    file = tmp_path / "plan.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(PLAN)))
    assert wanted_mode(config("plan", PLAN)) == "15W"
    assert wanted_mode(config("plan", str(file))) == "15W"
    with pytest.raises(CommandError, match=r"gives this device, nano, no .* \(.* orin: 15W\)"):
        wanted_mode(config("plan", PLAN, name="nano"))
    with pytest.raises(CommandError, match="there is no plan yet"):
        wanted_mode(config("plan"))
    with pytest.raises(CommandError, match="nothing.yaml"):
        wanted_mode(config("plan", "nothing.yaml"))
    one = {"pipelines": [{"stages": [{"devices": [0]}]}], "power_modes": {0: "7W"}}
    assert wanted_mode(config("plan", one, kind="local")) == "7W"
